"""The HTTP API: one model, loaded once, behind its routes."""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from clara_absa.configs.schema import MAX_ASPECT_CHARACTERS
from clara_absa.inference import AspectSentiment
from clara_absa.sample.generator import demo
from latentlab_shared.api import add_errors, limit_bodies, page
from latentlab_shared.errors import UserError

MAX_CHARACTERS = 4000  # of one text
MAX_TEXTS = 64
MAX_ASPECTS = 64
MAX_BODY_BYTES = 2**20


class PredictRequest(BaseModel):
    """A question about one text.

    Attributes:
        text: what is asked about.
        aspects: terms or [start, end] spans; None lets the model look for them.
        abstain: no answer below this probability.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(max_length=MAX_CHARACTERS)
    aspects: list[Annotated[str, Field(max_length=MAX_ASPECT_CHARACTERS)] | list[int]] | None = Field(
        None, min_length=1, max_length=MAX_ASPECTS
    )
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
    add_errors(app)
    limit_bodies(app, MAX_BODY_BYTES)
    html = files("clara_absa.serving").joinpath("page.html").read_text(encoding="utf-8")
    lock = threading.Lock()
    memory = answerer.config.memory

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:  # answered by the event loop: it waits for no thread and no model
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        return {
            "status": "ready",
            "tokens": memory.tokens,
            "reader": memory.reader,
            "lists_aspects": answerer.lists_aspects,
            "model": answerer.identity[:16],
        }

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
            cut = answerer.is_cut(request.text)
        return {"text": request.text, "aspects": [result.to_dict() for result in found], "cut": cut}

    @app.post("/compress")
    def compress(request: CompressRequest) -> dict[str, Any]:
        for number, text in enumerate(request.texts):
            if len(text) > MAX_CHARACTERS:
                raise UserError(f"more than {MAX_CHARACTERS} characters", f"texts.{number}")
        with lock:
            memories = answerer.compress_batch(request.texts)
        return {
            "model": answerer.identity,
            "memories": [{"tokens": m.tokens, "cut": m.cut, "vectors": m.vectors.tolist()} for m in memories],
        }

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        return page(html, {"DEMO": demo().text, "ASPECTS": ", ".join(aspect.term for aspect in demo().aspects)})

    return app


def _asked(one: str | list[int]) -> str | tuple[int, int]:
    if isinstance(one, str):
        return one
    if len(one) != 2:
        raise UserError("a span is [start, end]", "aspects")
    return one[0], one[1]
