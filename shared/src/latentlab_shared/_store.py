"""Where a cache's rows live: a table for small puts, immutable shards for many, one index over both.

Every change is one transaction of the index, and a shard is whole on disk before the index names it. So a process may
be killed at any moment: what is not in the index does not exist, and the next ``compact`` sweeps it up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentlab_shared._fingerprint import KEY_BYTES, Keys
from latentlab_shared._index import IF_A_CACHE, Index
from latentlab_shared._shards import (
    Codec,
    Rows,
    discard_shard,
    new_shard,
    open_shard,
    publish_shard,
    read_ahead,
    shard_path,
    write_shard,
)
from latentlab_shared.errors import UserError

PUT_SHARD_BYTES = 256 << 20  # of one put: the write lock is held while it goes to the disk
MERGED_SHARD_BYTES = 1 << 30
MANY_SHARDS = 128
EVICT_TO = 0.9  # eviction goes this far below the limit, so that it is rare
_FIND_AT_ONCE = 1 << 16
_GATHER_AT_ONCE = 256  # rows that stay in the CPU's cache between copying and decoding
_DENSE = 8  # from one row in eight on, most pages of a shard are needed

T = TypeVar("T")
Ints = NDArray[np.int64]

# One blob carries all keys of a statement and SQLite cuts them apart; a JSON array carries the number of each. That is
# one bound value instead of one per key, and several times as fast.
_KEY = f"substr(?1, n.key * {KEY_BYTES} + 1, {KEY_BYTES})"
_FIND = f"SELECT n.value, e.shard, e.row FROM json_each(?2) n CROSS JOIN entries e ON e.key = {_KEY}"
_FIND_PENDING = f"SELECT n.value, 0, p.id FROM json_each(?2) n CROSS JOIN pending p ON p.key = {_KEY}"
_AMONG = f"WHERE key IN (SELECT {_KEY} FROM json_each(?2) n)"
_ENTRIES = f"SELECT {_KEY}, ?3, n.value, ?4 FROM json_each(?2) n WHERE true"
_INSERT = f"INSERT OR IGNORE INTO entries {_ENTRIES}"
_MOVE = f"INSERT INTO entries {_ENTRIES} ON CONFLICT (key) DO UPDATE SET shard = excluded.shard, row = excluded.row"
_RIVALS = "DELETE FROM entries WHERE shard = ? AND key IN (SELECT key FROM pending)"
_FLUSH = (
    "INSERT INTO entries SELECT key, ?, place, used"
    " FROM (SELECT key, used, row_number() OVER (ORDER BY id) - 1 AS place FROM pending) ORDER BY key"
)
_OLDEST = (
    "SELECT key, shard, row FROM (SELECT key, shard, row, used FROM entries UNION ALL"
    " SELECT key, 0, id, used FROM pending) ORDER BY used, key"
)


class Gone(Exception):
    """A shard's file is not there: it has left while we held an older state of the index, or it is lost."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class Places(NamedTuple):
    """Where N keys are: ``shard`` (N,), −1 where missing and 0 for the pending table; ``row`` (N,)."""

    shard: Ints
    row: Ints


class Fetched(NamedTuple):
    """Rows of N keys.

    ``rows``, in the order of the keys: encoded (R, row_bytes), or decoded (R, D) float32. ``found`` (N,), and
    ``counts`` (N,): the rows of each key, 0 if it is missing; None in a store of single vectors, where R = N and the
    rows of missing keys are zero, or NaN when decoded.
    """

    rows: NDArray[Any]
    found: NDArray[np.bool_]
    counts: Ints | None


@dataclass(frozen=True)
class Shard:
    """A mapped shard: ``matrix`` (rows, row_bytes); ``starts`` (entries + 1,): first rows, None where entry = row."""

    id: int
    name: str
    matrix: Rows
    starts: Ints | None


