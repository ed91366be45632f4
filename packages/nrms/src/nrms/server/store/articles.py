"""Articles and the reads of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from nrms.data.types import News
from nrms.inference.catalogue import to_ms, to_time
from nrms.server.store.database import Database, now_ms
from nrms.server.store.schema import articles, counters, interactions

_CHUNK = 500  # SQLite's older limit of variables in a statement is 999


@dataclass(frozen=True)
class Added:
    """What became of the articles that were given.

    Attributes:
        inserted: new ones.
        updated: known ones of which something changed.
        unchanged: known ones.
    """

    inserted: int
    updated: int
    unchanged: int


@dataclass(frozen=True)
class Read:
    """One read of one article by one user.

    Attributes:
        event_id: the sender's own identifier; the same event sent again counts once.
        user: the user's identifier.
        article: the article's identifier.
        at: when, in milliseconds since 1970.
    """

    event_id: str
    user: str
    article: str
    at: int


def insert(database: Database, table: sa.Table) -> Any:
    """An INSERT that knows ON CONFLICT."""
    return postgresql.insert(table) if database.is_postgres else sqlite.insert(table)


def next_revision(connection: Connection) -> int:
    """Take the next revision, and hold the counter until the transaction ends."""
    counter = sa.update(counters).where(counters.c.name == "revision")
    connection.execute(counter.values(value=counters.c.value + 1))
    return int(connection.execute(sa.select(counters.c.value).where(counters.c.name == "revision")).scalar_one())


def live(now: int) -> sa.ColumnElement[bool]:
    """True for articles that have not expired."""
    return sa.or_(articles.c.expires_at.is_(None), articles.c.expires_at > now)


class Articles:
    """The articles of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, news: Iterable[News], expires: dict[str, datetime | None] | None = None) -> Added:
        """Insert new articles and change known ones; of an id given twice the last counts.

        Args:
            news: the articles.
            expires: article id → when it is to vanish from answers; a moment that has passed withdraws it.

        Raises:
            UserError: for a time that in UTC lies outside the years 1 to 9999.
        """
        given = {item.id: item for item in news}
        inserted = updated = 0
        for ids in _chunks(list(given)):
            rows = {id: _row(given[id], (expires or {}).get(id)) for id in ids}
            # Another process may insert one of the ids between our look and our insert; then we look again.
            while (counts := self._database.retry(lambda rows=rows: self._add_chunk(rows))) is None:  # type: ignore[misc]
                pass
            inserted, updated = inserted + counts[0], updated + counts[1]
        return Added(inserted, updated, len(given) - inserted - updated)

    def _add_chunk(self, rows: dict[str, dict[str, Any]]) -> tuple[int, int] | None:
        with self._database.write() as connection:
            # Rows first, the counter second: the order in which embedding workers lock them, so no deadlock.
            known = sa.select(articles).where(articles.c.id.in_(rows)).order_by(articles.c.number)
            held = {row["id"]: row for row in connection.execute(known.with_for_update(key_share=True)).mappings()}
            fresh = [row for id, row in rows.items() if id not in held]
            changed = [
                {"b_id": id, **row, "version": held[id]["version"] + _other_text(row, held[id])}
                for id, row in rows.items()
                if id in held and any(row[key] != held[id][key] for key in row)
            ]
            if not fresh and not changed:
                return 0, 0
            revision = next_revision(connection)
            if changed:
                change = sa.update(articles).where(articles.c.id == sa.bindparam("b_id"))
                values: dict[str, Any] = {key: sa.bindparam(key) for key in changed[0] if key != "b_id"} | {
                    "revision": revision
                }
                connection.execute(change.values(values), changed)
            if fresh:
                made = insert(self._database, articles).on_conflict_do_nothing().returning(articles.c.id)
                done = connection.execute(made, [{**row, "version": 1, "revision": revision} for row in fresh])
                if len(done.all()) < len(fresh):
                    connection.rollback()
                    return None
            return len(fresh), len(changed)

    def count(self) -> int:
        """How many articles have not expired."""
        with self._database.read() as connection:
            return int(
                connection.execute(sa.select(sa.func.count()).select_from(articles).where(live(now_ms()))).scalar_one()
            )

    def get(self, ids: Sequence[str]) -> dict[str, News]:
        """The articles of these ids, as far as they are known."""
        found = {}
        with self._database.read() as connection:
            for chunk in _chunks(list(dict.fromkeys(ids))):
                for row in connection.execute(sa.select(articles).where(articles.c.id.in_(chunk))).mappings():
                    found[row["id"]] = as_news(row)
        return found

    def search(self, words: str = "", category: str = "", limit: int = 50) -> list[News]:
        """The newest live articles whose title holds every word, of one category if one is given."""
        wanted = sa.select(articles).where(live(now_ms()))
        if category:
            wanted = wanted.where(articles.c.category == category)
        for word in words.split()[:8]:
            wanted = wanted.where(sa.func.lower(articles.c.title).contains(word.lower(), autoescape=True))
        newest = sa.func.coalesce(articles.c.published_at, 0).desc()
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(newest, articles.c.number).limit(limit)).mappings()
            return [as_news(row) for row in rows]

    def categories(self) -> list[str]:
        """The categories of live articles, most frequent first."""
        count = sa.func.count().label("count")
        wanted = sa.select(articles.c.category, count).where(live(now_ms()), articles.c.category != "")
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(wanted.group_by(articles.c.category).order_by(count.desc()))]


