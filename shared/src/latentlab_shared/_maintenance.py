"""Looking after a cache's files: ``compact`` merges shards and sweeps up, ``verify`` checks every byte."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentlab_shared._fingerprint import KEY_BYTES, Keys
from latentlab_shared._index import IF_A_CACHE
from latentlab_shared._shards import (
    Rows,
    checksum,
    is_shard_file,
    publish_shard,
    shard_path,
    write_shard,
)
from latentlab_shared._store import MERGED_SHARD_BYTES, Gone, Ints, Shard, Store
from latentlab_shared.errors import UserError

_COPY_ROWS = 1 << 14  # copied at a time, so that merging needs little memory


@dataclass(frozen=True)
class Fault:
    """Something wrong in a cache: where it is, what it is, and how many entries it touches."""

    where: str
    what: str
    entries: int


@dataclass(frozen=True)
class Compacted:
    """What ``compact`` did: shards before and after, dead entries dropped, files and bytes removed."""

    shards_before: int
    shards_after: int
    dropped: int
    files_removed: int
    bytes_removed: int


# -------------------------------------------------------------------- compact


def compact(store: Store) -> Compacted:
    """Turn pending rows into a shard, merge shards up to 1 GiB, drop dead entries, remove files nobody names.

    Readers go on: what they have mapped stays theirs, and who finds a file gone looks the index up again.

    Raises:
        UserError: if a shard that would be copied is damaged.
    """
    before, dropped = _count(store), 0
    files, size = 0, 0
    with store.changing() as db:
        store.flush(db)
    while True:
        with store.changing() as db:
            group = next(_groups(store, db), None)
            if group is None:
                break
            dropped += _merge(store, db, group)
            old = [shard_path(store.folder, shard.name) for shard in group]
        size += sum(size_of(path) for path in old)
        files += len(old)
        store.unlink(old)
        store.forget()
    with store.changing() as db:  # shards are written within such a transaction, so no writer is at work now
        swept = orphans(store, db)
        size += sum(size_of(path) for path in swept)
        store.unlink(swept)
    store.index.vacuum()
    return Compacted(before, _count(store), dropped, files + len(swept), size)


def _count(store: Store) -> int:
    with store.index.reading() as db:
        return int(db.execute("SELECT count(*) FROM shards").fetchone()[0])


def _groups(store: Store, db: sqlite3.Connection) -> Iterator[list[Shard]]:
    """Sets of shards that are worth rewriting as one: those with dead entries, and small ones that have company."""
    limit = MERGED_SHARD_BYTES // store.codec.row_bytes
    group: list[Shard] = []
    rows_in_group, dead_in_group = 0, False
    listed = db.execute("SELECT id, rows, entries, live FROM shards ORDER BY id").fetchall()
    for number, rows, entries, live in [*listed, (None, limit + 1, 0, 0)]:
        dead = live < entries
        if number is not None and not dead and rows > limit // 2:
            continue
        if rows_in_group + rows > limit and group:
            if len(group) > 1 or dead_in_group:
                yield group
            group, rows_in_group, dead_in_group = [], 0, False
        if number is not None:
            group.append(_mapped(store, db, number))
            rows_in_group, dead_in_group = rows_in_group + rows, dead_in_group or dead


def _mapped(store: Store, db: sqlite3.Connection, number: int) -> Shard:
    try:
        return store.shard(db, number)
    except Gone as error:
        raise UserError("the shard is missing", error, "Run: latentlab-cache verify --repair") from None


def _merge(store: Store, db: sqlite3.Connection, group: list[Shard]) -> int:
    """Write the live entries of shards as one new shard; returns how many dead ones were left out."""
    keys: list[Keys] = []
    counts: list[Ints] = []
    rows: list[tuple[Shard, Ints]] = []
    total = dead = 0
    placed = dict(db.execute("SELECT shard, count(*) FROM entries GROUP BY shard").fetchall())
    for shard in group:
        listed, crc = db.execute("SELECT keys, crc32 FROM shards WHERE id = ?", (shard.id,)).fetchone()
        if checksum(shard.matrix) != crc:  # copied as it is, it would get a good checksum
            where = shard_path(store.folder, shard.name)
            raise UserError("the checksum is wrong", where, "Run: latentlab-cache verify --repair")
        all_keys = np.frombuffer(listed, np.uint8).reshape(-1, KEY_BYTES)
        live = np.flatnonzero(store.live(db, shard.id, all_keys))
        if len(live) != placed.get(shard.id, 0):  # what points elsewhere would be lost
            where = shard_path(store.folder, shard.name)
            raise UserError("keys point to the rows of others", where, "Run: latentlab-cache verify --repair")
        dead += len(all_keys) - len(live)
        keys.append(all_keys[live])
        if shard.starts is None:
            rows.append((shard, live))
        else:
            kept = np.diff(shard.starts)[live]
            counts.append(kept)
            rows.append((shard, np.repeat(shard.starts[live] - (np.cumsum(kept) - kept), kept) + np.arange(kept.sum())))
        total += len(rows[-1][1])
    if total:
        path = store.new_shard()
        crc = write_shard(path, store.codec, total, _pieces(rows))
        joined = np.concatenate(keys)
        number = store.declare(db, path, total, crc, joined, np.concatenate(counts) if counts else None)
        store.move(db, joined, number)
        publish_shard(path)
    db.executemany("DELETE FROM shards WHERE id = ?", [(shard.id,) for shard in group])
    return dead


def _pieces(rows: list[tuple[Shard, Ints]]) -> Iterator[Rows]:
    for shard, chosen in rows:
        for start in range(0, len(chosen), _COPY_ROWS):
            yield np.asarray(shard.matrix)[chosen[start : start + _COPY_ROWS]]


def orphans(store: Store, db: sqlite3.Connection) -> list[Path]:
    """Files of killed writers in the shards' folder; outside a writing transaction one may still be written to."""
    named = {name for (name,) in db.execute("SELECT name FROM shards")}
    return [path for path in sorted(store.folder.iterdir()) if is_shard_file(path) and path.name not in named]


