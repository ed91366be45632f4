"""The HTTP API: one model, loaded once, behind four routes."""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from latentlab_shared.api import add_errors, error, limit_bodies, page
from latentlab_shared.errors import UserError
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
    add_errors(app)
    limit_bodies(app, MAX_BODY_BYTES)
    html = files("rsr_net.serving").joinpath("page.html").read_text(encoding="utf-8")
    lock, places = threading.Lock(), threading.BoundedSemaphore(1 + MAX_WAITING)

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
            return error(503, "busy, try again", {"Retry-After": "1"})
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
        return page(html, {"DEMO": demo().article})

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
