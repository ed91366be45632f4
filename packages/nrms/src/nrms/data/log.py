"""A click log as arrays: read once, kept as memory-mapped files under the hash of what it was made from.

MIND-large has 2.2 million impressions with 150 million article ids; as int32 rows of the catalogue, and with each
user's repeated history stored once, they take well under a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from latentlab_shared.files import disk_errors, read_json, read_npy, sha256_file, write_json
from nrms.config import ModelConfig
from nrms.data.mind import BEHAVIORS_FILE, NEWS_FILE, read_behaviors, read_news
from nrms.data.rows import BadRows
from nrms.data.tokens import token_table
from nrms.data.types import Impression, Ints, News, TokenTable
from nrms.data.vocabulary import Vocabulary, vocabulary_hash

_VERSION = 1  # of the files below; a change makes every cache new


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one array.

    Attributes:
        values: of all rows, one after another.
        offsets: where each row starts, and the end, (rows + 1,).
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each row."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Some rows, in the given order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        places = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[places], offsets)


@dataclass(frozen=True)
class ClickLog:
    """One part of a data set: its catalogue and its impressions, I of them.

    Attributes:
        titles: the catalogue's token ids; row 0 stands for padding and for articles that are not in the catalogue.
        articles: the id of each row, "" for row 0.
        categories: the topic of each row.
        users: names of the users.
        user_of: user of each impression, (I,).
        ids: impression ids, (I,) as bytes.
        times: seconds since 1970, UTC, (I,).
        histories: distinct histories as rows of the catalogue, oldest first, the last ``history_length`` of them.
        history_of: history of each impression, (I,).
        candidates: rows of the catalogue, per impression.
        labels: 1 for clicked, one per candidate; None in an unlabelled part.
        notes: what was left out or put right, by kind.
    """

    titles: TokenTable
    articles: list[str]
    categories: list[str]
    users: list[str]
    user_of: Ints
    ids: Ragged
    times: NDArray[np.int64]
    histories: Ragged
    history_of: Ints
    candidates: Ragged
    labels: NDArray[np.int8] | None
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user_of)

    def impression_id(self, row: int) -> str:
        """The id of an impression."""
        return bytes(self.ids[row]).decode()

    def known_labels(self) -> NDArray[np.int8]:
        """The labels.

        Raises:
            UserError: in an unlabelled part.
        """
        if self.labels is None:
            raise UserError(
                "this part has no labels", BEHAVIORS_FILE, "It can be ranked for a submission, not trained on or scored"
            )
        return self.labels

    def take(self, rows: NDArray[np.int64]) -> ClickLog:
        """Some impressions, in the given order."""
        labels = None if self.labels is None else Ragged(self.labels, self.candidates.offsets).take(rows).values
        return ClickLog(
            titles=self.titles,
            articles=self.articles,
            categories=self.categories,
            users=self.users,
            user_of=self.user_of[rows],
            ids=self.ids.take(rows),
            times=self.times[rows],
            histories=self.histories,
            history_of=self.history_of[rows],
            candidates=self.candidates.take(rows),
            labels=labels,
            notes=self.notes,
        )

    def thinned(self, count: int) -> ClickLog:
        """At most ``count`` impressions, evenly spaced over the log; 0 for all."""
        if count == 0 or count >= len(self):
            return self
        return self.take(np.arange(count, dtype=np.int64) * len(self) // count)


def open_log(
    folder: Path,
    vocabulary: Vocabulary,
    config: ModelConfig,
    *,
    cache: Path | None = None,
    bad: BadRows | None = None,
    limit: int | None = None,
) -> ClickLog:
    """Open one part, ``news.tsv`` and ``behaviors.tsv``; the second time from the cache, memory-mapped.

    Args:
        folder: with the two files.
        vocabulary: whose token ids.
        config: views, lengths of titles and histories.
        cache: folder for the arrays, one per content; None keeps them in memory only.
        bad: what to do with malformed rows.
        limit: read at most so many impressions.

    Raises:
        UserError: for missing files and bad rows, by file and line.
    """
    bad = BadRows() if bad is None else bad
    _check_folder(folder)
    if cache is None:
        return build_log(*_rows(folder, bad, limit), vocabulary, config, bad)
    key = _content_key(folder, vocabulary, config, bad.skip, limit)
    home = cache / key
    if not (home / "log.json").is_file():
        log = build_log(*_rows(folder, bad, limit), vocabulary, config, bad)
        _write(home, log)
    return _read(home)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError("there is no such folder", folder, f"Give a folder with {NEWS_FILE} and {BEHAVIORS_FILE}")
    for name in (NEWS_FILE, BEHAVIORS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"holds no {name}", folder, "MIND's folders hold news.tsv and behaviors.tsv")


def _rows(folder: Path, bad: BadRows, limit: int | None) -> tuple[Iterable[News], Iterable[Impression]]:
    from itertools import islice

    return read_news(folder / NEWS_FILE, bad), islice(read_behaviors(folder / BEHAVIORS_FILE, bad), limit)


def _content_key(folder: Path, vocabulary: Vocabulary, config: ModelConfig, skip: bool, limit: int | None) -> str:
    parts = {
        "version": _VERSION,
        "files": [sha256_file(folder / name) for name in (NEWS_FILE, BEHAVIORS_FILE)],
        "vocabulary": vocabulary_hash(vocabulary),
        "views": config.views,
        "widths": config.widths,
        "history": config.history_length,
        "skip": skip,
        "limit": limit,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


class _Interned:
    """Names by the order of their first occurrence."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        return self.index.setdefault(name, len(self.index))