class Store:
    """Rows by key.

    Args:
        folder: the cache's folder.
        index: its index.
        codec: how rows are encoded.
        tokens: a key has any number of rows instead of one.
        shard_rows: a put of so many rows, or so many pending rows, become a shard.
        max_bytes: the most that live rows may take; None for no limit.
    """

    def __init__(
        self, folder: Path, index: Index, codec: Codec, tokens: bool, shard_rows: int, max_bytes: int | None
    ) -> None:
        self.folder, self.index, self.codec, self.tokens = folder / "shards", index, codec, tokens
        self.shard_rows, self.max_bytes = shard_rows, max_bytes
        self._mapped: dict[int, Shard] = {}
        self._seen = -1
        self._made: list[Path] = []

    # ---------------------------------------------------------------- reading

    def find(self, db: sqlite3.Connection, keys: Keys) -> Places:
        """Look keys up in one state of the index."""
        places = Places(np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.int64))
        for table, query in (("entries", _FIND), ("pending", _FIND_PENDING)):
            if db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None:
                continue
            left = np.flatnonzero(places.shard < 0)
            for start in range(0, len(left), _FIND_AT_ONCE):
                part = left[start : start + _FIND_AT_ONCE]
                hits = self._numbers(db.execute(query, _argument(keys[part], part)).fetchall(), 3)
                places.shard[hits[:, 0]] = hits[:, 1]
                places.row[hits[:, 0]] = hits[:, 2]
        return places

    def live(self, db: sqlite3.Connection, shard: int, keys: Keys) -> NDArray[np.bool_]:
        """Which entries of a shard are reached by their keys, given all of its keys, (entries,)."""
        places = self.find(db, keys)
        live: NDArray[np.bool_] = (places.shard == shard) & (places.row == np.arange(len(keys)))
        return live

    def fetch(self, keys: Keys, decode: bool) -> Fetched:
        """Read the rows of keys, in their order, encoded or decoded; a key may come twice.

        Raises:
            UserError: if the index points to what is not there.
        """
        self._forget_old()

        def look(db: sqlite3.Connection) -> tuple[Places, dict[int, Shard], dict[int, Rows]]:
            places = self.find(db, keys)
            numbers = np.unique(places.shard[places.shard > 0]).tolist()
            pending = self._pending(db, places.row[places.shard == 0])
            return places, {number: self.shard(db, number) for number in numbers}, pending

        places, shards, pending = self.looking(look)
        fetched = self._gather(places, shards, pending, decode)
        if self.max_bytes is not None and not self.index.read_only:
            self._touch(keys[fetched.found])
        return fetched

    def looking(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """Read one state of the index and map its shards; if compaction removes one meanwhile, look again.

        Raises:
            UserError: if a shard of the index stays missing.
        """
        before = None
        while True:
            with self.index.reading() as db:
                try:
                    return look(db)
                except Gone as error:
                    gone = error.path.name
            with self.index.reading() as db:
                # A damaged index names a shard that it cannot find by its name: a name does not come again otherwise.
                if gone == before or db.execute("SELECT 1 FROM shards WHERE name = ?", (gone,)).fetchone():
                    fix = "Run: latentlab-cache verify --repair"
                    where = shard_path(self.folder, gone)
                    raise UserError("the index points to a shard that is missing", where, fix) from None
            before = gone

    def shard(self, db: sqlite3.Connection, number: int) -> Shard:
        """Map a shard of the index.

        Raises:
            Gone: if its file is missing.
            UserError: if it is not what the index says.
        """
        if number in self._mapped:
            return self._mapped[number]
        row = db.execute("SELECT name, rows, entries, counts FROM shards WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise UserError(f"the index has no shard {number}", self.index.path, "Run: latentlab-cache verify --repair")
        name, rows, entries, counts = row
        path = shard_path(self.folder, name)
        try:
            matrix = open_shard(path, self.codec, rows)
        except FileNotFoundError:
            raise Gone(path) from None
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", path) from None
        starts = None
        if self.tokens:
            starts = np.concatenate([[0], np.cumsum(np.frombuffer(counts or b"", "<u4"), dtype=np.int64)])
        if (entries, rows) != ((rows, rows) if starts is None else (len(starts) - 1, int(starts[-1]))):
            raise UserError("the index contradicts itself", path, "Run: latentlab-cache verify --repair")
        made = self._mapped[number] = Shard(number, name, matrix, starts)
        return made

    def shards(self, db: sqlite3.Connection) -> list[Shard]:
        """All shards, in the order they were made."""
        return [self.shard(db, number) for (number,) in db.execute("SELECT id FROM shards ORDER BY id").fetchall()]

    def _forget_old(self) -> None:
        """After another connection's commit, let go of shards that have left: a mapped file keeps its disk space."""
        version = self.index.version()
        if version != self._seen:
            self.forget()
            self._seen = version

    def forget(self) -> None:
        """Let go of mapped shards that the index no longer names."""
        with self.index.reading() as db:
            kept = {number for (number,) in db.execute("SELECT id FROM shards")}
            self._mapped = {number: shard for number, shard in self._mapped.items() if number in kept}

    def _pending(self, db: sqlite3.Connection, ids: Ints) -> dict[int, Rows]:
        if not len(ids):
            return {}
        query = "SELECT p.id, p.value FROM json_each(?) j CROSS JOIN pending p ON p.id = j.value"
        return {i: self.unpack(value) for i, value in db.execute(query, (json.dumps(ids.tolist()),))}

    def unpack(self, value: object, entries: int = 1) -> Rows:
        """Turn the joined values of pending entries into rows, (R, row_bytes)."""
        width = self.codec.row_bytes
        if not isinstance(value, bytes) or len(value) % width or (not self.tokens and len(value) != entries * width):
            raise UserError("a stored row has the wrong size", self.index.path, "Run: latentlab-cache verify --repair")
        return np.frombuffer(value, np.uint8).reshape(-1, width)

    def _gather(self, places: Places, shards: dict[int, Shard], pending: dict[int, Rows], decode: bool) -> Fetched:
        found = places.shard >= 0
        counts: Ints | None = None
        number, row = places
        waiting = np.flatnonzero(number == 0)
        where = np.arange(len(found))  # first output row of every key
        if self.tokens:
            counts = np.zeros(len(found), np.int64)
            row = row.copy()
            for i, shard in shards.items():
                here = number == i
                assert shard.starts is not None
                entry = self._checked(row[here], len(shard.starts) - 1, shard)
                row[here], counts[here] = shard.starts[entry], shard.starts[entry + 1] - shard.starts[entry]
            for at in waiting.tolist():
                counts[at] = len(self._waiting(pending, row[at]))
            where = np.concatenate([[0], np.cumsum(counts)])[:-1]
        total = len(found) if counts is None else int(counts.sum())
        turn = self.codec.decode if decode else np.asarray
        rows = (
            np.empty((total, self.codec.dim), np.float32) if decode else np.empty((total, self.codec.row_bytes), "u1")
        )
        if counts is None:
            rows[~found] = np.nan if decode else 0
        for at in waiting.tolist():
            value = self._waiting(pending, row[at])
            rows[where[at] : where[at] + len(value)] = turn(value)
        for i, shard in shards.items():
            here = np.flatnonzero(number == i)
            source, target = row[here], where[here]
            if counts is not None:  # one index per row instead of one per key
                inner = _ranges(counts[here])
                source = np.repeat(source, counts[here]) + inner
                target = np.repeat(target, counts[here]) + inner
            if len(source) * _DENSE >= len(shard.matrix):
                read_ahead(shard.matrix)
            matrix = np.asarray(shard.matrix)
            order = np.argsort(self._checked(source, len(matrix), shard))  # in the order of the file
            for start in range(0, len(order), _GATHER_AT_ONCE):
                part = order[start : start + _GATHER_AT_ONCE]
                rows[target[part]] = turn(matrix[source[part]])
        return Fetched(rows, found, counts)

    def _waiting(self, pending: dict[int, Rows], row: np.int64) -> Rows:
        try:
            return pending[int(row)]
        except KeyError:
            raise UserError(
                "the index points to a pending row that is missing",
                self.index.path,
                "Run: latentlab-cache verify --repair",
            ) from None

    def _checked(self, rows: Ints, limit: int, shard: Shard) -> Ints:
        if len(rows) and (rows.min() < 0 or rows.max() >= limit):
            raise UserError(
                "the index points beyond a shard's end",
                self.folder / shard.name,
                "Run: latentlab-cache verify --repair",
            )
        return rows

    def _numbers(self, rows: Sequence[Sequence[object]], columns: int) -> Ints:
        try:
            flat = np.fromiter(chain.from_iterable(rows), np.int64, columns * len(rows))
        except (TypeError, ValueError, OverflowError):
            raise UserError("the index is damaged (not numbers)", self.index.path, IF_A_CACHE) from None
        return flat.reshape(len(rows), columns)

    # ---------------------------------------------------------------- writing

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A writing transaction. If it fails, its shards go, and no mapping is kept: ids may be given again."""
        made: list[Path] = []
        try:
            with self.index.writing() as db:
                self._made = made
                yield db
        except BaseException:
            self._mapped = {}
            # An interrupt may have come just after the commit, so the index has the last word.
            with suppress(Exception), self.index.reading() as db:
                named = {name for (name,) in db.execute("SELECT name FROM shards")}
                for path in made:
                    if path.name not in named:
                        discard_shard(path)
            raise

    def new_shard(self) -> Path:
        """A path for a shard of the transaction under way."""
        self._made.append(new_shard(self.folder))
        return self._made[-1]

    def add(self, keys: Keys, rows: Rows, counts: Ints | None = None) -> int:
        """Store rows under keys that are not there yet; the others keep what they have.

        Args:
            keys: (N, 16); of equal ones the first counts.
            rows: (R, row_bytes), R = N, or the sum of ``counts``.
            counts: rows of each key, (N,), in a store of tokens.

        Returns:
            How many keys are new.
        """
        keys, rows, counts = _subset(keys, rows, counts, distinct(keys))
        if len(rows) < self.shard_rows:
            return self._add_pending(keys, rows, counts)
        with self.index.reading() as db:
            missing = np.flatnonzero(self.find(db, keys).shard < 0)
        if len(missing) < len(keys):
            keys, rows, counts = _subset(keys, rows, counts, missing)
        if len(rows) < self.shard_rows:
            return self._add_pending(keys, rows, counts)
        return sum(self._add_shard(*piece) for piece in self._pieces(keys, rows, counts))

    def _pieces(self, keys: Keys, rows: Rows, counts: Ints | None) -> Iterator[tuple[Keys, Rows, Ints | None]]:
        limit = max(1, PUT_SHARD_BYTES // self.codec.row_bytes)
        ends = np.arange(1, len(keys) + 1) if counts is None else np.cumsum(counts)
        start, done = 0, 0
        while start < len(keys):
            stop = max(start + 1, int(np.searchsorted(ends, done + limit, side="right")))
            end = int(ends[stop - 1])
            yield keys[start:stop], rows[done:end], None if counts is None else counts[start:stop]
            start, done = stop, end

    def _add_pending(self, keys: Keys, rows: Rows, counts: Ints | None) -> int:
        with self.changing() as db:
            missing = np.flatnonzero(self.find(db, keys).shard < 0)
            if not len(missing):
                return 0
            keys, rows, counts = _subset(keys, rows, counts, missing)
            ends = np.arange(1, len(keys) + 1) if counts is None else np.cumsum(counts)
            values = [rows[start:end].tobytes() for start, end in pairwise([0, *ends.tolist()])]
            (clock,) = db.execute("SELECT clock FROM state").fetchone()
            waiting = [(key.tobytes(), clock, value) for key, value in zip(keys, values, strict=True)]
            db.executemany("INSERT INTO pending (key, used, value) VALUES (?, ?, ?)", waiting)
            self._grow(db, len(rows))
            if self._pending_rows(db) >= self.shard_rows:
                self.flush(db)
            dead = self._evict(db)
        self.unlink(dead)
        return len(keys)

    def _pending_rows(self, db: sqlite3.Connection) -> int:
        if self.tokens:
            size = db.execute("SELECT coalesce(sum(length(value)), 0) FROM pending").fetchone()[0]
            return int(size) // self.codec.row_bytes
        # The ends of the table give a bound; counting would read all of it at every put.
        low, high = db.execute("SELECT (SELECT min(id) FROM pending), (SELECT max(id) FROM pending)").fetchone()
        return 0 if low is None else int(high - low + 1)

    def flush(self, db: sqlite3.Connection) -> None:
        """Turn the pending rows into a shard, within a writing transaction."""
        waiting = db.execute("SELECT key, value FROM pending ORDER BY id").fetchall()
        if not waiting:
            return
        keys = np.frombuffer(b"".join(key for key, _ in waiting), np.uint8).reshape(-1, KEY_BYTES)
        values = [value for _, value in waiting]
        rows = self.unpack(b"".join(values), len(values))
        counts = np.array([len(value) // self.codec.row_bytes for value in values]) if self.tokens else None
        path = self.new_shard()
        crc = write_shard(path, self.codec, len(rows), [rows])
        number = self.declare(db, path, len(rows), crc, keys, counts)
        db.execute(_FLUSH, (number,))
        db.execute("DELETE FROM pending")
        publish_shard(path)

    def _add_shard(self, keys: Keys, rows: Rows, counts: Ints | None) -> int:
        with ThreadPoolExecutor(1) as pool, self.changing() as db:
            path = self.new_shard()
            # The file is written while the index is filled: neither needs Python's lock for long.
            writing = pool.submit(write_shard, path, self.codec, len(rows), [rows])
            try:
                number = self.declare(db, path, len(rows), 0, keys, counts)
                new, grown = self._enter(db, _INSERT, keys, number), len(rows)
                new -= db.execute(_RIVALS, (number,)).rowcount
                if new < len(keys):  # another process was faster with some keys
                    ours = self.find(db, keys).shard == number
                    grown = int(ours.sum() if counts is None else counts[ours].sum())
                self._grow(db, grown)
            finally:
                wait([writing])
            db.execute("UPDATE shards SET crc32 = ?, live = ? WHERE id = ?", (writing.result(), new, number))
            publish_shard(path)
            dead = self._evict(db)
        self.unlink(dead)
        return new

    def declare(self, db: sqlite3.Connection, path: Path, rows: int, crc: int, keys: Keys, counts: Ints | None) -> int:
        """Name a shard in the index, all of its entries live; returns its id."""
        packed = None if counts is None else counts.astype("<u4").tobytes()
        values = (path.name, rows, len(keys), len(keys), crc, keys.tobytes(), packed)
        query = "INSERT INTO shards (name, rows, entries, live, crc32, keys, counts) VALUES (?, ?, ?, ?, ?, ?, ?)"
        return int(db.execute(query, values).lastrowid or 0)

    def move(self, db: sqlite3.Connection, keys: Keys, shard: int) -> None:
        """Let keys point to entries 0, 1, 2 … of another shard."""
        self._enter(db, _MOVE, keys, shard)

    def _enter(self, db: sqlite3.Connection, statement: str, keys: Keys, shard: int) -> int:
        (clock,) = db.execute("SELECT clock FROM state").fetchone()
        return db.execute(statement, (*_argument(keys, np.arange(len(keys))), shard, clock)).rowcount

    def _grow(self, db: sqlite3.Connection, rows: int) -> None:
        db.execute("UPDATE state SET live = live + ?, clock = clock + 1", (rows,))

    # ---------------------------------------------------------------- leaving

    def _touch(self, keys: Keys) -> None:
        if len(keys):
            with self.changing() as db:
                (clock,) = db.execute("SELECT clock FROM state").fetchone()
                for table in ("entries", "pending"):
                    db.execute(
                        f"UPDATE {table} SET used = ?3 {_AMONG}", (*_argument(keys, np.arange(len(keys))), clock)
                    )
                db.execute("UPDATE state SET clock = clock + 1")

    def _evict(self, db: sqlite3.Connection) -> list[Path]:
        """Drop the least recently used entries if the rows exceed the limit; returns files that nothing needs."""
        if self.max_bytes is None:
            return []
        live = db.execute("SELECT live FROM state").fetchone()[0]
        if live * self.codec.row_bytes <= self.max_bytes:
            return []
        excess = live - int(self.max_bytes * EVICT_TO) // self.codec.row_bytes
        doomed: list[bytes] = []
        for key, shard, row in db.execute(_OLDEST):
            doomed.append(key)
            excess -= self._entry_rows(db, shard, row)
            if excess <= 0:
                break
        return self.drop(db, np.frombuffer(b"".join(doomed), np.uint8).reshape(-1, KEY_BYTES))

    def _entry_rows(self, db: sqlite3.Connection, shard: int, row: int) -> int:
        if not self.tokens:
            return 1
        if shard == 0:
            return len(self.unpack(db.execute("SELECT value FROM pending WHERE id = ?", (row,)).fetchone()[0]))
        starts = self.shard(db, shard).starts
        assert starts is not None
        return int(starts[row + 1] - starts[row])

    def drop(self, db: sqlite3.Connection, keys: Keys) -> list[Path]:
        """Remove keys that are there; returns the files of shards that are now empty, to unlink after the commit."""
        places = self.find(db, keys)
        rows = sum(self._entry_rows(db, *place) for place in zip(*(p.tolist() for p in places), strict=True))
        for table in ("entries", "pending"):
            db.execute(f"DELETE FROM {table} {_AMONG}", _argument(keys, np.arange(len(keys))))
        numbers, losses = np.unique(places.shard[places.shard > 0], return_counts=True)
        pairs = zip(losses.tolist(), numbers.tolist(), strict=True)
        db.executemany("UPDATE shards SET live = live - ? WHERE id = ?", pairs)
        db.execute("UPDATE state SET live = live - ?", (rows,))
        names = [name for (name,) in db.execute("SELECT name FROM shards WHERE live <= 0").fetchall()]
        db.execute("DELETE FROM shards WHERE live <= 0")
        return [shard_path(self.folder, name) for name in names]

    def unlink(self, paths: Iterable[Path]) -> None:
        """Remove files that the committed index no longer names; what cannot go now is swept up later."""
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @staticmethod
    def entries(db: sqlite3.Connection) -> int:
        """How many keys there are."""
        (count,) = db.execute("SELECT (SELECT count(*) FROM entries) + (SELECT count(*) FROM pending)").fetchone()
        return int(count)

    def crowded(self) -> bool:
        """Whether there are so many small shards that they should be merged: each takes a file handle when mapped."""
        small = MERGED_SHARD_BYTES // 2 // self.codec.row_bytes
        with self.index.reading() as db:
            (count,) = db.execute("SELECT count(*) FROM shards WHERE rows <= ?", (small,)).fetchone()
        return bool(count > MANY_SHARDS)

    def wasteful(self) -> bool:
        """Whether more entries in shards are dead than alive."""
        with self.index.reading() as db:
            entries, live = db.execute(
                "SELECT coalesce(sum(entries), 0), coalesce(sum(live), 0) FROM shards"
            ).fetchone()
        return bool(entries > 2 * live)


def _prefix(keys: Keys) -> NDArray[np.uint64]:
    """The first eight bytes of keys as numbers that sort as the keys do, but for ties."""
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _argument(keys: Keys, numbers: Ints) -> tuple[bytes, str]:
    """Keys and a number for each, sorted as the tree is: neighbours fall on the same page."""
    order = np.argsort(_prefix(keys))
    return keys[order].tobytes(), json.dumps(numbers[order].tolist())


def distinct(keys: Keys) -> Ints:
    """The first occurrence of every key, in order, (M,)."""
    prefix = np.sort(_prefix(keys))
    if not (prefix[1:] == prefix[:-1]).any():  # no two begin alike: far cheaper than comparing whole keys
        return np.arange(len(keys))
    whole = np.ascontiguousarray(keys).view(f"V{KEY_BYTES}")[:, 0]
    return np.sort(np.unique(whole, return_index=True)[1])


def _ranges(counts: Ints) -> Ints:
    """0 … c−1 for every count c, joined."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _subset(keys: Keys, rows: Rows, counts: Ints | None, chosen: Ints) -> tuple[Keys, Rows, Ints | None]:
    if len(chosen) == len(keys):
        return keys, rows, counts
    if counts is None:
        return keys[chosen], rows[chosen], None
    starts = np.cumsum(counts) - counts
    kept = counts[chosen]
    return keys[chosen], rows[np.repeat(starts[chosen], kept) + _ranges(kept)], kept