class Events:
    """The reads of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, reads: Sequence[Read]) -> int:
        """Keep reads; when this returns, they are committed.

        Returns:
            How many were new; the others were known by their event id.
        """
        if not reads:
            return 0
        rows = [{"event_id": r.event_id, "user_id": r.user, "article_id": r.article, "at": r.at} for r in reads]
        statement = insert(self._database, interactions).on_conflict_do_nothing().returning(interactions.c.event_id)

        def work() -> int:
            with self._database.write() as connection:
                return len(connection.execute(statement, rows).all())

        return self._database.retry(work)

    def history(self, user: str, limit: int = 50_000) -> list[str]:
        """Ids of the articles the user read last, oldest first; an article read twice stands at its last read.

        Args:
            user: the user's identifier.
            limit: different articles, at most.
        """
        newest = interactions.c.at.desc(), interactions.c.event_id.desc()
        place = sa.func.row_number().over(partition_by=interactions.c.article_id, order_by=newest).label("place")
        reads = sa.select(interactions, place).where(interactions.c.user_id == user).subquery()
        wanted = sa.select(reads.c.article_id).where(reads.c.place == 1)
        wanted = wanted.order_by(reads.c.at.desc(), reads.c.event_id.desc()).limit(limit)
        with self._database.read() as connection:
            return list(connection.execute(wanted).scalars())[::-1]

    def popular(self, since: int, limit: int = 1000) -> list[str]:
        """Ids of the articles read by most users since a time, most read first."""
        readers = sa.func.count(sa.distinct(interactions.c.user_id)).label("readers")
        wanted = sa.select(interactions.c.article_id, readers).where(interactions.c.at >= since)
        wanted = wanted.group_by(interactions.c.article_id).order_by(readers.desc(), interactions.c.article_id)
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(wanted.limit(limit))]

    def count(self) -> int:
        """How many reads are kept."""
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(interactions)).scalar_one())


def as_news(row: Any) -> News:
    """A row of the table as the type of the data room."""
    published = to_time(row["published_at"])
    return News(row["id"], row["title"], row["category"], row["subcategory"], row["abstract"], published)


def _row(news: News, expires: datetime | None) -> dict[str, Any]:
    return {
        "id": news.id,
        "title": news.title,
        "category": news.category,
        "subcategory": news.subcategory,
        "abstract": news.abstract,
        "published_at": to_ms(news.published),
        "expires_at": to_ms(expires),
    }


def _other_text(row: dict[str, Any], held: Any) -> int:
    """1 if something that an encoder may read has changed, else 0."""
    return int(any(row[key] != held[key] for key in ("title", "category", "subcategory", "abstract")))


def _chunks(items: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
