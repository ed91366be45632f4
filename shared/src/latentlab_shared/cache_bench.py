"""The embedding cache beside other stores: the same vectors, keys and durability, runs interleaved, medians.

Every store gets float16 vectors and texts, hashes the texts itself, and is opened and closed within the measured time.
After a write, a power cut may undo the last commit and nothing else (LMDB without metasync, SQLite's and the cache's
``synchronous=NORMAL``). A memory map and Arrow IPC are flushed once at the end; one file per text is never flushed.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.embeddings import EmbeddingCache, Fingerprint
from latentlab_shared.errors import NeedsExtra, RunFailed
from latentlab_shared.provenance import command_line, write_table

Half = NDArray[np.float16]
Floats = NDArray[np.float32]

READS = 20_000
BATCH = 256  # rows that an encoder delivers at a time
_WORDS = ("the", "of", "latent", "text", "vector", "cache", "paper", "model", "token", "river", "market", "winter")
_FILES_SHARE = 20  # one file per text is measured on every 20th of the rows, and scaled


class Store(Protocol):
    """A store in an empty folder. ``keyed`` says whether it finds rows by text, or only by number."""

    name: str
    settings: str
    keyed: bool
    share: int  # only rows / share are measured, and times are scaled

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """Store vectors (N, D), ``batch`` rows per commit."""

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """Vectors (n, D) of texts, whose row numbers are given to stores that know no keys."""

    def scan(self, folder: Path, out: Half) -> None:
        """Copy all vectors into ``out`` (N, D), in any order."""


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Cache:
    """The embedding cache."""

    name, keyed, share = "latentlab", True, 1
    settings = "EmbeddingCache, float16"

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """One ``put_many`` per batch."""
        with self._open(folder, vectors.shape[1]) as cache:
            for start in range(0, len(texts), batch):
                cache.put_many(texts[start : start + batch], vectors[start : start + batch])

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """``get_many``."""
        with self._open(folder, self._dim) as cache:
            return cache.get_many(texts).vectors

    def scan(self, folder: Path, out: Half) -> None:
        """``chunks``."""
        with self._open(folder, out.shape[1]) as cache:
            start = 0
            for _, chunk in cache.chunks():
                out[start : start + len(chunk)] = chunk
                start += len(chunk)

    def _open(self, folder: Path, dim: int) -> EmbeddingCache:
        self._dim = dim
        return EmbeddingCache(folder, Fingerprint("bench", "0" * 64), dim)


class Lmdb:
    """LMDB, keys sorted within a transaction."""

    name, keyed, share = "lmdb", True, 1
    settings = "one transaction per commit, putmulti of sorted keys, metasync=False, writemap=True; get from buffers"

    def __init__(self) -> None:
        try:
            import lmdb
        except ImportError:
            raise NeedsExtra("lmdb", "bench") from None
        self._lmdb = lmdb

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """A transaction per batch."""
        with self._lmdb.open(str(folder), map_size=1 << 36, metasync=False, writemap=True) as env:
            for start in range(0, len(texts), batch):
                part = zip(texts[start : start + batch], vectors[start : start + batch], strict=True)
                items = sorted((_key(text), vector.tobytes()) for text, vector in part)
                with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                    cursor.putmulti(items)

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """Gets in the order of the keys, which is the order of the pages."""
        keys = [_key(text) for text in texts]
        with self._lmdb.open(str(folder), map_size=1 << 36, readonly=True) as env, env.begin(buffers=True) as view:
            get: Callable[[bytes], Any] = view.get
            out = np.empty((len(keys), len(get(keys[0])) // 2), np.float32)
            for i in sorted(range(len(keys)), key=keys.__getitem__):
                out[i] = np.frombuffer(get(keys[i]), np.float16)
        return out

    def scan(self, folder: Path, out: Half) -> None:
        """A cursor over all values."""
        with self._lmdb.open(str(folder), map_size=1 << 36, readonly=True) as env, env.begin(buffers=True) as view:
            for i, value in enumerate(view.cursor().iternext(keys=False, values=True)):
                out[i] = np.frombuffer(value, np.float16)


class Sqlite:
    """Blobs in an SQLite table."""

    name, keyed, share = "sqlite", True, 1
    settings = "WAL, synchronous=NORMAL, 16 KiB pages, 64 MiB cache, executemany of sorted keys; IN lists of 5,000"

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """A transaction per batch."""
        db = self._open(folder)
        db.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, value BLOB)")
        for start in range(0, len(texts), batch):
            part = zip(texts[start : start + batch], vectors[start : start + batch], strict=True)
            items = sorted((_key(text), vector.tobytes()) for text, vector in part)
            db.execute("BEGIN")
            db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", items)
            db.execute("COMMIT")
        db.close()

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """IN lists of sorted keys."""
        db = self._open(folder)
        places = {_key(text): i for i, text in enumerate(texts)}
        keys, out = sorted(places), np.empty((0, 0), np.float32)
        for start in range(0, len(keys), 5000):
            part = keys[start : start + 5000]
            query = f"SELECT key, value FROM vectors WHERE key IN ({','.join('?' * len(part))})"
            for key, value in db.execute(query, part):
                if not out.size:
                    out = np.empty((len(keys), len(value) // 2), np.float32)
                out[places[key]] = np.frombuffer(value, np.float16)
        db.close()
        return out

    def scan(self, folder: Path, out: Half) -> None:
        """All rows in the order of the table."""
        db = self._open(folder)
        for i, (value,) in enumerate(db.execute("SELECT value FROM vectors")):
            out[i] = np.frombuffer(value, np.float16)
        db.close()

    def _open(self, folder: Path) -> sqlite3.Connection:
        db = sqlite3.connect(folder / "vectors.sqlite", isolation_level=None)
        pragmas = ("page_size = 16384", "journal_mode = WAL", "synchronous = NORMAL", "cache_size = -65536")
        for pragma in (*pragmas, "wal_autocheckpoint = 2048", "mmap_size = 1073741824"):
            db.execute(f"PRAGMA {pragma}")
        return db


class PlainLmdb(Lmdb):
    """LMDB as it is mostly written: small transactions, a get per text in the caller's order."""

    name, settings = "lmdb, plain", f"a transaction per {BATCH} rows, put and get per text in the caller's order"

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """A put per row."""
        with self._lmdb.open(str(folder), map_size=1 << 36, metasync=False) as env:
            for start in range(0, len(texts), BATCH):
                with env.begin(write=True) as transaction:
                    for i in range(start, min(start + BATCH, len(texts))):
                        transaction.put(_key(texts[i]), vectors[i].tobytes())

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """A get per text."""
        with self._lmdb.open(str(folder), map_size=1 << 36, readonly=True) as env, env.begin() as view:
            return np.stack([np.frombuffer(view.get(_key(text)), np.float16) for text in texts]).astype(np.float32)


