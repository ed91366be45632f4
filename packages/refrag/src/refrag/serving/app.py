"""The HTTP API: one model, loaded once; answers whole, streamed, or beside those of the full context."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from latentlab_shared.api import add_errors, error, limit_bodies, page
from latentlab_shared.errors import UserError
from latentlab_shared.serving import serve_app
from refrag.inference.generator import Answer, RefragGenerator, greedy
from refrag.model.documents import Doc
from refrag.model.gate import Budget
from refrag.model.window import Window
from refrag.sample.facts import generate

MAX_DOCUMENTS = 64
MAX_CHARACTERS = 200_000  # of all documents together
MAX_QUESTION = 2_000
MAX_NEW_TOKENS = 512
MAX_WAITING = 16  # requests; one more is told to come again
MAX_BODY_BYTES = 4 * 2**20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Document(_Strict):
    """A document: what ``Doc`` is."""

    id: str = Field(max_length=100)
    text: str = Field(max_length=MAX_CHARACTERS)
    title: str | None = Field(None, max_length=1_000)


class Limit(_Strict):
    """What may be expanded: one of the three, as in ``Budget``."""

    fraction: float | None = None
    tokens: int | None = None
    threshold: float | None = None


class Cell(_Strict):
    """A chunk, by its document and its number in it."""

    doc: str = Field(max_length=100)
    chunk: int = Field(ge=0)


class Ask(_Strict):
    """A question about documents.

    Attributes:
        question: in words.
        docs: what was retrieved.
        budget: what may be expanded; a quarter of the chunks by default.
        expand: chunks to expand in any case.
        exclude: chunks to leave as vectors in any case.
        compression: k; the model's own by default.
        max_new_tokens: of the answer.
        id: names the request, for ``/cancel``.
    """

    question: str = Field(min_length=1, max_length=MAX_QUESTION)
    docs: list[Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    budget: Limit = Limit(fraction=0.25)
    expand: list[Cell] = Field([], max_length=1_000)
    exclude: list[Cell] = Field([], max_length=1_000)
    compression: int | None = Field(None, ge=1, le=256)
    max_new_tokens: int = Field(64, ge=1, le=MAX_NEW_TOKENS)
    id: str | None = Field(None, min_length=1, max_length=100)

    @model_validator(mode="after")
    def _short_enough(self) -> Ask:
        if sum(len(doc.text) for doc in self.docs) > MAX_CHARACTERS:
            raise ValueError(f"the documents have more than {MAX_CHARACTERS} characters together")
        return self


class Cancel(_Strict):
    """The request to stop."""

    id: str = Field(max_length=100)


class _Desk:
    """One model, one worker, and the requests it has in hand.

    Args:
        generator: answers one question at a time.
    """

    def __init__(self, generator: RefragGenerator) -> None:
        self.generator = generator
        self.lock, self.places = threading.Lock(), threading.BoundedSemaphore(1 + MAX_WAITING)
        self.stops: dict[str, threading.Event] = {}

    def answer(
        self, ask: Ask, stop: threading.Event, tell: Callable[[str, Any], None], budget: Budget | None = None
    ) -> tuple[Answer, dict[str, Any]]:
        """Answer, and say what it cost; ``tell`` gets events as they come."""
        docs = [Doc(d.id, d.text, d.title) for d in ask.docs]
        limit = budget or Budget(**ask.budget.model_dump(exclude_none=True))
        with self.lock:
            if stop.is_set():
                tell("cancelled", {})
            scores = None if budget is not None else self._scores(ask, docs)
            tell("assigned", {"worker": 0})
            began = time.perf_counter()
            first: list[float] = []

            def on_window(window: Window) -> None:
                tell("plan", {"slots": [asdict(slot) for slot in window.slots], "positions": len(window.embeddings)})

            def on_text(piece: str) -> None:
                first.append(time.perf_counter() - began)
                tell("token", {"text": piece})

            found = self.generator.answer(
                ask.question,
                docs,
                budget=limit,
                scores=scores,
                compression=ask.compression,
                generation=greedy(ask.max_new_tokens),
                on_window=on_window,
                on_text=on_text,
                stopped=stop.is_set,
            )
            seconds = time.perf_counter() - began
        config: Any = self.generator.model.decoder.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_position = 2 * config.num_hidden_layers * heads * width * 4
        return found, {
            "ttft_s": first[0] if first else None,
            "seconds": seconds,
            "new_tokens": found.new_tokens,
            "positions": found.window_length,
            "full_positions": found.full_length,
            "kv_bytes": per_position * found.window_length,
            "full_kv_bytes": per_position * found.full_length,
            "encoded_rows": found.encoded_rows,
        }

    def _scores(self, ask: Ask, docs: list[Doc]) -> list[float] | None:
        """The gate's scores with the chunks that were pinned or excluded moved to its ends; None if none were."""
        if not ask.expand and not ask.exclude:
            return None
        window = self.generator.window(ask.question, docs, budget=Budget(fraction=0.0), compression=ask.compression)
        pinned, excluded = ({(cell.doc, cell.chunk) for cell in cells} for cells in (ask.expand, ask.exclude))
        return [
            1e9 if (s.doc, s.chunk) in pinned else -1e9 if (s.doc, s.chunk) in excluded else float(s.score or 0.0)
            for s in window.slots
        ]


