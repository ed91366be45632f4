"""What the routes take; everything else is a 422."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from latentlab_shared.errors import UserError
from nrms.inference.catalogue import to_ms

MAX_K = 1000
MAX_HISTORY = 1000
MAX_CANDIDATES = 10_000
MAX_ITEMS = 1000  # articles or events of one request


def _storable(text: str) -> str:
    # PostgreSQL stores no NUL, and no database stores half a surrogate pair.
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("holds a character that cannot be stored")
    return text


def _in_utc(moment: datetime) -> datetime:
    try:
        to_ms(moment)
    except UserError as error:
        raise ValueError(error.what) from None
    return moment


Id = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_storable)]
Title = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(_storable)]
Name = Annotated[str, StringConstraints(max_length=200), AfterValidator(_storable)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Options(_Body):
    """How to rank, in every request for a ranking.

    Attributes:
        k: how many.
        categories: only these.
        published_since: only articles published at or after it.
        exclude_read: leave out what was read.
        diversity: 0 for the best scores, up to 1 for the most different articles.
        explain: say which read articles each score came from.
        model_id: refuse to answer with another model.
    """

    k: int = Field(10, ge=0, le=MAX_K, strict=True)
    categories: list[Name] = Field(default_factory=list, max_length=100)
    published_since: Moment | None = None
    exclude_read: bool = True
    diversity: float = Field(0.0, ge=0, le=1)
    explain: bool = False
    model_id: str | None = Field(None, max_length=64)


class RecommendRequest(Options):
    """A reader and what to rank.

    Attributes:
        history: ids of the articles read, oldest first.
        history_titles: titles read after those.
        candidates: rank only these ids.
    """

    history: list[Id] = Field(default_factory=list, max_length=MAX_HISTORY)
    history_titles: list[Title] = Field(default_factory=list, max_length=MAX_HISTORY)
    candidates: list[Id] | None = Field(None, max_length=MAX_CANDIDATES)


class Article(_Body):
    """An article to add or change.

    Attributes:
        id: the source's own identifier.
        title: what is embedded.
        category: topic.
        subcategory: or "".
        abstract: or "".
        published: when.
        expires: when it is to vanish from answers; a moment that has passed withdraws it.
    """

    id: Id
    title: Annotated[Title, Field(min_length=1)]
    category: Name = ""
    subcategory: Name = ""
    abstract: Title = ""
    published: Moment | None = None
    expires: Moment | None = None


class ArticlesRequest(_Body):
    """Articles to add or change."""

    articles: list[Article] = Field(min_length=1, max_length=MAX_ITEMS)


class Event(_Body):
    """One read.

    Attributes:
        event_id: the sender's own; the same event sent again counts once.
        user: who.
        article: what.
        at: when; now by default.
    """

    event_id: Id
    user: Id
    article: Id
    at: Moment | None = None


class EventsRequest(_Body):
    """Reads to keep."""

    events: list[Event] = Field(min_length=1, max_length=MAX_ITEMS)
