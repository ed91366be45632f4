"""What a summarizer answers: words, and the trace of how it got there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Mode = Literal["extract", "retrieve", "generate"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class Read:
    """A sentence that a step read.

    Attributes:
        index: its place in the article, from 0.
        sentence: its words.
        weight: its share of the step's attention.
    """

    index: int
    sentence: str
    weight: float


@dataclass(frozen=True)
class Step:
    """One refinement step.

    Attributes:
        number: from 1.
        residual: how far the state moved, relative to its length.
        reads: the sentences that moved it most, strongest first.
    """

    number: int
    residual: float
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class Neighbour:
    """A known summary near the refined state.

    Attributes:
        id: of its article.
        text: the summary.
        similarity: cosine with the state.
    """

    id: str
    text: str
    similarity: float


@dataclass(frozen=True)
class Summary:
    """The summary of one article.

    Attributes:
        text: the summary.
        mode: how the words were found.
        confidence: calibrated probability that the refined state is nearer to the article's true summary than is
            typical; None in the mode "retrieve", whose words are another article's (see ``neighbours``).
        sentences: the article's sentences.
        indices: the places of the picked ones, rising; empty unless the mode is "extract".
        steps: the refinement, step by step.
        neighbours: the nearest known summaries; mode "retrieve" only.
        faithfulness: cosine of the generated words, embedded again, with the state; mode "generate" only.
        warning: why the text should not be trusted, or "".
    """

    text: str
    mode: Mode
    confidence: float | None
    sentences: tuple[str, ...]
    indices: tuple[int, ...]
    steps: tuple[Step, ...]
    neighbours: tuple[Neighbour, ...] = ()
    faithfulness: float | None = None
    warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)