class PlainSqlite(Sqlite):
    """SQLite as it is mostly written: small transactions, a query per text in the caller's order."""

    name, settings = "sqlite, plain", f"WAL, a transaction per {BATCH} rows, a query per text in the caller's order"

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """A row at a time."""
        db = self._open(folder)
        db.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, value BLOB)")
        for start in range(0, len(texts), BATCH):
            db.execute("BEGIN")
            for i in range(start, min(start + BATCH, len(texts))):
                db.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (_key(texts[i]), vectors[i].tobytes()))
            db.execute("COMMIT")
        db.close()

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """A query per text."""
        db = self._open(folder)
        query = "SELECT value FROM vectors WHERE key = ?"
        found = [np.frombuffer(db.execute(query, (_key(text),)).fetchone()[0], np.float16) for text in texts]
        db.close()
        return np.stack(found).astype(np.float32)

    def _open(self, folder: Path) -> sqlite3.Connection:
        db = sqlite3.connect(folder / "vectors.sqlite", isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
            db.execute(f"PRAGMA {pragma}")
        return db


class Files:
    """One file per text."""

    name, keyed, share = "files", True, _FILES_SHARE
    settings = f"one file per text, not flushed; every {_FILES_SHARE}th row, times scaled"

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """A file per row."""
        for text, vector in zip(texts, vectors, strict=True):
            (folder / _key(text).hex()).write_bytes(vector.tobytes())

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """A file per row."""
        return np.stack(
            [np.frombuffer((folder / _key(text).hex()).read_bytes(), np.float16).astype(np.float32) for text in texts]
        )

    def scan(self, folder: Path, out: Half) -> None:
        """All files of the folder."""
        for i, path in enumerate(folder.iterdir()):
            out[i] = np.frombuffer(path.read_bytes(), np.float16)


class Arrow:
    """An Arrow IPC file with a key column, mapped into memory."""

    name, keyed, share = "arrow", True, 1
    settings = "one IPC file of record batches, no append afterwards; keys are loaded and sorted when opened"

    def __init__(self) -> None:
        try:
            import pyarrow
        except ImportError:
            raise NeedsExtra("pyarrow", "arrow") from None
        self._pa = pyarrow

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """A record batch per batch, one flush at the end."""
        pa, dim = self._pa, vectors.shape[1]
        schema = pa.schema([("key", pa.binary(16)), ("vector", pa.list_(pa.float16(), dim))])
        with (folder / "vectors.arrow").open("wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                for start in range(0, len(texts), batch):
                    keys = pa.array([_key(text) for text in texts[start : start + batch]], pa.binary(16))
                    flat = pa.array(vectors[start : start + batch].reshape(-1))
                    columns = [keys, pa.FixedSizeListArray.from_arrays(flat, dim)]
                    writer.write_batch(pa.record_batch(columns, schema=schema))
            file.flush()
            os.fsync(file.fileno())

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """Binary search in the sorted keys, then a gather from every record batch."""
        blocks = list(self._blocks(folder))
        keys = np.concatenate([keys for keys, _ in blocks])
        order = np.argsort(keys)
        wanted = np.frombuffer(b"".join(_key(text) for text in texts), "S16")
        place = order[np.searchsorted(keys, wanted, sorter=order)]
        out = np.empty((len(texts), blocks[0][1].shape[1]), np.float32)
        start = 0
        for _, vectors in blocks:
            here = np.flatnonzero((place >= start) & (place < start + len(vectors)))
            here = here[np.argsort(place[here])]
            out[here] = vectors[place[here] - start]
            start += len(vectors)
        return out

    def scan(self, folder: Path, out: Half) -> None:
        """All record batches."""
        start = 0
        for _, vectors in self._blocks(folder):
            out[start : start + len(vectors)] = vectors
            start += len(vectors)

    def _blocks(self, folder: Path) -> Iterator[tuple[NDArray[Any], Half]]:
        with self._pa.memory_map(str(folder / "vectors.arrow")) as source:
            reader = self._pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                block = reader.get_batch(number)
                vectors = block.column("vector").flatten().to_numpy().reshape(len(block), -1)
                yield np.frombuffer(block.column("key").buffers()[1], "S16")[: len(block)], vectors


class Memmap:
    """A plain memory map, which knows no keys: the bound of what a disk gives."""

    name, keyed, share = "memmap", False, 1
    settings = "numpy.save and numpy.load(mmap_mode='r'), rows by number: no keys"

    def write(self, folder: Path, texts: Sequence[str], vectors: Half, batch: int) -> None:
        """One file, flushed."""
        with (folder / "vectors.npy").open("wb") as file:
            np.save(file, vectors)
            file.flush()
            os.fsync(file.fileno())

    def read(self, folder: Path, texts: Sequence[str], rows: Sequence[int]) -> Floats:
        """Rows in the order of the file."""
        matrix, numbers = np.load(folder / "vectors.npy", mmap_mode="r"), np.asarray(rows)
        order = np.argsort(numbers)
        out = np.empty((len(rows), matrix.shape[1]), np.float32)
        out[order] = np.asarray(matrix)[numbers[order]]
        return out

    def scan(self, folder: Path, out: Half) -> None:
        """One copy."""
        out[:] = np.load(folder / "vectors.npy", mmap_mode="r")


# ------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Measured:
    """Medians per store, and the ratios that the targets are about."""

    stores: list[dict[str, Any]]  # {"name", "settings", "metrics": {...}}
    results: list[dict[str, Any]]  # {"name", "value", "unit", "against", "target", "ok"}
    data: str
    seed: int

    def seconds(self) -> list[dict[str, Any]]:
        """Wall seconds and megabytes of every store, for people."""
        columns = {"write": "write_wall_s", f"batches of {BATCH}": "batches_wall_s", "read cold": "read_cold_wall_s"}
        columns |= {"read warm": "read_warm_wall_s", "scan cold": "scan_cold_wall_s", "scan warm": "scan_warm_wall_s"}
        columns |= {"MB": "megabytes"}
        return [
            {"store": store["name"]} | {name: store["metrics"].get(key) for name, key in columns.items()}
            for store in self.stores
        ]

    def ratios(self) -> list[dict[str, Any]]:
        """The comparisons, with their targets, for people."""
        return [
            {"ratio": r["name"], "value": r["value"], "against": r["against"], "target": r["target"], "ok": r["ok"]}
            for r in self.results
            if r["against"]
        ]


def measure(rows: int, dim: int, repeats: int, seed: int, folder: Path | None, tick: Callable[[], None]) -> Measured:
    """Write, read and scan in every store, ``repeats`` times in turn.

    Args:
        rows: vectors.
        dim: components of each.
        repeats: rounds; medians are reported.
        seed: of the vectors and of which rows are read.
        folder: where to write; None for a temporary folder.
        tick: called after every store of every round.

    Raises:
        RunFailed: if a store returns a wrong vector.
    """
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((rows, dim), dtype=np.float32).astype(np.float16)
    words = np.array(
        ["the", "of", "latent", "text", "vector", "cache", "paper", "model", "token", "river", "market", "winter"]
    )
    texts = [f"{i} {' '.join(words[w])}" for i, w in enumerate(generator.integers(0, len(words), (rows, 20)))]
    chosen = generator.permutation(rows)[: min(READS, rows // 5)].tolist()
    stores: list[Store] = [Cache(), Lmdb(), Sqlite(), PlainLmdb(), PlainSqlite(), Files(), Arrow(), Memmap()]
    taken: dict[str, dict[str, list[float]]] = {store.name: {} for store in stores}
    with tempfile.TemporaryDirectory(dir=folder, prefix="cache-bench-") as temporary:
        for turn in range(repeats):
            for store in stores[turn % len(stores) :] + stores[: turn % len(stores)]:
                _measure_one(store, Path(temporary), texts, vectors, chosen, taken[store.name])
                tick()
    medians = {
        name: {key: statistics.median(values) for key, values in metrics.items()} for name, metrics in taken.items()
    }
    listed = [{"name": s.name, "settings": s.settings, "metrics": medians[s.name]} for s in stores]
    data = (
        f"{rows} random float16 vectors of {dim}, {len(chosen)} reads, {repeats} interleaved rounds, medians; "
        "cold: page cache dropped" + ("" if hasattr(os, "posix_fadvise") else " (not on this system)")
    )
    return Measured(listed, _results(medians), data, seed)


def _measure_one(
    store: Store, root: Path, texts: list[str], vectors: Half, chosen: list[int], taken: dict[str, list[float]]
) -> None:
    texts, vectors = texts[:: store.share], vectors[:: store.share]
    chosen = [row // store.share for row in chosen[:: store.share]]
    asked, out = [texts[row] for row in chosen], np.empty_like(vectors)
    out[:] = 0  # its memory is there before anything is timed: the first touch of a page costs more than the copy
    gc.collect()
    if hasattr(os, "sync"):
        os.sync()  # what the store before has left to write would be written in this one's time

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = work()
        taken.setdefault(f"{name}_wall_s", []).append((time.perf_counter() - wall) * store.share)
        taken.setdefault(f"{name}_cpu_s", []).append((time.process_time() - cpu) * store.share)
        return answer

    if store.name in ("latentlab", "lmdb", "sqlite"):
        folder = root / "batches"
        folder.mkdir()
        timed("batches", lambda: store.write(folder, texts, vectors, BATCH))
        shutil.rmtree(folder)
    folder = root / "bulk"
    folder.mkdir()
    timed("write", lambda: store.write(folder, texts, vectors, len(texts)))
    taken.setdefault("megabytes", []).append(_disk_bytes(folder) * store.share / 1e6)
    for state in ("cold", "warm"):
        if state == "cold":
            _drop_page_cache(folder)
        found = timed(f"read_{state}", lambda: store.read(folder, asked, chosen))
        if not np.array_equal(found, vectors[chosen].astype(np.float32)):
            raise RunFailed(f"{store.name} returned a wrong vector", folder)
    for state in ("cold", "warm"):
        if state == "cold":
            _drop_page_cache(folder)
        timed(f"scan_{state}", lambda: store.scan(folder, out))
        if np.sort(out[:, 0]).tobytes() != np.sort(vectors[:, 0]).tobytes():
            raise RunFailed(f"{store.name} did not return all vectors", folder)
    shutil.rmtree(folder)


def _disk_bytes(folder: Path) -> int:
    # Blocks, not lengths: LMDB's file is sparse, and small files fill whole blocks.
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _drop_page_cache(folder: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def _results(medians: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    ours, results = medians["latentlab"], []

    def add(name: str, value: float, unit: str, against: str | None = None, target: str | None = None) -> None:
        ok = None
        if target is not None:
            limit = float(target[2:])
            ok = value >= limit if target.startswith(">=") else value <= limit
        results.append({"name": name, "value": value, "unit": unit, "against": against, "target": target, "ok": ok})

    for name in ("write", "batches", "read_cold", "read_warm", "scan_cold", "scan_warm"):
        add(f"{name}_wall", ours[f"{name}_wall_s"], "s")
    targets = {"write_wall": ">=5", "read_cold_wall": ">=2"}
    for use, peers in (("", ("lmdb", "sqlite")), ("_plain", ("lmdb, plain", "sqlite, plain"))):
        for name in ("write", "batches", "read_cold", "read_warm"):
            for clock in ("wall", "cpu"):
                key = f"{name}_{clock}_s"
                peer = min(peers, key=lambda p: medians[p].get(key, float("inf")))
                if key in medians[peer]:
                    against = f"{peer} (the better of {' and '.join(peers)})"
                    target = targets.get(f"{name}_{clock}")
                    add(f"{name}_{clock}_speedup{use}", medians[peer][key] / ours[key], "x", against, target)
    for name in ("scan_cold", "scan_warm"):
        ratio = ours[f"{name}_wall_s"] / medians["memmap"][f"{name}_wall_s"]
        add(f"{name}_wall_slowdown", ratio, "x", "memmap", "<=2.5")
    add("size_ratio", ours["megabytes"] / medians["memmap"]["megabytes"], "x", "memmap")
    return results


def write(measured: Measured, path: Path) -> None:
    """Write the table from which a README is filled."""
    write_table(
        path,
        measured.stores,
        command=command_line(),
        data=measured.data,
        seeds=[measured.seed],
        results=measured.results,
    )