def build_log(
    news: Iterable[News],
    impressions: Iterable[Impression],
    vocabulary: Vocabulary,
    config: ModelConfig,
    bad: BadRows | None = None,
) -> ClickLog:
    """A log from rows, in memory.

    Unknown articles are dropped from histories and become row 0 among the candidates; both are counted.
    """
    bad = BadRows() if bad is None else bad
    categories = [""]

    def noted(articles: Iterable[News]) -> Iterable[News]:
        for article in articles:
            categories.append(article.category)
            yield article

    titles = token_table(noted(news), vocabulary, config)
    row_of, user = titles.row_of, _Interned()
    # C arrays instead of lists: 4 bytes per id instead of 8 and an object.
    user_of, history_of, times = array("i"), array("i"), array("q")
    history, history_end, shown, shown_end = array("i"), array("q", [0]), array("i"), array("q", [0])
    labels, identifiers, identifier_end = array("b"), bytearray(), array("q", [0])
    last_history: dict[int, tuple[int, int]] = {}  # user → hash of the newest history, its number
    notes, labelled = bad.notes, True
    for impression in impressions:
        number = user(impression.user)
        key = hash(impression.history)
        known_key, place = last_history.get(number, (0, -1))
        if place < 0 or known_key != key:
            rows = [row for name in impression.history if (row := row_of.get(name, 0))]
            notes["unknown articles dropped from histories"] += len(impression.history) - len(rows)
            history.extend(rows[-config.history_length :])
            history_end.append(len(history))
            place = len(history_end) - 2
            last_history[number] = (key, place)
        rows = [row_of.get(name, 0) for name in impression.candidates]
        notes["unknown candidates scored as cold"] += rows.count(0)
        shown.extend(rows)
        shown_end.append(len(shown))
        if impression.labels is None:
            labelled = False
        else:
            labels.extend(impression.labels)
            notes["impressions with one class only"] += len(set(impression.labels)) == 1
        notes["impressions without history"] += not impression.history
        history_of.append(place)
        user_of.append(number)
        identifiers += impression.id.encode()
        identifier_end.append(len(identifiers))
        # Times without a zone count as UTC: only their order and distance matter.
        time = impression.time if impression.time.tzinfo else impression.time.replace(tzinfo=UTC)
        times.append(int(time.timestamp()))
    return ClickLog(
        titles=titles,
        articles=["", *row_of],
        categories=categories,
        users=list(user.index),
        user_of=np.asarray(user_of, np.int32),
        ids=Ragged(np.frombuffer(bytes(identifiers), np.uint8), np.asarray(identifier_end, np.int64)),
        times=np.asarray(times, np.int64),
        histories=Ragged(np.asarray(history, np.int32), np.asarray(history_end, np.int64)),
        history_of=np.asarray(history_of, np.int32),
        candidates=Ragged(np.asarray(shown, np.int32), np.asarray(shown_end, np.int64)),
        labels=np.asarray(labels, np.int8) if labelled else None,
        notes={kind: count for kind, count in bad.summary().items() if count},
    )


# -- the cache --------------------------------------------------------------------------------------------------------

# Attribute of the log → attribute of its array.
_ARRAYS: dict[str, Callable[[ClickLog], NDArray[Any] | None]] = {
    "tokens": lambda log: log.titles.tokens,
    "lengths": lambda log: log.titles.lengths,
    "user_of": lambda log: log.user_of,
    "ids": lambda log: log.ids.values,
    "ids_offsets": lambda log: log.ids.offsets,
    "times": lambda log: log.times,
    "histories": lambda log: log.histories.values,
    "histories_offsets": lambda log: log.histories.offsets,
    "history_of": lambda log: log.history_of,
    "candidates": lambda log: log.candidates.values,
    "candidates_offsets": lambda log: log.candidates.offsets,
    "labels": lambda log: log.labels,
}


def _write(home: Path, log: ClickLog) -> None:
    """Write a log so that its folder is whole or absent."""
    temporary = home.with_name(f".{home.name}.{uuid.uuid4().hex}.tmp")
    with disk_errors(home):
        temporary.mkdir(parents=True)
        try:
            for name, get in _ARRAYS.items():
                values = get(log)
                if values is not None:
                    np.save(temporary / f"{name}.npy", values, allow_pickle=False)
            write_json(temporary / "articles.json", {"articles": log.articles, "categories": log.categories})
            write_json(temporary / "users.json", log.users)
            write_json(temporary / "log.json", {"impressions": len(log), "notes": log.notes})
            if not home.exists():
                temporary.rename(home)
        except OSError:
            if not (home / "log.json").is_file():  # else another process wrote the same content meanwhile
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _read(home: Path) -> ClickLog:
    def array_of(name: str) -> NDArray[Any]:
        return read_npy(home / f"{name}.npy", f"Delete {home}")

    names = read_json(home / "articles.json")
    articles: list[str] = names["articles"]
    row_of = {identifier: row for row, identifier in enumerate(articles) if row}
    return ClickLog(
        titles=TokenTable(array_of("tokens"), array_of("lengths"), row_of),
        articles=articles,
        categories=names["categories"],
        users=read_json(home / "users.json"),
        user_of=array_of("user_of"),
        ids=Ragged(array_of("ids"), array_of("ids_offsets")),
        times=array_of("times"),
        histories=Ragged(array_of("histories"), array_of("histories_offsets")),
        history_of=array_of("history_of"),
        candidates=Ragged(array_of("candidates"), array_of("candidates_offsets")),
        labels=array_of("labels") if (home / "labels.npy").is_file() else None,
        notes=read_json(home / "log.json")["notes"],
    )
