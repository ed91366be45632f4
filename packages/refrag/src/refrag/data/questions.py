"""A question, the documents it is asked about, and what a right answer says and cites."""

from __future__ import annotations

from dataclasses import dataclass

from refrag.model.documents import Doc


@dataclass(frozen=True)
class QuestionExample:
    """One question.

    Attributes:
        question: in words.
        docs: what was retrieved, in its order.
        answer: what the decoder should write, with its citation.
        value: the part of the answer that was asked for.
        gold: id of the document that holds it.
        start: first character of the evidence in that document's text.
        end: the character after its last.
    """

    question: str
    docs: tuple[Doc, ...]
    answer: str
    value: str
    gold: str
    start: int
    end: int
