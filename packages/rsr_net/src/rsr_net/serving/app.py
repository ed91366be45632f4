"""The HTTP API: one model, loaded once, behind four routes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException

from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.serving import serve_app
from rsr_net.data import Example
from rsr_net.data.stories import make_example
from rsr_net.inference import Summarizer
from rsr_net.inference.summary import Mode
from rsr_net.sample import demo

# Of one request, all its texts together: some seconds of work at most.
MAX_CHARACTERS = 100_000
MAX_SENTENCES = 1_000
MAX_TEXTS = 32
MAX_WAITING = 16  # requests; one more is told to come again
MAX_BODY_BYTES = 4 * 2**20
# The page loads nothing from elsewhere and runs only its own script.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class SummarizeRequest(BaseModel):
    """One article, or several.

    Attributes:
        text: an article.
        texts: articles, instead of ``text``.
        mode: how the words are found.
        max_sentences: at most so many sentences are picked.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(None, max_length=MAX_CHARACTERS)
    texts: list[str] | None = Field(None, min_length=1, max_length=MAX_TEXTS)
    mode: Mode = "extract"
    max_sentences: int = Field(3, ge=1, le=8)

    @field_validator("texts")
    @classmethod
    def _short_enough(cls, texts: list[str] | None) -> list[str] | None:
        if sum(map(len, texts or ())) > MAX_CHARACTERS:
            raise ValueError(f"together they have more than {MAX_CHARACTERS} characters")
        return texts


def create_app(summarizer: Summarizer) -> FastAPI:
    """The application around a loaded model.

    Args:
        summarizer: answers all requests, one at a time: the encoders are not made for several threads.
    """
    app = FastAPI(title="rsr-net", docs_url=None, redoc_url=None, openapi_url=None)
    page = files("rsr_net.serving").joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("%%DEMO%%", _html(demo().article))
    lock, places = threading.Lock(), threading.BoundedSemaphore(1 + MAX_WAITING)

    @app.middleware("http")
    async def limit_body(request: Request, call_next: Any) -> Any:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not (length.isdigit() and int(length) <= MAX_BODY_BYTES):
            return _error(413, f"the body must name its length, of at most {MAX_BODY_BYTES // 2**20} MiB")
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _error(422, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return _error(422, f"{where}: {str(first['msg']).removeprefix('Value error, ')}")

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> JSONResponse:
        return _error(500 if isinstance(error, RunFailed) else 422, str(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "the summarizer failed; its log says why")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        return {
            "status": "ready",
            "encoder": summarizer.encoder_name,
            "trained_on": summarizer.trained_on,
            "modes": summarizer.modes,
        }

    @app.post("/summarize")
    def summarize(request: SummarizeRequest) -> Any:
        if (request.text is None) == (request.texts is None):
            raise UserError("give either text or texts", "body")
        if not places.acquire(blocking=False):
            return _error(503, "busy, try again", {"Retry-After": "1"})
        try:
            examples = _examples(request)
            with lock:
                found = summarizer.summarize_examples(examples, request.mode, request.max_sentences)
        finally:
            places.release()
        records = [summary.to_dict() for summary in found]
        return records[0] if request.text is not None else {"summaries": records}

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})

    return app


def _examples(request: SummarizeRequest) -> list[Example]:
    """The articles of a request, split into sentences; a ``UserError`` for too many of those."""
    if request.text is not None:
        examples = [make_example("text", request.text, [], "text")]
    else:
        examples = [make_example(str(n), text, [], f"text {n}") for n, text in enumerate(request.texts or ())]
    sentences = sum(len(example.sentences) for example in examples)
    if sentences > MAX_SENTENCES:
        raise UserError(f"{sentences} sentences, more than {MAX_SENTENCES}", "body", "Summarize it in parts")
    return examples


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split())}, status_code=status, headers=headers)


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def serve(
    summarizer: Summarizer, host: str = "127.0.0.1", port: int = 8000, *, log: Callable[[str], None] = lambda _: None
) -> None:
    """Serve until Ctrl-C or SIGTERM; requests in hand are answered first.

    Args:
        summarizer: the model.
        host: address to listen on.
        port: 0 takes a free one.
        log: told the address when the server is ready.

    Raises:
        UserError: if the port is taken or the address is not this machine's.
    """
    serve_app(create_app(summarizer), host, port, log)
