"""The HTTP API: one model, loaded once, behind its routes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from clara_absa.inference import AspectSentiment
from clara_absa.sample.generator import demo
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.serving import serve_app

MAX_CHARACTERS = 4000  # of one text
MAX_TEXTS = 64
MAX_ASPECTS = 64
MAX_BODY_BYTES = 2**20
# The page loads nothing from elsewhere and runs only its own script.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class PredictRequest(BaseModel):
    """A question about one text.

    Attributes:
        text: what is asked about.
        aspects: terms or [start, end] spans; None lets the model look for them.
        abstain: no answer below this probability.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(max_length=MAX_CHARACTERS)
    aspects: list[str | list[int]] | None = Field(None, min_length=1, max_length=MAX_ASPECTS)
    abstain: float = Field(0.0, ge=0, le=1)


class CompressRequest(BaseModel):
    """Texts to compress.

    Attributes:
        texts: the texts.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str] = Field(min_length=1, max_length=MAX_TEXTS)


def create_app(answerer: AspectSentiment) -> FastAPI:
    """The application around a loaded model.

    Args:
        answerer: answers all requests, one at a time.
    """
    app = FastAPI(title="clara-absa", docs_url=None, redoc_url=None, openapi_url=None)
    page = files("clara_absa.serving").joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("%%DEMO%%", _html(demo().text))
    page = page.replace("%%ASPECTS%%", _html(", ".join(aspect.term for aspect in demo().aspects)))
    lock = threading.Lock()
    memory = answerer.config.memory

    @app.middleware("http")
    async def limit_body(request: Request, call_next: Any) -> Any:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not (length.isdigit() and int(length) <= MAX_BODY_BYTES):
            return _error(413, f"the body must name its length, of at most {MAX_BODY_BYTES // 2**20} MiB")
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return _error(422, f"{where}: {first['msg']}")

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> JSONResponse:
        return _error(500 if isinstance(error, RunFailed) else 422, str(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "the model failed; its log says why")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        return {"status": "ready", "tokens": memory.tokens, "reader": memory.reader, "model": answerer.identity[:16]}

    @app.post("/predict")
    def predict(request: PredictRequest) -> dict[str, Any]:
        if not request.text.strip():
            raise UserError("the text is empty", "text")
        with lock:
            if request.aspects is None:
                found = answerer.extract(request.text, abstain=request.abstain)
            else:
                asked = [_asked(one) for one in request.aspects]
                found = answerer.predict(request.text, asked, abstain=request.abstain)
        return {"text": request.text, "aspects": [result.to_dict() for result in found]}

    @app.post("/compress")
    def compress(request: CompressRequest) -> dict[str, Any]:
        for number, text in enumerate(request.texts):
            if len(text) > MAX_CHARACTERS:
                raise UserError(f"more than {MAX_CHARACTERS} characters", f"texts.{number}")
        with lock:
            memories = answerer.compress_batch(request.texts)
        return {
            "model": answerer.identity,
            "memories": [{"tokens": m.tokens, "vectors": m.vectors.tolist()} for m in memories],
        }

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})

    return app


def _asked(one: str | list[int]) -> str | tuple[int, int]:
    if isinstance(one, str):
        return one
    if len(one) != 2:
        raise UserError("a span is [start, end]", "aspects")
    return one[0], one[1]


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split())}, status_code=status)


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def serve(
    answerer: AspectSentiment, host: str = "127.0.0.1", port: int = 8000, *, log: Callable[[str], None] = lambda _: None
) -> None:
    """Serve until Ctrl-C or SIGTERM; requests in hand are answered first.

    Args:
        answerer: the model.
        host: address to listen on.
        port: 0 takes a free one.
        log: told the address when the server is ready.

    Raises:
        UserError: if the port is taken or the address is not this machine's.
    """
    serve_app(create_app(answerer), host, port, log)