def create_app(generator: RefragGenerator, token: str | None = None) -> FastAPI:
    """The application around a loaded model.

    Args:
        generator: answers all requests, one at a time.
        token: if given, requests to the API must carry it as ``Authorization: Bearer``.
    """
    app = FastAPI(title="refrag", docs_url=None, redoc_url=None)
    add_errors(app)
    limit_bodies(app, MAX_BODY_BYTES)
    html = files("refrag.serving").joinpath("page.html").read_text(encoding="utf-8")
    desk = _Desk(generator)
    open_to_all = {"/", "/healthz"}

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and request.url.path not in open_to_all and not hmac.compare_digest(given.encode(), token.encode()):
            return error(401, "this server wants a bearer token")
        return await call_next(request)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/models")
    def models() -> dict[str, Any]:
        config = generator.model.config
        about = {"encoder": config.encoder_name_or_path, "decoder": config.decoder_name_or_path}
        return {"models": [{"id": "refrag", "compression": config.compression, **about}]}

    @app.get("/workers")
    def workers() -> dict[str, Any]:
        return {"workers": [{"id": 0, "busy": desk.lock.locked()}], "in_hand": len(desk.stops)}

    @app.post("/cancel")
    def cancel(request: Cancel) -> dict[str, bool]:
        stop = desk.stops.get(request.id)
        if stop is not None:
            stop.set()
        return {"cancelled": stop is not None}

    @app.post("/answer")
    def answer(ask: Ask) -> Any:
        if not desk.places.acquire(blocking=False):
            return error(429, "busy, try again", {"Retry-After": "1"})
        try:
            found, metrics = desk.answer(ask, threading.Event(), lambda name, data: None)
        finally:
            desk.places.release()
        return {**asdict(found), "metrics": metrics}

    @app.post("/compare")
    def compare(ask: Ask) -> Any:
        """The same question with everything expanded, and compressed."""
        if not desk.places.acquire(blocking=False):
            return error(429, "busy, try again", {"Retry-After": "1"})
        try:
            sides = {}
            for name, budget in (("full", Budget(fraction=1.0)), ("refrag", None)):
                found, metrics = desk.answer(ask, threading.Event(), lambda name, data: None, budget)
                sides[name] = {"text": found.text, "citations": [asdict(c) for c in found.citations], **metrics}
        finally:
            desk.places.release()
        return sides

    @app.post("/chat")
    async def chat(ask: Ask, request: Request) -> Any:
        """Server-sent events: assigned, request_received, retrieved, plan, token …, citation …, metrics, done."""
        name = ask.id or uuid.uuid4().hex
        if name in desk.stops:
            raise UserError("another request has this id", "id", "Choose another")
        if not desk.places.acquire(blocking=False):
            return error(429, "busy, try again", {"Retry-After": "1"})
        stop = desk.stops[name] = threading.Event()
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any] | None]()

        def tell(event: str, data: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (event, data))

        def work() -> None:
            try:
                found, metrics = desk.answer(ask, stop, tell)
                for citation in found.citations:
                    tell("citation", asdict(citation))
                tell("metrics", metrics)
                tell("cancelled" if stop.is_set() else "done", {"text": found.text})
            except UserError as fault:
                tell("error", {"error": str(fault)})
            except Exception:  # its own thread: nobody else would tell the client
                tell("error", {"error": "the server failed; its log says why"})
                raise
            finally:
                del desk.stops[name]
                desk.places.release()
                loop.call_soon_threadsafe(events.put_nowait, None)

        async def stream() -> AsyncIterator[str]:
            yield _event("request_received", {"id": name})
            yield _event("retrieved", {"docs": [doc.id for doc in ask.docs]})
            try:
                while (event := await events.get()) is not None:
                    yield _event(*event)
            finally:
                stop.set()  # the client may have left: the worker is free within a token

        threading.Thread(target=work, daemon=True).start()
        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        example = generate(1, 1)[0]
        docs = [{"id": doc.id, "title": doc.title or "", "text": doc.text} for doc in example.docs]
        return page(html, {"QUESTION": example.question, "DOCS": json.dumps(docs)})

    return app


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def serve(
    generator: RefragGenerator,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    token: str | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        generator: the model.
        host: address to listen on.
        port: 0 takes a free one.
        token: see ``create_app``.
        log: told the address when the server is ready.

    Raises:
        UserError: if the port is taken or the address is not this machine's.
    """
    serve_app(create_app(generator, token), host, port, log)
