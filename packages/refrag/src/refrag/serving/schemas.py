"""What the API takes and gives."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_DOCUMENTS = 64
MAX_CHARACTERS = 200_000  # of all documents together
MAX_QUESTION = 2_000
MAX_NEW_TOKENS = 512
MAX_TURNS = 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Document(_Strict):
    """A document: what ``Doc`` is."""

    id: str = Field(max_length=100)
    text: str = Field(max_length=MAX_CHARACTERS)
    title: str | None = Field(None, max_length=1_000)


class Limit(_Strict):
    """What may be expanded: one of the three, as in ``Budget``."""

    fraction: float | None = Field(None, ge=0, le=1)
    tokens: int | None = Field(None, ge=0, le=1_000_000)
    threshold: float | None = Field(None, ge=0, le=1)


class Cell(_Strict):
    """A chunk, by its document and its number in it."""

    doc: str = Field(max_length=100)
    chunk: int = Field(ge=0, le=1_000_000)


class Turn(_Strict):
    """An earlier message of the conversation."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=20_000)


class Ask(_Strict):
    """A question about documents.

    Attributes:
        question: in words.
        docs: to answer from; more are found in the server's library.
        retrieve: passages to find there; 4 by default where no documents are given.
        history: earlier messages, oldest first.
        budget: what may be expanded; a quarter of the chunks by default.
        expand: chunks to expand in any case.
        exclude: chunks to leave as vectors in any case.
        compression: k; the model's own by default.
        max_new_tokens: of the answer.
        id: names the request, for ``/cancel``.
    """

    question: str = Field(min_length=1, max_length=MAX_QUESTION)
    docs: list[Document] = Field([], max_length=MAX_DOCUMENTS)
    retrieve: int | None = Field(None, ge=0, le=MAX_DOCUMENTS)
    history: list[Turn] = Field([], max_length=MAX_TURNS)
    budget: Limit = Limit(fraction=0.25, tokens=None, threshold=None)
    expand: list[Cell] = Field([], max_length=1_000)
    exclude: list[Cell] = Field([], max_length=1_000)
    compression: int | None = Field(None, ge=1, le=256)
    max_new_tokens: int = Field(64, ge=1, le=MAX_NEW_TOKENS)
    id: str | None = Field(None, min_length=1, max_length=100)

    @field_validator("question")
    @classmethod
    def _asks(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("is empty")
        return question

    @model_validator(mode="after")
    def _short_enough(self) -> Ask:
        if sum(len(doc.text) for doc in self.docs) > MAX_CHARACTERS:
            raise ValueError(f"the documents have more than {MAX_CHARACTERS} characters together")
        return self


class Cancel(_Strict):
    """The request to stop."""

    id: str = Field(max_length=100)


class Cancelled(BaseModel):
    """Whether there was such a request."""

    cancelled: bool


class Fault(BaseModel):
    """Every error: one line."""

    error: str


class Health(BaseModel):
    """The server lives."""

    status: Literal["ok"]


class Ready(BaseModel):
    """The workers hold the model."""

    status: Literal["ready"]
    encoder: str
    decoder: str
    compression: int
    workers: int


class WorkerState(BaseModel):
    """A worker: whether it answers, and how often it had to be started again."""

    id: int
    busy: bool
    restarts: int


class Workers(BaseModel):
    """All workers, and the requests that are answered or wait."""

    workers: list[WorkerState]
    in_hand: int
    places: int
