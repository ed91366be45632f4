"""A cache from texts to vectors on disk, for many processes, that never answers with another model's vector.

``EmbeddingCache`` keeps one vector per text, ``TokenEmbeddingCache`` one matrix (T, D) per text. Both are opened with a
``Fingerprint`` of what computes the vectors; it stands in the cache and in every key.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latentlab_shared._batches import Encode, encode_matrices, encode_vectors, in_batches
from latentlab_shared._fingerprint import FORMAT, KEY_BYTES, Fingerprint, KeyMaker, Keys, Text, identity_of
from latentlab_shared._index import Index, compare_identity, ensure_identity, read_identity
from latentlab_shared._maintenance import Compacted, Fault, compact, orphans, size_of, verify
from latentlab_shared._shards import Codec, Rows
from latentlab_shared._store import Ints, Shard, Store, distinct
from latentlab_shared.errors import UserError

__all__ = [
    "Compacted",
    "EmbeddingCache",
    "Fault",
    "Fingerprint",
    "Lookup",
    "Text",
    "TokenEmbeddingCache",
    "cache_of",
    "open_cache",
]

_TOKEN_ENTRIES = 1024  # texts per piece of a cache of token embeddings


class Lookup(NamedTuple):
    """``vectors`` (N, D) float32, NaN where missing, and ``found`` (N,) bool."""

    vectors: NDArray[np.float32]
    found: NDArray[np.bool_]


class _Cache:
    """What the two caches share: identity, opening and closing, keys, and care of the files."""

    tokens = False

    def __init__(
        self,
        dir: str | os.PathLike[str],
        fingerprint: Fingerprint,
        dim: int,
        dtype: str = "float16",
        *,
        read_only: bool = False,
        max_bytes: int | None = None,
        shard_rows: int = 4096,
    ) -> None:
        if not isinstance(fingerprint, Fingerprint):
            raise UserError(
                "not a Fingerprint", "fingerprint", "Give what computes the vectors, with its weights' hash"
            )
        if max_bytes is not None and max_bytes < 1:
            raise UserError(f"{max_bytes} is no limit", "max_bytes", "Give a number of bytes, or None")
        if shard_rows < 1:
            raise UserError(f"{shard_rows} is no number of rows", "shard_rows", "Give a positive integer")
        self.dir, self.fingerprint, self.dim, self.dtype = Path(dir), fingerprint, dim, dtype
        self.read_only, self.max_bytes = read_only, max_bytes
        self.codec, self._key_maker = Codec(dim, dtype), KeyMaker(fingerprint)
        self._index = Index(self.dir / "index.sqlite", read_only)
        self._store = Store(self.dir, self._index, self.codec, self.tokens, shard_rows, max_bytes)
        ensure_identity(self._index, self.identity())

    def identity(self) -> dict[str, Any]:
        """What the cache holds: format, layout, dim, dtype and the fingerprint's fields."""
        return identity_of(self.fingerprint, self.dim, self.dtype, self.tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connection. A closed cache opens again when it is next used."""
        self._index.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process (a data loader's worker, say) opens the folder itself.
        shard_rows = self._store.shard_rows
        return _reopen, (
            type(self),
            self.dir,
            self.fingerprint,
            self.dim,
            self.dtype,
            self.read_only,
            self.max_bytes,
            shard_rows,
        )

    def __len__(self) -> int:
        with self._index.reading() as db:
            return self._store.entries(db)

    def __contains__(self, text: Text) -> bool:
        with self._index.reading() as db:
            return bool(self._store.find(db, self.keys([text])).shard[0] >= 0)

    def keys(self, texts: Sequence[Text]) -> Keys:
        """Keys of texts, (N, 16) uint8: BLAKE2b of the fingerprint's digest and the text in NFC.

        Raises:
            UserError: if one is neither a text nor a sequence of integers.
        """
        return self._key_maker(texts)

    def stats(self) -> dict[str, Any]:
        """What the cache holds: entries, vectors, shards, bytes, and its identity."""
        with self._index.reading() as db:
            entries = self._store.entries(db)
            (pending,) = db.execute("SELECT count(*) FROM pending").fetchone()
            (vectors,) = db.execute("SELECT live FROM state").fetchone()
            sums = "SELECT count(*), coalesce(sum(entries), 0), coalesce(sum(live), 0) FROM shards"
            shards, listed, live = db.execute(sums).fetchone()
            left_over = len(orphans(self._store, db))
        return {
            "dir": str(self.dir),
            "layout": "tokens" if self.tokens else "vectors",
            "dim": self.dim,
            "dtype": self.dtype,
            "entries": entries,
            "vectors": vectors,
            "pending": pending,
            "shards": shards,
            "dead": listed - live,
            "orphans": left_over,
            "bytes": sum(map(size_of, self.dir.rglob("*"))),
            "bytes_of_vectors": vectors * self.codec.row_bytes,
            "max_bytes": self.max_bytes,
            "fingerprint": self.fingerprint.as_dict(),
            "digest": self.fingerprint.digest().hex(),
        }

    def verify(self, repair: bool = False) -> list[Fault]:
        """Check the index, and every shard's size, type, checksum and values.

        Args:
            repair: drop what is bad, so that it is computed again.

        Returns:
            The faults found; empty if all is well.
        """
        return verify(self._store, repair)

    def compact(self) -> Compacted:
        """Merge shards (up to 1 GiB each), drop dead rows, remove left-over files. Readers may go on meanwhile."""
        return compact(self._store)

    def export_to(self, path: str | os.PathLike[str]) -> int:
        """Write all entries to a ``.parquet`` or ``.safetensors`` file; returns how many.

        The file holds keys, vectors as stored, and the fingerprint. A safetensors file is built in memory.
        """
        from latentlab_shared._portable import write_file

        return write_file(self.identity(), self.codec, self.encoded(), Path(path))

    def import_from(self, path: str | os.PathLike[str]) -> int:
        """Add the entries of a file written by ``export_to``; returns how many were new.

        Raises:
            UserError: if the file is damaged, or was made with another fingerprint, dim or dtype.
        """
        from latentlab_shared import _portable

        compare_identity(_portable.read_identity(Path(path)), self.identity(), path)
        return sum(self._add(*piece) for piece in _portable.read_pieces(Path(path), self.codec, self.tokens))

    def encoded(self, piece_bytes: int = 64 << 20) -> Iterator[tuple[Keys, Rows, Ints | None]]:
        """All entries as they are stored, in pieces: keys (N, 16), rows (R, row_bytes), rows per key (N,) or None.

        What comes is the state at the first step, whatever others do meanwhile. Pieces end where shards end.
        """

        def look(db: sqlite3.Connection) -> tuple[list[tuple[Shard, Keys, Ints | None]], list[tuple[bytes, bytes]]]:
            live = dict(db.execute("SELECT id, live = entries FROM shards").fetchall())
            shards = self._store.shards(db)  # mapped now: compaction may remove the files
            plan = [(shard, *self._live_entries(db, shard, bool(live[shard.id]))) for shard in shards]
            return plan, db.execute("SELECT key, value FROM pending ORDER BY id").fetchall()

        plan, waiting = self._store.looking(look)
        for shard, keys, chosen in plan:
            yield from self._pieces(shard, keys, chosen, max(1, piece_bytes // self.codec.row_bytes))
        if waiting:
            values = [self._store.unpack(value) for _, value in waiting]
            keys = np.frombuffer(b"".join(key for key, _ in waiting), np.uint8).reshape(-1, KEY_BYTES)
            yield keys, np.concatenate(values), np.array([len(v) for v in values]) if self.tokens else None

    def add_encoded(self, keys: Keys, rows: Rows, counts: Ints | None = None) -> int:
        """Store what ``encoded`` gave; returns how many keys were new."""
        return self._store.add(keys, rows, counts)

    def _add(self, keys: Keys, rows: Rows, counts: Ints | None = None) -> int:
        new = self._store.add(keys, rows, counts)
        if new and (self._store.crowded() or (self.max_bytes is not None and self._store.wasteful())):
            compact(self._store)
        return new

    def _live_entries(self, db: Any, shard: Shard, all_live: bool) -> tuple[Keys, Ints | None]:
        blob = db.execute("SELECT keys FROM shards WHERE id = ?", (shard.id,)).fetchone()[0]
        keys = np.frombuffer(blob, np.uint8).reshape(-1, KEY_BYTES)
        if all_live:
            return keys, None
        chosen = np.flatnonzero(self._store.live(db, shard.id, keys))
        return keys[chosen], chosen

    def _pieces(
        self, shard: Shard, keys: Keys, chosen: Ints | None, step: int
    ) -> Iterator[tuple[Keys, Rows, Ints | None]]:
        if shard.starts is None:
            for start in range(0, len(keys), step):
                piece = slice(start, start + step)
                yield keys[piece], shard.matrix[piece if chosen is None else chosen[piece]], None
            return
        entries = np.arange(len(keys)) if chosen is None else chosen
        for start in range(0, len(entries), _TOKEN_ENTRIES):
            part = entries[start : start + _TOKEN_ENTRIES]
            rows = [np.asarray(shard.matrix)[shard.starts[e] : shard.starts[e + 1]] for e in part.tolist()]
            yield keys[start : start + _TOKEN_ENTRIES], np.concatenate(rows), np.diff(shard.starts)[part]


class EmbeddingCache(_Cache):
    """Texts to vectors (D,) on disk.

    Any number of processes may read and write one cache at the same time, and any of them may be killed. A text keeps
    the first vector that was stored for it. Objects may be used from several threads, after ``fork``, and be pickled.

    Args:
        dir: the cache's folder, made if absent; on a local disk.
        fingerprint: what computes the vectors.
        dim: components of a vector, D.
        dtype: how they are stored: ``float16``, ``float32``, or ``int8`` with one scale per row.
        read_only: never write; also works where the folder cannot be written.
        max_bytes: the most that vectors may take; beyond it the least recently used leave. On disk are at most twice as
            many bytes, and the put in hand. None for no limit.
        shard_rows: a put of so many vectors, or so many small puts, become a shard.

    Raises:
        UserError: if the folder holds a cache of something else (the message names the differing fields), is damaged,
            or cannot be written.
    """

    def get_many(self, texts: Sequence[Text]) -> Lookup:
        """Look texts up.

        Args:
            texts: N texts; one may come twice.

        Returns:
            Vectors (N, D) float32 in the order of the texts, NaN where missing, and the mask of those found.
        """
        fetched = self._store.fetch(self.keys(texts), decode=True)
        return Lookup(fetched.rows, fetched.found)

    def put_many(self, texts: Sequence[Text], vectors: object) -> int:
        """Store vectors; a text that is already there keeps its own.

        Args:
            texts: N texts.
            vectors: (N, D), finite, in any float type.

        Returns:
            How many texts are new.

        Raises:
            UserError: if the shapes do not fit or a value is not finite; nothing is stored.
        """
        return self._add(self.keys(texts), encode_vectors(self.codec, vectors, len(texts)))

    def get_or_compute(
        self, texts: Sequence[Text], encode: Encode, *, batch_size: int = 64, progress: bool = True
    ) -> NDArray[np.float32]:
        """Vectors of all texts; what is missing is encoded, once each, and stored batch by batch.

        Args:
            texts: N texts, in any order, with repetitions.
            encode: from a list of texts to (n, D): an array, or a torch tensor on any device.
            batch_size: texts per call of ``encode``; texts of like length come together.
            progress: show a bar on stderr when that is a terminal.

        Returns:
            (N, D) float32 in the order of ``texts``: the same bits now and when read later.

        Raises:
            UserError: if ``encode`` returns another shape or values that are not finite. Batches before it are kept.
        """
        keys = self.keys(texts)
        vectors, found, _ = self._store.fetch(keys, decode=True)
        missing = np.flatnonzero(~found)
        first, inverse = _unique(keys[missing])
        wanted = missing[first]
        computed = np.zeros((len(wanted), self.dim), np.float32)

        def store(batch: Ints, answer: Any) -> None:
            rows = encode_vectors(self.codec, answer, len(batch))
            self._add(keys[wanted[batch]], rows)
            computed[batch] = self.codec.decode(rows)  # not the answer itself: later reads give the stored bits

        in_batches([texts[i] for i in wanted.tolist()], encode, batch_size, progress, store)
        vectors[missing] = computed[inverse]
        return vectors

    def as_matrix(self, texts: Sequence[Text] | None = None) -> NDArray[Any]:
        """Vectors as one matrix in the stored type (float32 for int8).

        Args:
            texts: N texts, all of them in the cache; None for all vectors, in the order they were stored.

        Returns:
            (N, D): a read-only memory map where the rows lie side by side in one shard, else an array in memory.

        Raises:
            UserError: if a text is not in the cache.
        """
        if texts is None:
            chunks = [rows for _, rows, _ in self.encoded(piece_bytes=sys.maxsize)]
            if len(chunks) == 1:
                return self.codec.native(chunks[0])
            return self.codec.native(np.concatenate(chunks)) if chunks else self.codec.native(self._no_rows())
        keys = self.keys(texts)

        def look(db: sqlite3.Connection) -> Rows | None:
            number, row = self._store.find(db, keys)
            if len(keys) and number[0] > 0 and (number == number[0]).all() and (np.diff(row) == 1).all():
                matrix = self._store.shard(db, int(number[0])).matrix
                if row[0] >= 0 and row[-1] < len(matrix):
                    return matrix[row[0] : row[-1] + 1]
            return None

        side_by_side = self._store.looking(look)
        if side_by_side is not None:
            return self.codec.native(side_by_side)
        fetched = self._store.fetch(keys, decode=False)
        if not fetched.found.all():
            missing = np.flatnonzero(~fetched.found)
            raise UserError(
                f"{len(missing)} of {len(keys)} texts are not in the cache (the first is number {missing[0]})",
                self.dir,
                "Call get_or_compute first",
            )
        return self.codec.native(fetched.rows)

    def chunks(self) -> Iterator[tuple[Keys, NDArray[Any]]]:
        """All vectors in pieces of at most 64 MiB: keys (n, 16) and vectors (n, D) as in ``as_matrix``."""
        for keys, rows, _ in self.encoded():
            yield keys, self.codec.native(rows)

    def _no_rows(self) -> Rows:
        return np.zeros((0, self.codec.row_bytes), np.uint8)


class TokenEmbeddingCache(_Cache):
    """Texts to matrices (T, D) on disk, one vector per token, with T ≥ 1 free; else as ``EmbeddingCache``.

    ``shard_rows`` and ``max_bytes`` count token vectors.
    """

    tokens = True

    def get_many(self, texts: Sequence[Text]) -> list[NDArray[np.float32] | None]:
        """Matrices (T_i, D) float32 of N texts, in their order; None where missing."""
        fetched = self._store.fetch(self.keys(texts), decode=True)
        return [
            m if found else None
            for m, found in zip(_split(fetched.rows, fetched.counts), fetched.found.tolist(), strict=True)
        ]

    def put_many(self, texts: Sequence[Text], matrices: Sequence[object]) -> int:
        """Store matrices; a text that is already there keeps its own.

        Args:
            texts: N texts.
            matrices: N arrays (T_i, D), finite, T_i ≥ 1.

        Returns:
            How many texts are new.

        Raises:
            UserError: if the shapes do not fit or a value is not finite; nothing is stored.
        """
        rows, counts = encode_matrices(self.codec, matrices, len(texts))
        return self._add(self.keys(texts), rows, counts)

    def get_or_compute(
        self, texts: Sequence[Text], encode: Encode, *, batch_size: int = 64, progress: bool = True
    ) -> list[NDArray[np.float32]]:
        """Matrices (T_i, D) float32 of all texts, in their order; what is missing is encoded once and stored.

        Args:
            texts: N texts, in any order, with repetitions.
            encode: from a list of n texts to n matrices (T_i, D).
            batch_size: texts per call of ``encode``; texts of like length come together.
            progress: show a bar on stderr when that is a terminal.
        """
        keys = self.keys(texts)
        fetched = self._store.fetch(keys, decode=True)
        matrices = _split(fetched.rows, fetched.counts)
        missing = np.flatnonzero(~fetched.found)
        first, inverse = _unique(keys[missing])
        wanted = missing[first]
        computed: list[NDArray[np.float32]] = [np.zeros((0, self.dim), np.float32)] * len(wanted)

        def store(batch: Ints, found: Any) -> None:
            rows, counts = encode_matrices(self.codec, found, len(batch))
            self._add(keys[wanted[batch]], rows, counts)
            for at, matrix in zip(batch.tolist(), _split(self.codec.decode(rows), counts), strict=True):
                computed[at] = matrix

        in_batches([texts[i] for i in wanted.tolist()], encode, batch_size, progress, store)
        for at, source in zip(missing.tolist(), inverse.tolist(), strict=True):
            matrices[at] = computed[source]
        return matrices

    def chunks(self) -> Iterator[tuple[Keys, list[NDArray[np.float32]]]]:
        """All entries in pieces: keys (n, 16) and n matrices (T_i, D)."""
        for keys, rows, counts in self.encoded():
            yield keys, _split(self.codec.decode(rows), counts)


def open_cache(dir: str | os.PathLike[str], *, read_only: bool = True) -> EmbeddingCache | TokenEmbeddingCache:
    """Open a cache as what it says it is, to look after it; to use its vectors, name the fingerprint you expect.

    Raises:
        UserError: if there is no cache, or a damaged one.
    """
    index = Index(Path(dir) / "index.sqlite", read_only=True)
    try:
        identity = read_identity(index)
    finally:
        index.close()
    return cache_of(identity, dir, read_only=read_only)


def cache_of(
    identity: Mapping[str, Any], dir: str | os.PathLike[str], *, read_only: bool = False
) -> EmbeddingCache | TokenEmbeddingCache:
    """A cache in ``dir`` for what an identity describes."""
    kinds: dict[Any, type[EmbeddingCache] | type[TokenEmbeddingCache]] = {
        "vectors": EmbeddingCache,
        "tokens": TokenEmbeddingCache,
    }
    kind = kinds.get(str(identity.get("layout")))
    if kind is None or identity.get("format") != FORMAT:
        raise UserError(
            f"format {identity.get('format')} of {identity.get('layout')} is unknown", dir, "Update the package"
        )
    fingerprint = Fingerprint.from_dict(identity.get("fingerprint"))
    return kind(dir, fingerprint, identity.get("dim", 0), identity.get("dtype", ""), read_only=read_only)


def _split(vectors: NDArray[np.float32], counts: Ints | None) -> list[NDArray[np.float32]]:
    """Cut the vectors (R, D) of all texts into one matrix (T_i, D) per text."""
    assert counts is not None
    return np.split(vectors, np.cumsum(counts)[:-1]) if len(counts) else []


def _reopen(
    kind: type[_Cache],
    dir: Path,
    fingerprint: Fingerprint,
    dim: int,
    dtype: str,
    read_only: bool,
    max_bytes: int | None,
    shard_rows: int,
) -> _Cache:
    return kind(dir, fingerprint, dim, dtype, read_only=read_only, max_bytes=max_bytes, shard_rows=shard_rows)


def _unique(keys: Keys) -> tuple[Ints, Ints]:
    """First occurrences of keys, in order (M,), and for every key the place of its own among them (N,)."""
    first = distinct(keys)
    if len(first) == len(keys):
        return first, np.arange(len(keys))
    place = {keys[i].tobytes(): n for n, i in enumerate(first.tolist())}
    return first, np.array([place[key.tobytes()] for key in keys])
