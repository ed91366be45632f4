"""What a recommender says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

Fallback = Literal["popular", "recent"]


@dataclass(frozen=True)
class Reason:
    """One read article's part in a score.

    Attributes:
        id: of the read article; "" for a title that was given as text.
        title: of the read article.
        weight: the share of the user encoder's attention it has; all shares of a history sum to 1.
        contribution: its summand of the score; all summands of a history sum to the score.
    """

    id: str
    title: str
    weight: float
    contribution: float


@dataclass(frozen=True)
class Attention:
    """How much one read article weighs in the user vector.

    Attributes:
        id: of the read article; "" for a title that was given as text.
        title: of the read article.
        weight: its share; the shares of a history sum to 1.
    """

    id: str
    title: str
    weight: float


@dataclass(frozen=True)
class Item:
    """One recommended article.

    Attributes:
        id: of the article.
        title: of the article.
        category: or "".
        published: or None.
        score: dot product of user and article; None in a fallback.
        reasons: the read articles that weighed most, if asked for.
    """

    id: str
    title: str
    category: str
    published: datetime | None
    score: float | None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A ranking.

    Attributes:
        model_id: the model that all vectors of this answer are of.
        items: best first.
        fallback: "popular" or "recent" where there was no known history, else None.
        missing: ids of history and candidates that are not in the catalogue.
        attention: what was read, oldest first, each with its share of the user encoder's attention, if asked for.
    """

    model_id: str
    items: tuple[Item, ...]
    fallback: Fallback | None = None
    missing: tuple[str, ...] = ()
    attention: tuple[Attention, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; times in ISO 8601."""
        return {
            "model_id": self.model_id,
            "fallback": self.fallback,
            "items": [asdict(i) | {"published": i.published and i.published.isoformat()} for i in self.items],
            "missing": list(self.missing),
            "attention": [asdict(read) for read in self.attention],
        }