def size_of(path: Path) -> int:
    """Bytes of a file; 0 for what is none or has just gone."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


# --------------------------------------------------------------------- verify


def verify(store: Store, repair: bool = False) -> list[Fault]:
    """Check all of a cache: the index, every shard's size, type and checksum, and that every value is finite.

    Args:
        store: the rows to check.
        repair: drop the entries that are bad; they are computed again when next asked for.

    Returns:
        The faults found, before any repair.
    """
    faults: list[Fault] = []
    bad: dict[int, NDArray[np.bool_] | None] = {}  # per shard the entries that are bad; None for all
    index = str(store.index.path)
    with store.index.reading() as db:
        (state,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            raise UserError(f"the index is damaged ({state})", index, IF_A_CACHE)
        listed = db.execute("SELECT id, name, live FROM shards ORDER BY id").fetchall()
    for number, name, live in listed:
        fault, mask = _check_shard(store, number)
        if fault:
            bad[number] = mask
            faults.append(Fault(f"shards/{str(name)[:80]}", fault, live if mask is None else int(mask.sum())))
    for what, query in _STRAYS.items():
        with store.index.reading() as db:
            count = db.execute(f"SELECT count(*) FROM {query}").fetchone()[0]
        if count:
            faults.append(Fault(index, what, count))
    pending = _bad_pending(store)
    if pending:
        faults.append(Fault(index, "pending rows of the wrong size or not finite", len(pending)))
    if not faults:
        with store.index.reading() as db:
            wrong = _wrong_counts(store, db)
        if wrong:
            faults.append(Fault(index, "counts of live rows are wrong", wrong))
    if repair and faults:
        _repair(store, bad, pending)
    return faults


_STRAYS = {
    "entries of shards that are not there": "entries WHERE shard NOT IN (SELECT id FROM shards)",
    "entries beyond their shard's end": (
        "entries WHERE row < 0 OR row >= (SELECT s.entries FROM shards s WHERE s.id = entries.shard)"
    ),
    "pending rows that are also in a shard": "pending WHERE key IN (SELECT key FROM entries)",
}


def _check_shard(store: Store, number: int) -> tuple[str, NDArray[np.bool_] | None]:
    """What is wrong with a shard (empty if nothing) and which of its entries that spoils (None: all)."""

    def look(db: sqlite3.Connection) -> tuple[int, object, Shard] | None:
        row = db.execute("SELECT crc32, keys FROM shards WHERE id = ?", (number,)).fetchone()
        return None if row is None else (*row, store.shard(db, number))

    try:
        looked = store.looking(look)
    except UserError as error:
        return error.what, None
    if looked is None:
        return "", None  # compacted away since it was listed
    crc, keys, shard = looked
    if not isinstance(keys, bytes) or len(keys) != KEY_BYTES * (
        len(shard.matrix) if shard.starts is None else len(shard.starts) - 1
    ):
        return "its keys in the index are damaged", None
    if checksum(shard.matrix) != crc:
        return "the checksum is wrong", None
    mask = np.concatenate(
        [
            ~store.codec.finite(np.asarray(shard.matrix[start : start + _COPY_ROWS]))
            for start in range(0, len(shard.matrix), _COPY_ROWS)
        ]
    )
    if shard.starts is not None:
        mask = np.logical_or.reduceat(mask, shard.starts[:-1])
    named = np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)
    with store.index.reading() as db:
        live = store.live(db, number, named)
        (placed,) = db.execute("SELECT count(*) FROM entries WHERE shard = ?", (number,)).fetchone()
        if placed != live.sum():
            pairs = db.execute("SELECT row, key FROM entries WHERE shard = ? AND row < ?", (number, len(named)))
            misplaced = np.zeros(len(named), bool)
            misplaced[[row for row, key in pairs if row >= 0 and key != named[row].tobytes()]] = True
            if misplaced.any():
                return "keys point to the rows of others", misplaced
    mask &= live  # dead entries do no harm
    return ("values are not finite", mask) if mask.any() else ("", None)


def _bad_pending(store: Store) -> list[int]:
    bad = []
    with store.index.reading() as db:
        for number, value in db.execute("SELECT id, value FROM pending"):
            try:
                good = bool(store.codec.finite(store.unpack(value)).all())
            except UserError:
                good = False
            if not good:
                bad.append(number)
    return bad


def _wrong_counts(store: Store, db: sqlite3.Connection) -> int:
    counted = dict(db.execute("SELECT shard, count(*) FROM entries GROUP BY shard").fetchall())
    stored = db.execute("SELECT id, live FROM shards").fetchall()
    wrong = sum(live != counted.get(number, 0) for number, live in stored)
    (live,) = db.execute("SELECT live FROM state").fetchone()
    return int(wrong) + int(live != _live_rows(store, db))


def _live_rows(store: Store, db: sqlite3.Connection) -> int:
    if not store.tokens:
        return store.entries(db)
    pending = db.execute("SELECT coalesce(sum(length(value)), 0) FROM pending").fetchone()[0] // store.codec.row_bytes
    total = int(pending)
    for (number,) in db.execute("SELECT id FROM shards").fetchall():
        rows = [row for (row,) in db.execute("SELECT row FROM entries WHERE shard = ?", (number,))]
        starts = _mapped(store, db, number).starts
        assert starts is not None
        total += int(np.diff(starts)[rows].sum())
    return total


def _repair(store: Store, bad: dict[int, NDArray[np.bool_] | None], pending: list[int]) -> None:
    with store.changing() as db:
        for number, mask in bad.items():
            if mask is None:
                db.execute("DELETE FROM entries WHERE shard = ?", (number,))
            else:
                doomed = [(number, row) for row in np.flatnonzero(mask).tolist()]
                keys = db.execute("SELECT key, shard, row FROM entries WHERE shard = ?", (number,)).fetchall()
                wanted = set(doomed)
                db.executemany(
                    "DELETE FROM entries WHERE key = ?", [(key,) for key, *place in keys if tuple(place) in wanted]
                )
        db.executemany("DELETE FROM pending WHERE id = ?", [(number,) for number in pending])
        for query in _STRAYS.values():
            db.execute(f"DELETE FROM {query}")
        counted = "SELECT count(*) FROM entries WHERE entries.shard = shards.id"
        db.execute(f"UPDATE shards SET live = ({counted})")
        named = db.execute("SELECT name FROM shards WHERE live = 0").fetchall()
        db.execute("DELETE FROM shards WHERE live = 0")
        db.execute("UPDATE state SET live = ?", (_live_rows(store, db),))
    store.forget()
    for (name,) in named:
        try:
            store.unlink([shard_path(store.folder, name)])
        except UserError:
            continue  # a name that leads out of the folder is no file of ours
