"""Articles with their vectors, as one object that never changes: a change makes a new one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path, read_json, read_npy, write_json
from nrms.data.types import Floats

Halfs = NDArray[np.float16]
_NEVER = np.iinfo(np.int64).max
_UNKNOWN = np.iinfo(np.int64).min
_ABOUT, _VECTORS, _ARTICLES = "catalogue.json", "vectors.npy", "articles.jsonl"
_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_FIRST_MS, _LAST_MS = ((end.replace(tzinfo=UTC) - _EPOCH) // _MS for end in (datetime.min, datetime.max))


def to_ms(moment: datetime | None) -> int | None:
    """Whole milliseconds since 1970; a time without a zone is UTC.

    Raises:
        UserError: for a moment that in UTC lies outside the years 1 to 9999.
    """
    if moment is None:
        return None
    ms = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MS
    if not _FIRST_MS <= ms <= _LAST_MS:
        raise UserError("in UTC the time lies outside the years 1 to 9999", moment.isoformat())
    return ms


def to_time(ms: int | None) -> datetime | None:
    """The moment of ``ms`` milliseconds since 1970, or the nearest one that a date can say."""
    return None if ms is None else _EPOCH + min(max(ms, _FIRST_MS), _LAST_MS) * _MS


class Entry(NamedTuple):
    """One article of a catalogue; times in milliseconds since 1970."""

    id: str
    title: str
    category: str = ""
    published: int | None = None
    expires: int | None = None

    @property
    def published_at(self) -> datetime | None:
        """When it was published."""
        return to_time(self.published)


@dataclass(frozen=True)
class Filter:
    """Which articles may be recommended.

    Attributes:
        categories: any of these; empty for all.
        since: published at or after, in milliseconds since 1970; an article without a time is not.
        exclude: ids to leave out.
    """

    categories: tuple[str, ...] = ()
    since: int | None = None
    exclude: frozenset[str] = frozenset()

    def allows(self, entry: Entry, now: int) -> bool:
        """Whether an article may be recommended at a time."""
        return (
            entry.id not in self.exclude
            and (entry.expires is None or entry.expires > now)
            and (not self.categories or entry.category in self.categories)
            and (self.since is None or (entry.published is not None and entry.published >= self.since))
        )


@dataclass(frozen=True)
class Found:
    """Articles picked from a catalogue, in order.

    Attributes:
        entries: k articles.
        vectors: theirs, (k, D) float32.
        scores: dot products with the user, (k,); empty where nobody was asked about.
        places: numbers that grow in the order of the catalogue, (k,).
    """

    entries: list[Entry]
    vectors: Floats
    scores: Floats
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Catalogue:
    """Articles and the matrix of their vectors.

    Attributes:
        model_id: the model that made the vectors.
        entries: N articles.
        vectors: (N, D), half precision; may be a memory map.
        revision: the store's revision this catalogue shows; -1 without a store.
    """

    model_id: str
    entries: tuple[Entry, ...]
    vectors: Halfs
    revision: int = -1
    row_of: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.entries) != len(self.vectors):
            raise ValueError(f"{len(self.entries)} articles, {len(self.vectors)} vectors")
        if not self.row_of:
            object.__setattr__(self, "row_of", {entry.id: row for row, entry in enumerate(self.entries)})
        if len(self.row_of) != len(self.entries):
            raise ValueError("an article stands in the catalogue twice")

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    @cached_property
    def published(self) -> NDArray[np.int64]:
        """Times of publication, (N,)."""
        return np.array([_UNKNOWN if e.published is None else e.published for e in self.entries], np.int64)

    @cached_property
    def expires(self) -> NDArray[np.int64] | None:
        """Times of expiry, (N,); None if no article ever expires."""
        if all(e.expires is None for e in self.entries):
            return None
        return np.array([_NEVER if e.expires is None else e.expires for e in self.entries], np.int64)

    @cached_property
    def _categories(self) -> tuple[dict[str, int], NDArray[np.int32]]:
        code_of: dict[str, int] = {}
        codes = [code_of.setdefault(e.category, len(code_of)) for e in self.entries]
        return code_of, np.array(codes, np.int32)

    @cached_property
    def newest(self) -> NDArray[np.int64]:
        """Rows by time of publication, the newest first; of equal times the last added first."""
        return np.lexsort((np.arange(len(self)), self.published))[::-1]

    def warm(self) -> Catalogue:
        """Compute now what the first request would have to wait for."""
        _ = self.published, self.expires, self._categories, self.newest
        return self

    def allowed(self, wanted: Filter) -> NDArray[np.bool_] | None:
        """True where a filter lets an article through, (N,); None if it lets all of them."""
        mask: NDArray[np.bool_] | None = None
        if wanted.categories:
            code_of, codes = self._categories
            mask = np.isin(codes, [code_of[name] for name in wanted.categories if name in code_of])
        if wanted.since is not None:
            recent = self.published >= max(wanted.since, _UNKNOWN + 1)
            mask = recent if mask is None else mask & recent
        if self.expires is not None:
            alive = self.expires > time.time() * 1000
            mask = alive if mask is None else mask & alive
        rows = [self.row_of[id] for id in wanted.exclude if id in self.row_of]
        if rows:
            mask = np.ones(len(self), np.bool_) if mask is None else mask
            mask[rows] = False
        return mask

    def take(self, rows: Sequence[int] | NDArray[np.int64], scores: Floats | None = None) -> Found:
        """The articles of some rows."""
        picked = np.asarray(rows, np.int64)
        vectors = np.asarray(self.vectors[picked], np.float32)
        given = np.zeros(0, np.float32) if scores is None else scores
        return Found([self.entries[row] for row in picked], vectors, given, picked)

    def updated(self, entries: Sequence[Entry], vectors: Halfs, revision: int = -1) -> Catalogue:
        """A catalogue with these articles changed in their rows, or added behind the others."""
        row_of, merged = dict(self.row_of), list(self.entries)
        rows = []
        for entry in entries:
            row = row_of.setdefault(entry.id, len(merged))
            rows.append(row)
            if row == len(merged):
                merged.append(entry)
            else:
                merged[row] = entry
        matrix = np.empty((len(merged), self.dim), np.float16)
        matrix[: len(self)] = self.vectors
        if rows:
            matrix[rows] = vectors
        return Catalogue(self.model_id, tuple(merged), matrix, max(revision, self.revision), row_of)

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``vectors.npy``, ``articles.jsonl`` and, last, ``catalogue.json``."""
        folder = Path(folder)
        (folder / _ABOUT).unlink(missing_ok=True)  # from here to the end the folder holds no catalogue
        with atomic_path(folder / _VECTORS) as temporary, temporary.open("wb") as file:
            np.save(file, self.vectors, allow_pickle=False)
        with atomic_path(folder / _ARTICLES) as temporary, temporary.open("w", encoding="utf-8") as text:
            for entry in self.entries:
                text.write(json.dumps(entry, ensure_ascii=False) + "\n")
        write_json(folder / _ABOUT, {"model_id": self.model_id, "articles": len(self), "revision": self.revision})

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Read what `save` wrote; the matrix stays in its file and is mapped.

        Raises:
            UserError: if there is no catalogue or a file is damaged.
        """
        folder = Path(folder)
        about, fix = read_json(folder / _ABOUT), "Train again, or embed the articles again"
        try:
            vectors = read_npy(folder / _VECTORS, fix)
            with (folder / _ARTICLES).open(encoding="utf-8") as lines:
                entries = tuple(Entry(*json.loads(line)) for line in lines)
            if len(entries) != about["articles"] or vectors.shape[:1] != (len(entries),) or vectors.dtype != np.float16:
                raise ValueError("its files do not belong together")
            return cls(about["model_id"], entries, vectors, about["revision"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"the catalogue is damaged ({' '.join(str(error).split())[:160]})", folder, fix) from None

    @classmethod
    def empty(cls, model_id: str, dim: int) -> Catalogue:
        """No articles."""
        return cls(model_id, (), np.zeros((0, dim), np.float16))
