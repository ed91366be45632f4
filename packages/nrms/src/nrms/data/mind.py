"""MIND's two files: ``news.tsv`` and ``behaviors.tsv``, streamed row by row, every bad row named.

The files are plain tab-separated text, not quoted CSV: titles hold stray quotation marks, which are kept.

Source: the format's description at msnews.github.io; Wu et al. 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from latentlab_shared.errors import UserError
from nrms.data.rows import BadRows, read_lines
from nrms.data.types import Impression, News

NEWS_FILE, BEHAVIORS_FILE = "news.tsv", "behaviors.tsv"


def read_news(path: Path, bad: BadRows | None = None) -> Iterator[News]:
    """Stream a catalogue; an article listed twice with the same title is given once.

    Rows have 8 columns: id, category, subcategory, title, abstract, url, title entities, abstract entities. The last
    three are not read and may be missing.

    Raises:
        UserError: for a bad row, by file and line, unless ``bad`` skips it.
    """
    bad = BadRows() if bad is None else bad
    seen: dict[str, int] = {}
    for number, line in read_lines(path, bad):
        where = f"{path}:{number}"
        try:
            news = _news(line, where)
            # Hashes instead of titles: half a gigabyte less for a catalogue of millions.
            if news.id in seen:
                if seen[news.id] != hash(news.title):
                    fix = "Keep one row per article"
                    raise UserError(f"{news.id} was listed before with another title", where, fix)
                bad.notes["articles listed twice"] += 1
                continue
        except UserError as error:
            bad.report(error)
            continue
        seen[news.id] = hash(news.title)
        if not news.title:
            bad.notes["articles without a title"] += 1
        yield news


def _news(line: str, where: str) -> News:
    columns = line.split("\t")
    if not 5 <= len(columns) <= 8:
        fix = "Columns are id, category, subcategory, title, abstract, url and two of entities"
        if line.count(",") >= 4 and "\t" not in line:
            fix = "The file seems to be comma-separated; MIND's is tab-separated"
        raise UserError(f"has {len(columns)} columns instead of 8", where, fix)
    identifier, category, subcategory, title, abstract = (" ".join(c.split()) for c in columns[:5])
    if not identifier or " " in identifier:
        raise UserError(f"{columns[0]!r} is no article id", where, "Ids are words without blanks, such as N1234")
    if len(columns) == 5 and not _looks_like_news(columns):
        raise UserError("this is a row of behaviors.tsv", where, "Give news.tsv here; are the files swapped?")
    return News(identifier, title, category, subcategory, abstract)


def _looks_like_news(columns: list[str]) -> bool:
    """Whether five columns are an article's and not an impression's, whose third is a time."""
    try:
        parse_time(columns[2], "")
    except UserError:
        return True
    return False


def read_behaviors(path: Path, bad: BadRows | None = None) -> Iterator[Impression]:
    """Stream a click log.

    Rows have 5 columns: impression id, user id, time such as 11/9/2019 2:14:46 PM, history (article ids, oldest first,
    may be empty), candidates such as ``N12-1 N34-0``, without ``-label`` in a test part.

    Raises:
        UserError: for a bad row, by file and line, unless ``bad`` skips it; and for a file that has labels in some rows
            only, because such a part can be neither trained on nor submitted.
    """
    bad = BadRows() if bad is None else bad
    labelled: bool | None = None
    for number, line in read_lines(path, bad):
        where = f"{path}:{number}"
        try:
            impression = _impression(line, where)
            if labelled is not None and labelled != (impression.labels is not None):
                missing = "has" if impression.labels is not None else "lacks"
                raise UserError(f"{missing} labels, unlike the rows before", where, "Label all rows or none")
        except UserError as error:
            bad.report(error)
            continue
        labelled = impression.labels is not None
        yield impression


def _impression(line: str, where: str) -> Impression:
    columns = line.split("\t")
    if len(columns) != 5:
        fix = "Columns are impression id, user id, time, history, candidates"
        if len(columns) == 8:
            fix = "This looks like news.tsv; are the files swapped?"
        raise UserError(f"has {len(columns)} columns instead of 5", where, fix)
    identifier, user, time, history, shown = (c.strip() for c in columns)
    if not identifier or not user:
        raise UserError("has no impression id or no user id", where)
    candidates, labels = _candidates(shown, where)
    return Impression(identifier, user, parse_time(time, where), tuple(history.split()), candidates, labels)


def _candidates(text: str, where: str) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    items = text.split()
    if not items:
        raise UserError("lists no candidates", where)
    endings = [item[-2:] for item in items]
    if all(ending in ("-0", "-1") for ending in endings):
        names = tuple(item[:-2] for item in items)
        if not all(names):
            raise UserError("a candidate has a label and no id", where)
        return names, tuple(int(ending[1]) for ending in endings)
    if not any("-" in item for item in items):
        return tuple(items), None
    wrong = next(item for item, ending in zip(items, endings, strict=True) if ending not in ("-0", "-1"))
    what = f"the label of {wrong!r} is not 0 or 1" if "-" in wrong else f"candidate {wrong!r} has no label"
    raise UserError(what, where, "Write candidates as N123-1 or N123-0")


def parse_time(text: str, where: str) -> datetime:
    """MIND's time, or ISO 8601; one with a zone becomes UTC, all are without one.

    Raises:
        UserError: if it is neither.
    """
    try:
        return _mind_time(text)
    except (ValueError, IndexError, OverflowError):
        try:
            time = datetime.fromisoformat(text)
            return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
        except (ValueError, OverflowError):
            raise UserError(f"{text!r} is no time", where, "Write it as 11/9/2019 2:14:46 PM") from None


def _mind_time(text: str) -> datetime:
    # By hand: strptime takes a third of the time of reading a row.
    date, clock, half = text.split()
    month, day, year = date.split("/")
    hour, minute, second = clock.split(":")
    if half not in ("AM", "PM") or not 1 <= int(hour) <= 12:
        raise ValueError(text)
    return datetime(int(year), int(month), int(day), int(hour) % 12 + 12 * (half == "PM"), int(minute), int(second))


def format_time(time: datetime) -> str:
    """A time as MIND writes it, in UTC if it has a zone: the hour and the date without leading zeros."""
    if time.tzinfo:
        time = time.astimezone(UTC)
    hour = f"{(time.hour - 1) % 12 + 1}:{time:%M:%S} {'AM' if time.hour < 12 else 'PM'}"
    return f"{time.month}/{time.day}/{time.year} {hour}"


def news_row(news: News) -> str:
    """An article as a line of ``news.tsv``, without its end."""
    columns = (news.id, news.category, news.subcategory, news.title, news.abstract, "", "[]", "[]")
    return "\t".join(" ".join(c.split()) for c in columns)


def behaviors_row(impression: Impression) -> str:
    """An impression as a line of ``behaviors.tsv``, without its end."""
    shown = impression.candidates
    if impression.labels is not None:
        shown = tuple(f"{c}-{y}" for c, y in zip(shown, impression.labels, strict=True))
    time = format_time(impression.time)
    return "\t".join((impression.id, impression.user, time, " ".join(impression.history), " ".join(shown)))
