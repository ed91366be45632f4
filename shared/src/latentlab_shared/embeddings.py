"""A cache from texts to vectors on disk, for many processes, that never answers with another model's vector.

``EmbeddingCache`` keeps one vector per text, ``TokenEmbeddingCache`` one matrix (T, D) per text. Both are opened with a
``Fingerprint`` of what computes the vectors; it stands in the cache and in every key.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latentlab_shared._fingerprint import KEY_BYTES, Fingerprint, KeyMaker, Keys, Text
from latentlab_shared._index import Index, compare_identity, ensure_identity, read_identity
from latentlab_shared._maintenance import Compacted, Fault, compact, orphans, verify
from latentlab_shared._shards import Codec, Rows
from latentlab_shared._store import Fetched, Ints, Shard, Store, distinct
from latentlab_shared.errors import UserError

__all__ = ["Compacted", "EmbeddingCache", "Fault", "Fingerprint", "Lookup", "Text", "TokenEmbeddingCache"]

Encode = Callable[[list[Any]], Any]
"""From a batch of texts to vectors (N, D), or, for token embeddings, to N matrices (T_i, D)."""

FORMAT = 1
_TOKEN_ENTRIES = 1024  # texts per piece of a cache of token embeddings


class Lookup(NamedTuple):
    """``vectors`` (N, D) float32, NaN where missing, and ``found`` (N,) bool."""

    vectors: NDArray[np.float32]
    found: NDArray[np.bool_]


class _Cache:
    """What the two caches share: identity, opening and closing, keys, and care of the files."""

    _TOKENS = False

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
        self._codec, self._key_maker = Codec(dim, dtype), KeyMaker(fingerprint)
        self._index = Index(self.dir / "index.sqlite", read_only)
        self._store = Store(self.dir, self._index, self._codec, self._TOKENS, shard_rows, max_bytes)
        ensure_identity(self._index, self.identity())

    def identity(self) -> dict[str, Any]:
        """What the cache holds: format, layout, dim, dtype and the fingerprint's fields."""
        return {
            "format": FORMAT,
            "layout": "tokens" if self._TOKENS else "vectors",
            "dim": self.dim,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint.as_dict(),
        }

    @classmethod
    def open(cls, dir: str | os.PathLike[str], *, read_only: bool = True) -> Self:
        """Open a cache as what it says it is, to look after it; to read vectors, give the fingerprint you expect.

        Raises:
            UserError: if there is no cache, or one of the other kind.
        """
        index = Index(Path(dir) / "index.sqlite", read_only=True)
        try:
            identity = read_identity(index)
        finally:
            index.close()
        layout = "tokens" if cls._TOKENS else "vectors"
        if identity.get("format") != FORMAT or identity.get("layout") != layout:
            raise UserError(
                f"format {identity.get('format')} of {identity.get('layout')}, not {FORMAT} of {layout}", dir
            )
        fingerprint = Fingerprint.from_dict(identity.get("fingerprint"))
        return cls(dir, fingerprint, identity.get("dim", 0), identity.get("dtype", ""), read_only=read_only)

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
        files = [path for path in self.dir.rglob("*") if path.is_file()]
        return {
            "dir": str(self.dir),
            "layout": "tokens" if self._TOKENS else "vectors",
            "dim": self.dim,
            "dtype": self.dtype,
            "entries": entries,
            "vectors": vectors,
            "pending": pending,
            "shards": shards,
            "dead": listed - live,
            "orphans": left_over,
            "bytes": sum(path.stat().st_size for path in files),
            "bytes_of_vectors": vectors * self._codec.row_bytes,
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

        return write_file(self.identity(), self._codec, self.encoded(), Path(path))

    def import_from(self, path: str | os.PathLike[str]) -> int:
        """Add the entries of a file written by ``export_to``; returns how many were new.

        Raises:
            UserError: if the file is damaged, or was made with another fingerprint, dim or dtype.
        """
        from latentlab_shared import _portable

        compare_identity(_portable.read_identity(Path(path)), self.identity(), path)
        return sum(self._add(*piece) for piece in _portable.read_pieces(Path(path), self._codec, self._TOKENS))

    def encoded(self, piece_bytes: int = 64 << 20) -> Iterator[tuple[Keys, Rows, Ints | None]]:
        """All entries as they are stored, in pieces: keys (N, 16), rows (R, row_bytes), rows per key (N,) or None.

        What comes is the state at the first step, whatever others do meanwhile. Pieces end where shards end.
        """
        with self._index.reading() as db:
            shards = self._store.shards(db)  # mapped now: compaction may remove the files
            live = dict(db.execute("SELECT id, live = entries FROM shards").fetchall())
            waiting = db.execute("SELECT key, value FROM pending ORDER BY id").fetchall()
            plan = [(shard, *self._live_entries(db, shard, bool(live[shard.id]))) for shard in shards]
        for shard, keys, chosen in plan:
            yield from self._pieces(shard, keys, chosen, max(1, piece_bytes // self._codec.row_bytes))
        if waiting:
            values = [self._store.unpack(value) for _, value in waiting]
            keys = np.frombuffer(b"".join(key for key, _ in waiting), np.uint8).reshape(-1, KEY_BYTES)
            yield keys, np.concatenate(values), np.array([len(v) for v in values]) if self._TOKENS else None

    def add_encoded(self, keys: Keys, rows: Rows, counts: Ints | None = None) -> int:
        """Store what ``encoded`` gave; returns how many keys were new."""
        return self._store.add(keys, rows, counts)

    def _add(self, keys: Keys, rows: Rows, counts: Ints | None = None) -> int:
        new = self._store.add(keys, rows, counts)
        if self.max_bytes is not None and new and self._store.wasteful():
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

    def _compute(
        self, texts: Sequence[Text], encode: Encode, batch_size: int, progress: bool, store: Callable[[Ints, Any], None]
    ) -> None:
        """Encode texts in batches of like length, the longest first, and hand each batch to ``store``."""
        # The longest batch comes first: if memory does not suffice, that shows at once.
        order = np.argsort([-len(text) for text in texts], kind="stable")
        with _bar(len(texts), progress) as advance:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                store(batch, encode([texts[i] for i in batch.tolist()]))
                advance(len(batch))


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
        fetched = self._store.fetch(self.keys(texts))
        vectors = self._codec.decode(fetched.rows)
        if not fetched.found.all():
            vectors[~fetched.found] = np.nan
        return Lookup(vectors, fetched.found)

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
        rows = self._codec.encode(vectors)
        if len(rows) != len(texts):
            raise UserError(f"{len(texts)} texts came with {len(rows)} vectors", fix="Give one vector per text")
        return self._add(self.keys(texts), rows)

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
        fetched = self._store.fetch(keys)
        if fetched.found.all():
            return self._codec.decode(fetched.rows)
        rows = fetched.rows
        missing = np.flatnonzero(~fetched.found)
        first, inverse = _unique(keys[missing])
        wanted = missing[first]
        computed = np.zeros((len(wanted), self._codec.row_bytes), np.uint8)

        def store(batch: Ints, vectors: Any) -> None:
            computed[batch] = _of_batch(self._codec.encode(vectors), len(batch))
            self._add(keys[wanted[batch]], computed[batch])

        self._compute([texts[i] for i in wanted.tolist()], encode, batch_size, progress, store)
        rows[missing] = computed[inverse]
        return self._codec.decode(rows)

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
                return self._codec.native(chunks[0])
            return self._codec.native(np.concatenate(chunks)) if chunks else self._codec.native(self._no_rows())
        keys = self.keys(texts)
        with self._index.reading() as db:
            number, row = self._store.find(db, keys)
            if len(keys) and number[0] > 0 and (number == number[0]).all() and (np.diff(row) == 1).all():
                matrix = self._store.shard(db, int(number[0])).matrix
                if row[0] >= 0 and row[-1] < len(matrix):
                    return self._codec.native(matrix[row[0] : row[-1] + 1])
        fetched = self._store.fetch(keys)
        if not fetched.found.all():
            missing = np.flatnonzero(~fetched.found)
            raise UserError(
                f"{len(missing)} of {len(keys)} texts are not in the cache (the first is number {missing[0]})",
                self.dir,
                "Call get_or_compute first",
            )
        return self._codec.native(fetched.rows)

    def chunks(self) -> Iterator[tuple[Keys, NDArray[Any]]]:
        """All vectors in pieces of at most 64 MiB: keys (n, 16) and vectors (n, D) as in ``as_matrix``."""
        for keys, rows, _ in self.encoded():
            yield keys, self._codec.native(rows)

    def _no_rows(self) -> Rows:
        return np.zeros((0, self._codec.row_bytes), np.uint8)


class TokenEmbeddingCache(_Cache):
    """Texts to matrices (T, D) on disk, one vector per token, with T ≥ 1 free; else as ``EmbeddingCache``.

    ``shard_rows`` and ``max_bytes`` count token vectors.
    """

    _TOKENS = True

    def get_many(self, texts: Sequence[Text]) -> list[NDArray[np.float32] | None]:
        """Matrices (T_i, D) float32 of N texts, in their order; None where missing."""
        fetched = self._store.fetch(self.keys(texts))
        return [m if found else None for m, found in zip(self._split(fetched), fetched.found.tolist(), strict=True)]

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
        rows, counts = self._encoded(matrices)
        if len(counts) != len(texts):
            raise UserError(f"{len(texts)} texts came with {len(counts)} matrices", fix="Give one matrix per text")
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
        fetched = self._store.fetch(keys)
        matrices = self._split(fetched)
        missing = np.flatnonzero(~fetched.found)
        first, inverse = _unique(keys[missing])
        wanted = missing[first]
        computed: list[NDArray[np.float32]] = [np.zeros((0, self.dim), np.float32)] * len(wanted)

        def store(batch: Ints, found: Any) -> None:
            rows, counts = self._encoded(_of_batch(found, len(batch)))
            self._add(keys[wanted[batch]], rows, counts)
            for at, matrix in zip(batch.tolist(), self._split(Fetched(rows, batch >= 0, counts)), strict=True):
                computed[at] = matrix

        self._compute([texts[i] for i in wanted.tolist()], encode, batch_size, progress, store)
        for at, source in zip(missing.tolist(), inverse.tolist(), strict=True):
            matrices[at] = computed[source]
        return matrices

    def chunks(self) -> Iterator[tuple[Keys, list[NDArray[np.float32]]]]:
        """All entries in pieces: keys (n, 16) and n matrices (T_i, D)."""
        for keys, rows, counts in self.encoded():
            yield keys, self._split(Fetched(rows, np.ones(len(keys), bool), counts))

    def _encoded(self, matrices: Sequence[object]) -> tuple[Rows, Ints]:
        encoded = [self._codec.encode(matrix) for matrix in matrices]
        counts = np.array([len(rows) for rows in encoded], dtype=np.int64)
        if not counts.all():
            raise UserError(f"matrix {int(np.argmin(counts))} has no rows", fix="Every text needs at least one token")
        return (np.concatenate(encoded) if encoded else np.zeros((0, self._codec.row_bytes), np.uint8)), counts

    def _split(self, fetched: Fetched) -> list[NDArray[np.float32]]:
        assert fetched.counts is not None
        return np.split(self._codec.decode(fetched.rows), np.cumsum(fetched.counts)[:-1]) if len(fetched.counts) else []


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


def _of_batch(found: Any, size: int) -> Any:
    if len(found) != size:
        raise UserError(
            f"the encoder returned {len(found)} results for {size} texts", fix="Return one per text, in order"
        )
    return found


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal."""
    if not wanted or not total or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda amount: bar.advance(task, amount)
