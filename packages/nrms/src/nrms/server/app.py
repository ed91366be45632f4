"""The HTTP API."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from latentlab_shared.api import add_errors, error, page
from nrms.data.types import News
from nrms.inference import Answer, Recommender
from nrms.inference.catalogue import to_ms
from nrms.server.article_recommender.calculate_embeddings import embed_pending
from nrms.server.guard import Guard
from nrms.server.observe import Metrics
from nrms.server.requests import (
    MAX_HISTORY,
    MAX_K,
    ArticlesRequest,
    EventsRequest,
    Id,
    Moment,
    Name,
    RecommendRequest,
)
from nrms.server.settings import Settings
from nrms.server.store import Read, Store, Unavailable, now_ms
from nrms.server.sync import Follower

T = TypeVar("T")

_log = logging.getLogger(__name__)

_DATABASE_THREADS = 16
_FUTURE_MS = 86_400_000  # clocks differ, but not by more than a day


class Service:
    """What the routes of one process share: the store, the follower with its recommender, the metrics.

    Args:
        settings: what the process was told.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        # The process that started this one has migrated; a database that is away must not stop a worker's start.
        self.store = Store(settings.database, migrate=False, patience=settings.patience)
        self.follower = Follower(self.store, settings.search, settings.poll, settings.device)
        self.follower.on_swap = lambda recommender: self.metrics.swap(recommender.model_id, len(recommender))
        self._compute: anyio.CapacityLimiter | None = None
        self._database: anyio.CapacityLimiter | None = None
        self._embedding: threading.Thread | None = None
        self._lock, self._stopping = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Load the active model, and follow."""
        self._compute = anyio.CapacityLimiter(self.settings.threads)
        self._database = anyio.CapacityLimiter(_DATABASE_THREADS)
        self.follower.start()

    def stop(self) -> None:
        """End the threads and close the connections."""
        self._stopping.set()
        self.follower.stop()
        if self._embedding is not None:
            self._embedding.join(timeout=30)
        self.store.close()

    async def compute(self, work: Callable[[], T]) -> T:
        """Run a computation in a thread; more than the cores can do wait here in their order."""
        return await anyio.to_thread.run_sync(work, limiter=self._compute)

    async def ask(self, work: Callable[[], T]) -> T:
        """Run something that waits for the database; it never takes the place of a computation."""
        return await anyio.to_thread.run_sync(work, limiter=self._database)

    @property
    def recommender(self) -> Recommender:
        """The one that answers.

        Raises:
            HTTPException: 503 as long as no model is active.
        """
        if self.follower.recommender is None:
            raise HTTPException(503, "no model is active yet")
        return self.follower.recommender

    def rank(self, body: RecommendRequest, history: list[str], exclude: list[str]) -> dict[str, Any]:
        """Answer a request for a ranking."""
        recommender = self.recommender
        answer = recommender.recommend(
            history,
            body.k,
            history_titles=body.history_titles,
            candidates=body.candidates,
            categories=body.categories,
            published_since=body.published_since,
            exclude=exclude,
            exclude_read=body.exclude_read,
            diversity=body.diversity,
            explain=body.explain,
        )
        self._check_model(body.model_id, answer)
        if answer.fallback:
            self.metrics.fallbacks.labels(answer.fallback).inc()
        self.metrics.missing.inc(len(answer.missing))
        return answer.to_dict()

    def _check_model(self, wanted: str | None, answer: Answer) -> None:
        if wanted is not None and wanted != answer.model_id:
            raise HTTPException(409, f"model {answer.model_id} answers, not {wanted}")

    def refresh(self) -> bool:
        """Embed what is new in a thread; False if that is going on already."""
        with self._lock:
            if self._embedding is not None and self._embedding.is_alive():
                return False
            self._embedding = threading.Thread(target=self._embed, name="embed", daemon=True)
            self._embedding.start()
            return True

    def _embed(self) -> None:
        try:
            active = self.store.models.active()
            if active is None:
                return
            model = self.recommender.state.model
            if model.model_id == active.id:
                embed_pending(self.store, model, active.folder, stop=self._stopping.is_set)
            self.follower.refresh()
        except Exception:
            _log.exception("embedding failed")


def create_app(settings: Settings) -> FastAPI:
    """The application of one process; its tables are at this version of the package already."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await anyio.to_thread.run_sync(service.stop)

    app = FastAPI(
        title="nrms",
        description="News recommendation from cached embeddings.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, metrics=service.metrics, token=settings.token, max_body=settings.max_body)
    add_errors(app)

    @app.exception_handler(Unavailable)
    async def away(request: Request, fault: Unavailable) -> JSONResponse:
        _log.error("database away", extra={"reason": str(fault)})
        return error(503, "the database is away; send the request again", {"retry-after": "2"})

    _add_rankings(app, service)
    _add_writes(app, service)
    _add_states(app, service)
    return app


def _add_rankings(app: FastAPI, service: Service) -> None:
    @app.post("/recommend")
    async def recommend(body: RecommendRequest) -> JSONResponse:
        """Rank the catalogue, or some candidates, for a reading history."""
        return JSONResponse(await service.compute(lambda: service.rank(body, body.history, [])))

    @app.get("/users/{user}/recommendations")
    async def for_user(
        user: Id,
        k: Annotated[int, Query(ge=0, le=MAX_K)] = 10,
        category: Annotated[list[Name], Query(max_length=100)] = [],  # noqa: B006  (FastAPI copies it)
        published_since: Moment | None = None,
        diversity: Annotated[float, Query(ge=0, le=1)] = 0.0,
        explain: bool = False,
        model_id: Annotated[str | None, Query(max_length=64)] = None,
    ) -> JSONResponse:
        """Rank the catalogue for a reader whose events are known; popular or recent articles for a stranger."""
        body = RecommendRequest(
            k=k,
            candidates=None,
            categories=category,
            published_since=published_since,
            diversity=diversity,
            explain=explain,
            model_id=model_id,
        )
        read = await service.ask(lambda: service.store.events.history(user))
        return JSONResponse(await service.compute(lambda: service.rank(body, read[-MAX_HISTORY:], read)))

    @app.get("/articles")
    async def articles(
        words: Name = "",
        category: Name = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> dict[str, Any]:
        """The newest articles, by category or by words of the title."""
        found = await service.ask(lambda: service.store.articles.search(words, category, limit))
        categories = await service.ask(service.store.articles.categories)
        listed = [
            {"id": n.id, "title": n.title, "category": n.category, "published": n.published and n.published.isoformat()}
            for n in found
        ]
        return {"articles": listed, "categories": categories}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> HTMLResponse:
        return page(files("nrms.server").joinpath("page.html").read_text(encoding="utf-8"))


def _add_writes(app: FastAPI, service: Service) -> None:
    @app.post("/articles")
    async def add_articles(body: ArticlesRequest) -> dict[str, int]:
        """Add or change articles; they are recommended once they are embedded."""
        news = [News(a.id, a.title, a.category, a.subcategory, a.abstract, a.published) for a in body.articles]
        expires = {a.id: a.expires for a in body.articles}
        added = await service.ask(lambda: service.store.articles.add(news, expires))
        return vars(added)

    @app.post("/events")
    async def add_events(body: EventsRequest) -> dict[str, int]:
        """Keep reads: when this answers, they are committed."""
        now = now_ms()
        reads = [Read(e.event_id, e.user, e.article, now if e.at is None else to_ms(e.at) or 0) for e in body.events]
        if any(not 0 <= read.at <= now + _FUTURE_MS for read in reads):
            raise HTTPException(422, "at: an event lies in the future, or before 1970")
        fresh = await service.ask(lambda: service.store.events.add(reads))
        service.metrics.events.inc(fresh)
        return {"accepted": len(reads), "duplicates": len(reads) - fresh}

    @app.post("/embeddings/refresh", status_code=202)
    async def refresh() -> dict[str, Any]:
        """Embed what is new with the active model, in the background."""
        recommender = service.recommender
        return {"model_id": recommender.model_id, "started": service.refresh()}


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/embeddings")
    async def embeddings() -> dict[str, Any]:
        """The active model and how much of the catalogue it covers."""

        def look() -> dict[str, Any]:
            active = service.store.models.active()
            if active is None:
                raise HTTPException(503, "no model is active yet")
            coverage = service.store.models.coverage(active)
            left = coverage.live - coverage.embedded
            return {"model_id": active.id, "live": coverage.live, "embedded": coverage.embedded, "left": left}

        return await service.ask(look)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is up."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """A model is in place and can answer."""
        recommender = service.recommender
        config = recommender.state.model.config
        return {
            "status": "ready",
            "model_id": recommender.model_id,
            "articles": len(recommender),
            "dim": config.dim,
            "search": service.settings.search,
        }

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        page, kind = service.metrics.page()
        return Response(page, media_type=kind)
