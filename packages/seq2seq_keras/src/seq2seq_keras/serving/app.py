"""The HTTP API: one model, loaded once, behind four routes."""

from __future__ import annotations

import threading
from dataclasses import replace
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from latentlab_shared.api import add_errors, limit_bodies, page
from latentlab_shared.errors import UserError
from seq2seq_keras.inference import Summarizer, Summary
from seq2seq_keras.sample import demo

MAX_CHARACTERS = 20_000  # of one text; only its beginning is read anyway
MAX_TEXTS = 64
MAX_BODY_BYTES = 2 * 2**20
MAX_BEAM = 8


class SummarizeRequest(BaseModel):
    """One text, or several.

    Attributes:
        text: a text.
        texts: texts, instead of ``text``.
        beam: hypotheses kept, 1 is greedy; the model's own by default.
        attention: send what each word looked at.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(None, max_length=MAX_CHARACTERS)
    texts: list[str] | None = Field(None, min_length=1, max_length=MAX_TEXTS)
    beam: int | None = Field(None, ge=1, le=MAX_BEAM)
    attention: bool = False

    @field_validator("texts")
    @classmethod
    def _short_enough(cls, texts: list[str] | None) -> list[str] | None:
        for number, text in enumerate(texts or ()):
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"text {number} has more than {MAX_CHARACTERS} characters")
        return texts


def create_app(summarizer: Summarizer) -> FastAPI:
    """The application around a loaded model; it answers one request at a time.

    Args:
        summarizer: the model.
    """
    app = FastAPI(title="seq2seq-keras", docs_url=None, redoc_url=None, openapi_url=None)
    add_errors(app)
    limit_bodies(app, MAX_BODY_BYTES)
    html = files("seq2seq_keras.serving").joinpath("page.html").read_text(encoding="utf-8")
    lock = threading.Lock()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        model = summarizer.model
        return {"status": "ready", "parameters": model.count_params(), "pointer": model.settings.pointer}

    @app.post("/summarize")
    def summarize(request: SummarizeRequest) -> dict[str, Any]:
        if (request.text is None) == (request.texts is None):
            raise UserError("give either text or texts", "body")
        given = [request.text] if request.text is not None else request.texts or []
        own = replace(summarizer.settings.decode, n_best=1)
        with lock:
            found = summarizer.summarize(given, replace(own, beam=request.beam) if request.beam else own)
        records = [_record(summary, request.attention) for summary in found]
        return records[0] if request.text is not None else {"summaries": records}

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        return page(html, {"DEMO": demo().text})

    return app


def _record(summary: Summary, attention: bool) -> dict[str, Any]:
    record = summary.to_dict()
    return {**record, "attention": summary.attention.round(4).tolist()} if attention else record
