"""The HTTP API: answers streamed, whole, or beside those of the full context, from a few workers."""

from __future__ import annotations

import asyncio
import hmac
import json
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from latentlab_shared.api import add_errors, error, limit_bodies, page
from latentlab_shared.errors import UserError
from latentlab_shared.serving import serve_app
from refrag.sample.facts import generate
from refrag.serving.desk import FAILED, Desk, Full
from refrag.serving.library import Found, Library
from refrag.serving.schemas import Ask, Cancel, Cancelled, Fault, Health, Workers
from refrag.serving.worker import SIDES, Job, ProcessWorker, Worker

MAX_BODY_BYTES = 4 * 2**20
MAX_WAITING = 63  # requests; one more is told to come again
RETRIEVED = 4  # passages, where a request names no documents
_KEEP_ALIVE_S = 15.0
_OPEN = ("/", "/healthz")  # without a token
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SAID = {
    401: "no bearer token, or a wrong one",
    403: "a page of another origin",
    413: "too large",
    422: "wrong",
    429: "busy",
}
_STREAM: dict[int | str, Any] = {200: {"description": "server-sent events", "content": {"text/event-stream": {}}}}


@dataclass(frozen=True)
class Access:
    """Who may use the API.

    Attributes:
        token: if given, requests must carry it as ``Authorization: Bearer``.
        origins: pages of other servers that may use the API from a browser.
        hosts: names that requests may use for this server; empty for any. It keeps pages whose name was pointed at
            this machine from reading answers.
    """

    token: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def create_app(
    workers: Sequence[Worker],
    library: Library | None = None,
    access: Access | None = None,
    *,
    waiting: int = MAX_WAITING,
) -> FastAPI:
    """The application around loaded workers.

    Args:
        workers: all of one model.
        library: passages for questions that bring no documents of their own.
        access: who may use it; everyone by default.
        waiting: requests that may wait for a worker.
    """
    given = access or Access()
    desk = Desk(workers, waiting)
    about = workers[0].about() | {"library": len(library) if library is not None else 0}

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    said: dict[int | str, Any] = {code: {"model": Fault, "description": text} for code, text in _SAID.items()}
    app = FastAPI(title="refrag", docs_url=None, redoc_url=None, lifespan=life, responses=said)
    add_errors(app)
    limit_bodies(app, MAX_BODY_BYTES)
    app.add_middleware(_Guard, access=given)
    if given.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(given.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )

    @app.get("/healthz")
    def healthz() -> Health:
        return Health(status="ok")

    @app.get("/models")
    def models() -> dict[str, Any]:
        return {"models": [about]}

    @app.get("/workers")
    def working() -> Workers:
        return Workers.model_validate(desk.state())

    @app.post("/cancel")
    def cancel(request: Cancel) -> Cancelled:
        """End a request by its id, within a token."""
        return Cancelled(cancelled=desk.cancel(request.id))

    @app.post("/answer")
    def answer(ask: Ask) -> Any:
        """An answer, whole."""
        name = ask.id or uuid.uuid4().hex
        told: list[tuple[str, dict[str, Any]]] = []
        found = _retrieve(ask, library)
        try:
            stop = desk.take(name)
        except Full:
            return _busy()
        try:
            desk.answer(_job(ask, found, ("refrag",)), stop, lambda event, data: told.append((event, data)))
        finally:
            desk.leave(name)
        event, data = told[-1]
        if event == "error":
            return error(500 if data["error"] == FAILED else 422, data["error"])
        return {**data["sides"].get("refrag", {}), "cancelled": event == "cancelled", "retrieved": _told(found)}

    @app.post("/chat", response_class=StreamingResponse, responses=_STREAM)
    async def chat(ask: Ask) -> Any:
        """Server-sent events: request_received, retrieved, assigned, plan, token …, citation …, metrics, done."""
        return await asyncio.to_thread(stream, ask, ("refrag",))

    @app.post("/compare", response_class=StreamingResponse, responses=_STREAM)
    async def compare(ask: Ask) -> Any:
        """The same events for the question as the budget says, then with everything as tokens; each has its side."""
        return await asyncio.to_thread(stream, ask, SIDES)

    def stream(ask: Ask, sides: Sequence[str]) -> Any:
        name = ask.id or uuid.uuid4().hex
        found = _retrieve(ask, library)
        try:
            stop = desk.take(name)
        except Full:
            return _busy()
        held = {"id": name, "docs": _told(found)}
        events = _Events(desk, name, _job(ask, found, sides), stop, held)
        return StreamingResponse(events.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        html = _page()
        example = generate(1, 1, docs=9)[0]
        docs = [] if library else [{"id": d.id, "title": d.title or "", "text": d.text} for d in example.docs]
        return page(html, {"QUESTION": "" if library else example.question, "DOCS": json.dumps(docs)})

    return app


def _page() -> str:
    """The page in one piece."""
    home = files("refrag.serving")
    html = home.joinpath("page.html").read_text(encoding="utf-8")
    for name in ("page.css", "page.js"):
        html = html.replace(f"/* {name} */", home.joinpath(name).read_text(encoding="utf-8"))
    return html


def _busy() -> Any:
    return error(429, "busy, try again", {"Retry-After": "1"})


def _retrieve(ask: Ask, library: Library | None) -> list[tuple[dict[str, Any], Found | None]]:
    """The documents of a request: its own, then what is found for it.

    Raises:
        UserError: if there are none.
    """
    own: list[tuple[dict[str, Any], Found | None]] = [(doc.model_dump(), None) for doc in ask.docs]
    wanted = ask.retrieve if ask.retrieve is not None else 0 if own else RETRIEVED
    if library is None:
        if not own:
            raise UserError("no documents, and this server has no library", "docs", "Give at least one document")
        return own
    taken = {doc.id for doc in ask.docs}
    for hit in library.search(ask.question, wanted):
        doc = hit.passage.doc
        if doc.id not in taken:
            own.append(({"id": doc.id, "text": doc.text, "title": doc.title}, hit))
    if not own:
        raise UserError("no passage has a word of this question", "question", "Ask in the documents' words")
    return own


def _told(found: Sequence[tuple[dict[str, Any], Found | None]]) -> list[dict[str, Any]]:
    """What the client is told of the documents: those of the library whole, its own by their ids."""
    return [
        {"id": doc["id"]}
        if hit is None
        else {**doc, "source": hit.passage.source, "start": hit.passage.start, "score": hit.score}
        for doc, hit in found
    ]


def _job(ask: Ask, found: Sequence[tuple[dict[str, Any], Found | None]], sides: Sequence[str]) -> Job:
    kept = {"question", "history", "expand", "exclude", "compression", "max_new_tokens"}
    budget = ask.budget.model_dump(exclude_none=True)
    return {**ask.model_dump(include=kept), "budget": budget, "docs": [doc for doc, _ in found], "sides": list(sides)}


class _Events:
    """The events of one request: a thread writes them, a stream reads them.

    Args:
        desk: which answers.
        name: of the request.
        job: what to answer.
        stop: set when the client leaves.
        held: what is told first.
    """

    def __init__(self, desk: Desk, name: str, job: Job, stop: threading.Event, held: dict[str, Any]) -> None:
        self.desk, self.name, self.job, self.stop, self.held = desk, name, job, stop, held

    async def stream(self) -> AsyncIterator[str]:
        """The text of the stream; comments keep it open while there is nothing to tell."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any] | None]()

        def put(item: tuple[str, Any] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, item)

        def work() -> None:
            try:
                self.desk.answer(self.job, self.stop, lambda event, data: put((event, data)))
            finally:
                self.desk.leave(self.name)
                put(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield _event("request_received", {"id": self.held["id"]})
            yield _event("retrieved", {"docs": self.held["docs"]})
            while True:
                try:
                    item = await asyncio.wait_for(events.get(), _KEEP_ALIVE_S)
                except TimeoutError:
                    yield ": waiting\n\n"
                    continue
                if item is None:
                    return
                yield _event(*item)
        finally:
            self.stop.set()  # the client may have left: the worker is free within a token


class _Guard:
    """Lets in who has the token, calls the server by its name, and is no page of a stranger's."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        fault = self._fault(scope["path"], Headers(scope=scope))
        if fault is None:
            await self.app(scope, receive, send)
        else:
            headers = {"WWW-Authenticate": "Bearer"} if fault[0] == 401 else {}
            await error(*fault, headers)(scope, receive, send)

    def _fault(self, path: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.access.hosts and name.strip("[]") not in self.access.hosts:
            return 403, f"this server is not called so; call it {self.access.hosts[0]}"
        origin = headers.get("origin")
        if origin and origin.partition("://")[2] != host and origin not in self.access.origins:
            return 403, "this page may not use the server (--allow-origin names those that may)"
        given = headers.get("authorization", "").removeprefix("Bearer ")
        token = self.access.token
        if token and path not in _OPEN and not hmac.compare_digest(given.encode(), token.encode()):
            return 401, "this server wants a bearer token"
        return None


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def serve(
    model: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    workers: int = 1,
    library: Library | None = None,
    cache: Path | None = None,
    token: str | None = None,
    origins: Collection[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        model: a folder that ``RefragGenerator.save_pretrained`` wrote.
        host: address to listen on.
        port: 0 takes a free one.
        workers: processes, each with the model.
        library: see ``create_app``.
        cache: a folder that keeps chunk vectors; by default they are kept as long as the server runs.
        token: see ``Access``.
        origins: see ``Access``.
        log: told the address when the server is ready.

    Raises:
        UserError: if the port is taken or the address is not this machine's.
        RunFailed: if a worker cannot load the model.
    """
    hosts = _LOOPBACK if host in _LOOPBACK else ()
    with tempfile.TemporaryDirectory(prefix="refrag-") as temporary:
        pool = [ProcessWorker(model, cache or Path(temporary)) for _ in range(workers)]
        try:
            serve_app(create_app(pool, library, Access(token, tuple(origins), hosts)), host, port, log)
        finally:
            for worker in pool:
                worker.close()
