"""The HTTP API: answers streamed, whole, or beside those of the full context, from a few workers."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import tempfile
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
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
from latentlab_shared.devices import choose_device
from latentlab_shared.errors import UserError
from latentlab_shared.serving import serve_app
from refrag.inference.generator import RefragGenerator
from refrag.sample.facts import generate
from refrag.serving.desk import FAILED, Desk, Full
from refrag.serving.library import Found, Library
from refrag.serving.schemas import Ask, Cancel, Cancelled, Fault, Health, Ready, Workers
from refrag.serving.worker import SIDES, Job, ProcessWorker, Worker

MAX_BODY_BYTES = 4 * 2**20
MAX_WAITING = 63  # requests; one more is told to come again
RETRIEVED = 4  # passages, where a request names no documents
_KEEP_ALIVE_S = 15.0
_OPEN = ("/", "/healthz", "/readyz")  # without a token
_ORIGIN = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?")  # what browsers send: no path, no slash
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SAID = {
    401: "no bearer token, or a wrong one",
    403: "a page of another origin",
    413: "too large",
    422: "wrong",
    429: "busy",
    500: "the server failed",
    503: "the worker ended; ask again",
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

    def __post_init__(self) -> None:
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise UserError(f"{origin!r} is no origin", "--allow-origin", "For example: https://example.org:8443")


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

    # None of these waits in a pool of threads: a cancel comes through however many answers are under way.
    @app.get("/healthz")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get("/readyz")
    async def readyz() -> Ready:
        """The workers hold the model: they did before the server began to listen."""
        named = {key: about[key] for key in ("encoder", "decoder", "compression")}
        return Ready(status="ready", workers=len(workers), **named)

    @app.get("/models")
    async def models() -> dict[str, Any]:
        return {"models": [about]}

    @app.get("/workers")
    async def working() -> Workers:
        return Workers.model_validate(desk.state())

    @app.post("/cancel")
    async def cancel(request: Cancel) -> Cancelled:
        """End a request by its id, within a token."""
        return Cancelled(cancelled=desk.cancel(request.id))

    @app.post("/answer")
    async def answer(ask: Ask) -> Any:
        """An answer, whole."""
        events = await begin(ask, ("refrag",))
        if events is None:
            return _busy()
        last: tuple[str, dict[str, Any]] = ("error", {"error": FAILED})
        async for item in events.read():
            last = item or last
        name, told = last
        if name == "error":
            return error(503 if told.get("retry") else 500 if told["error"] == FAILED else 422, told["error"])
        return {**told["sides"].get("refrag", {}), "cancelled": name == "cancelled", "retrieved": events.docs}

    @app.post("/chat", response_class=StreamingResponse, responses=_STREAM)
    async def chat(ask: Ask) -> Any:
        """Server-sent events: request_received, retrieved, assigned, plan, token …, citation …, metrics, done."""
        return _streamed(await begin(ask, ("refrag",)))

    @app.post("/compare", response_class=StreamingResponse, responses=_STREAM)
    async def compare(ask: Ask) -> Any:
        """The same events for the question as the budget says, then with everything as tokens; each has its side."""
        return _streamed(await begin(ask, SIDES))

    async def begin(ask: Ask, sides: Sequence[str]) -> _Events | None:
        """The events of a request that has a place; None if there is none left."""
        found = await asyncio.to_thread(_retrieve, ask, library)
        name = ask.id or uuid.uuid4().hex
        try:
            stop = desk.take(name)
        except Full:
            return None
        return _Events(desk, name, _job(ask, found, sides), stop, _told(found))

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
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
    hits = library.search(ask.question, wanted)
    before = [turn.content for turn in ask.history if turn.role == "user"]
    if not hits and before:  # "and the other one?"
        hits = library.search(f"{before[-1]} {ask.question}", wanted)
    for hit in hits:
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
    """The events of one request, which a thread begins to write at once.

    Args:
        desk: which answers; the request's place there is given back when the answer ends, read or not.
        name: of the request.
        job: what to answer.
        stop: set when the client leaves.
        docs: what the client is told of the documents.
    """

    def __init__(self, desk: Desk, name: str, job: Job, stop: threading.Event, docs: Sequence[dict[str, Any]]) -> None:
        self.name, self.stop, self.docs = name, stop, docs
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()

        def put(item: tuple[str, Any] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, item)

        def work() -> None:
            try:
                desk.answer(job, stop, lambda event, data: put((event, data)))
            finally:
                desk.leave(name)
                put(None)

        threading.Thread(target=work, daemon=True).start()

    async def read(self) -> AsyncGenerator[tuple[str, Any] | None, None]:
        """Every event; None where there was nothing to tell for a while."""
        try:
            yield "request_received", {"id": self.name}
            yield "retrieved", {"docs": self.docs}
            while True:
                try:
                    item = await asyncio.wait_for(self._events.get(), _KEEP_ALIVE_S)
                except TimeoutError:
                    yield None
                    continue
                if item is None:
                    return
                yield item
        finally:
            self.stop.set()  # the client may have left: the worker is free within a token

    async def stream(self) -> AsyncIterator[str]:
        """The text of the stream; comments keep it open while there is nothing to tell."""
        async with aclosing(self.read()) as events:
            async for item in events:
                yield ": waiting\n\n" if item is None else _event(*item)


def _streamed(events: _Events | None) -> Any:
    if events is None:
        return _busy()
    return StreamingResponse(events.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


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
    backend: str = "torch",
    device: str = "auto",
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
        backend: "torch", or "vllm", which runs the decoder in this process.
        device: "auto" or a device.
        library: see ``create_app``.
        cache: a folder that keeps chunk vectors; by default they are kept as long as the server runs.
        token: see ``Access``.
        origins: see ``Access``.
        log: told the address when the server is ready.

    Raises:
        UserError: if the port is taken, the address is not this machine's, or an origin or the backend is unknown.
        NeedsExtra: if vLLM is not installed.
        RunFailed: if a worker cannot load the model.
    """
    hosts = _LOOPBACK if host in _LOOPBACK else ()
    access = Access(token, tuple(origins), hosts)
    with tempfile.TemporaryDirectory(prefix="refrag-") as temporary:
        pool = _workers(model, backend, workers, cache or Path(temporary), choose_device(device))
        try:
            serve_app(create_app(pool, library, access), host, port, log)
        finally:
            for worker in pool:
                worker.close()


def _workers(model: Path, backend: str, count: int, cache: Path, device: str) -> Sequence[Worker]:
    if backend == "torch":
        return [ProcessWorker(model, cache, device) for _ in range(count)]
    if backend != "vllm":
        raise UserError(f"{backend!r} is no backend", "backend", "Use torch or vllm")
    if count > 1:
        raise UserError("vLLM answers in one process", "workers", "Leave it at 1; vLLM batches by itself")
    from refrag.serving.vllm_worker import VllmWorker

    return [VllmWorker(RefragGenerator.from_pretrained(model, cache=cache, device=device), model / "decoder")]
