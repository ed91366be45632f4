"""Logs of other papers (Adressa, EB-NeRD, your own) through two tab-separated files with a header row.

``articles.tsv``: ``id`` and ``title``; ``category``, ``subcategory`` and ``abstract`` may follow.

``events.tsv``: ``user``, ``time`` and ``article``; ``clicked`` (1 or 0) and ``impression`` may follow. Times are
ISO 8601, or seconds since 1970.

- With ``impression`` (EB-NeRD), the rows of one value are one list shown to one user.
- Without it (Adressa, which has clicks only), each click is an impression beside articles that others clicked within a
  day before it and this user never did, drawn with a seed.

The history of an impression is what its user clicked before it. The last fifth of the impressions is the dev part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from latentlab_shared.errors import UserError
from nrms.data.rows import BadRows, read_lines
from nrms.data.types import Impression, News

_ARTICLE_COLUMNS = {"id": True, "title": True, "category": False, "subcategory": False, "abstract": False}
_EVENT_COLUMNS = {"user": True, "time": True, "article": True, "clicked": False, "impression": False}
_DAY = timedelta(days=1)
_NEGATIVES = 20  # of an impression that is made from a click
_DEV_SHARE = 0.2


@dataclass(frozen=True)
class _Event:
    time: datetime
    user: str
    article: str
    clicked: int
    impression: str


def read_events_folder(folder: Path, bad: BadRows, seed: int) -> list[tuple[str, list[News], list[Impression]]]:
    """Train and dev parts of a folder with ``articles.tsv`` and ``events.tsv``.

    Raises:
        UserError: for missing columns, and for a bad row, by file and line, unless ``bad`` skips it.
    """
    news = [article for _, article in _articles(folder / "articles.tsv", bad)]
    events = sorted(_events(folder / "events.tsv", bad), key=lambda e: e.time)
    impressions = _impressions(events, seed)
    if len(impressions) < 2:
        raise UserError("holds fewer than two impressions", folder / "events.tsv")
    cut = max(1, int(len(impressions) * (1 - _DEV_SHARE)))
    return [("train", news, impressions[:cut]), ("dev", news, impressions[cut:])]


def _table(path: Path, columns: dict[str, bool], bad: BadRows) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a file with a header as (file:line, values)."""
    header: list[str] | None = None
    for number, line in read_lines(path, bad):
        cells = [cell.strip() for cell in line.split("\t")]
        where = f"{path}:{number}"
        if header is None:
            header = [cell.lower() for cell in cells]
            missing = [name for name, needed in columns.items() if needed and name not in header]
            if missing:
                fix = f"The header names the columns: {', '.join(columns)}"
                raise UserError(f"has no column {', '.join(missing)}", where, fix)
            continue
        try:
            if len(cells) != len(header):
                raise UserError(f"has {len(cells)} columns instead of {len(header)}", where)
            row = dict(zip(header, cells, strict=True))
            empty = next((n for n, needed in columns.items() if needed and not row[n] and n != "title"), None)
            if empty:
                raise UserError(f"{empty} is empty", where)
        except UserError as error:
            bad.report(error)
            continue
        yield where, row


def _articles(path: Path, bad: BadRows) -> Iterator[tuple[str, News]]:
    seen: dict[str, str] = {}
    for where, row in _table(path, _ARTICLE_COLUMNS, bad):
        try:
            name = _name(row["id"], where)
            if seen.setdefault(name, row["title"]) != row["title"]:
                raise UserError(f"{name} was listed before with another title", where, "Keep one row per article")
        except UserError as error:
            bad.report(error)
            continue
        topic, subtopic, abstract = (row.get(key, "") for key in ("category", "subcategory", "abstract"))
        yield where, News(name, row["title"], topic, subtopic, abstract)


def _events(path: Path, bad: BadRows) -> Iterator[_Event]:
    for where, row in _table(path, _EVENT_COLUMNS, bad):
        try:
            clicked = row.get("clicked", "1")
            if clicked not in ("0", "1"):
                raise UserError(f"clicked is {clicked!r}, not 0 or 1", where)
            time = _time(row["time"], where)
            yield _Event(time, row["user"], _name(row["article"], where), int(clicked), row.get("impression", ""))
        except UserError as error:
            bad.report(error)


def _name(text: str, where: str) -> str:
    # MIND's form has ids in lists with blanks between them and -0 or -1 behind them.
    if "-" in text or text.split() != [text]:
        raise UserError(f"the article id {text!r} has a blank or a hyphen", where, "Rename such ids in both files")
    return text


def _time(text: str, where: str) -> datetime:
    try:
        time = datetime.fromtimestamp(float(text), UTC) if text.replace(".", "", 1).isdigit() else None
        time = datetime.fromisoformat(text) if time is None else time
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        if not 1970 <= time.year <= 2200:
            raise ValueError(text)
    except (ValueError, OverflowError, OSError):
        fix = "Write it as 2026-01-31T12:00:00, or seconds since 1970"
        raise UserError(f"{text!r} is no time", where, fix) from None
    return time


def _impressions(events: list[_Event], seed: int) -> list[Impression]:
    shown: dict[tuple[str, str], list[_Event]] = {}
    order: list[tuple[_Event, list[_Event]]] = []  # first event, all events
    for event in events:
        if not event.impression:
            order.append((event, [event]))
            continue
        group = shown.get((event.user, event.impression))
        if group is None:
            group = shown[event.user, event.impression] = []
            order.append((event, group))
        group.append(event)
    clicks_of: dict[str, list[tuple[datetime, str]]] = {}
    for event in events:
        if event.clicked:
            clicks_of.setdefault(event.user, []).append((event.time, event.article))
    clicks = [event for event in events if event.clicked]
    times = [event.time for event in clicks]
    result: list[Impression] = []
    for first, group in order:
        own = clicks_of.get(first.user, [])
        history = tuple(article for time, article in own if time < first.time)
        if first.impression:
            labels: dict[str, int] = {}
            for event in group:
                labels[event.article] = max(event.clicked, labels.get(event.article, 0))
        elif first.clicked:
            read = {article for _, article in own}
            low, high = bisect_left(times, first.time - _DAY), bisect_left(times, first.time)
            pool = list(dict.fromkeys(e.article for e in clicks[low:high] if e.article not in read))
            rng = np.random.default_rng((seed, len(result)))
            drawn = [pool[i] for i in rng.permutation(len(pool))[:_NEGATIVES]]
            names = [first.article, *drawn]
            labels = {names[i]: int(i == 0) for i in rng.permutation(len(names))}
        else:
            continue
        number = str(len(result) + 1)
        result.append(Impression(number, first.user, first.time, history, tuple(labels), tuple(labels.values())))
    return result
