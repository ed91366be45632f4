"""What walks through the system: examples with aspects on one side, answers on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, get_args

from latentlab_shared.errors import UserError

Polarity = Literal["positive", "negative", "neutral"]
POLARITIES: tuple[Polarity, ...] = get_args(Polarity)


class Task(StrEnum):
    """What the decoder is asked; the values are the seed's names."""

    RECONSTRUCTION = "rec"
    EXTRACTION = "ext"
    REASONING = "reason"


PROMPTS = {
    Task.RECONSTRUCTION: "Restore text:",
    Task.EXTRACTION: "List all aspects:",
    Task.REASONING: "Sentiment of {aspect}?",
}
"""The seed's prompts."""

MAX_ASPECT_CHARACTERS = 200
"""Of one aspect: attention grows with the square of a question's length."""


def ensure_characters(text: str, where: object) -> None:
    """Refuse half a surrogate pair, which no tokenizer takes and no file can hold.

    Raises:
        UserError: with the place of the first one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"half a character (a lone surrogate) at {error.start}", where, "Give UTF-8 text") from None


@dataclass(frozen=True)
class Aspect:
    """Something a sentence speaks about.

    Attributes:
        term: the aspect term as it stands in the text, or a category.
        polarity: how the sentence speaks of it; None where it is asked.
        start: index of its first character in the text, unstripped; None for a category.
        end: index after its last character; None for a category.
    """

    term: str
    polarity: Polarity | None = None
    start: int | None = None
    end: int | None = None

    def ensure_in(self, text: str) -> None:
        """Refuse an empty term, and a span that is not the term's place in a text.

        Raises:
            ValueError: saying which.
        """
        if not self.term.strip():
            raise ValueError("an aspect is empty")
        if self.start is None and self.end is None:
            return
        if self.start is None or self.end is None:
            raise ValueError(f"aspect {self.term!r} has half a span")
        if not 0 <= self.start < self.end <= len(text):  # a slice takes anything
            raise ValueError(f"({self.start}, {self.end}) is no span of a text of {len(text)} characters")
        if (stands := text[self.start : self.end]) != self.term:
            raise ValueError(f"characters {self.start} to {self.end} of the text are {stands!r}, not {self.term!r}")

    @property
    def is_category(self) -> bool:
        """Whether it has no place in the text."""
        return self.start is None


@dataclass(frozen=True)
class Example:
    """One sentence with its aspects: encoded once, however many are asked.

    Attributes:
        id: of the sentence: the file's own id, or ``file:number``.
        text: exactly as in the file; spans count its characters.
        aspects: in the file's order.
    """

    id: str
    text: str
    aspects: tuple[Aspect, ...]

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("the text is empty")
        for aspect in self.aspects:
            aspect.ensure_in(self.text)


@dataclass(frozen=True)
class AspectSentimentResult:
    """The answer about one aspect.

    Attributes:
        aspect: what was asked, or found.
        polarity: the answer; None when no answer reaches the abstain threshold.
        confidence: probability of the likeliest answer.
        probabilities: of the three answers; they sum to 1.
        cut: whether the text was longer than the model reads, so that the answer is about its beginning only.
    """

    aspect: Aspect
    polarity: Polarity | None
    confidence: float
    probabilities: Mapping[str, float]
    cut: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "aspect": self.aspect.term,
            "start": self.aspect.start,
            "end": self.aspect.end,
            "polarity": self.polarity,
            "confidence": self.confidence,
            "probabilities": dict(self.probabilities),
            "cut": self.cut,
        }
