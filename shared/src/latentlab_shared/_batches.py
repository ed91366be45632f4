"""From texts to encoded rows: batches of like length, checked answers, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from latentlab_shared._fingerprint import Text
from latentlab_shared._shards import Codec, Rows
from latentlab_shared._store import Ints
from latentlab_shared.errors import UserError

Encode = Callable[[list[Any]], Any]
"""From a batch of texts to vectors (N, D), or, for token embeddings, to N matrices (T_i, D)."""


def in_batches(
    texts: Sequence[Text], encode: Encode, batch_size: int, progress: bool, store: Callable[[Ints, Any], None]
) -> None:
    """Encode texts in batches of like length; ``store`` gets the places of a batch (n,) and the encoder's answer."""
    if batch_size < 1:
        raise UserError(f"{batch_size} is no number of texts", "batch_size", "Give a positive integer")
    # The longest batch comes first: if memory does not suffice, that shows at once.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    with _bar(len(texts), progress) as advance:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            store(batch, encode([texts[i] for i in batch.tolist()]))
            advance(len(batch))


def encode_all(
    codec: Codec, texts: Sequence[Text], encode: Encode, tokens: bool, batch_size: int, progress: bool
) -> tuple[Rows, Ints | None]:
    """Encode texts: rows (R, row_bytes) in their order and, with ``tokens``, the rows of each text (N,)."""
    parts: list[Rows] = [np.zeros((0, codec.row_bytes), np.uint8)] * len(texts)

    def store(batch: Ints, answer: Any) -> None:
        if tokens:
            rows, counts = encode_matrices(codec, answer, len(batch))
            split = np.split(rows, np.cumsum(counts)[:-1])
        else:
            split = list(encode_vectors(codec, answer, len(batch))[:, None])
        for at, part in zip(batch.tolist(), split, strict=True):
            parts[at] = part

    in_batches(texts, encode, batch_size, progress, store)
    joined = np.concatenate(parts) if parts else np.zeros((0, codec.row_bytes), np.uint8)
    return joined, np.array([len(part) for part in parts], dtype=np.int64) if tokens else None


def encode_vectors(codec: Codec, vectors: Any, texts: int) -> Rows:
    """Rows (texts, row_bytes) of one vector per text.

    Raises:
        UserError: if there are more or fewer, or one is not a finite vector of the cache's dim.
    """
    rows = codec.encode(vectors)
    if len(rows) != texts:
        raise UserError(f"{texts} texts came with {len(rows)} vectors", fix="Give one vector per text, in order")
    return rows


def encode_matrices(codec: Codec, matrices: Sequence[Any], texts: int) -> tuple[Rows, Ints]:
    """Rows (R, row_bytes) of one matrix (T_i, D) per text, and all T_i (texts,).

    Raises:
        UserError: if there are more or fewer, or one has no rows, another width or values that are not finite.
    """
    encoded = [codec.encode(matrix) for matrix in matrices]
    if len(encoded) != texts:
        raise UserError(f"{texts} texts came with {len(encoded)} matrices", fix="Give one matrix per text, in order")
    counts = np.array([len(rows) for rows in encoded], dtype=np.int64)
    if not counts.all():
        raise UserError(f"matrix {int(np.argmin(counts))} has no rows", fix="Every text needs at least one token")
    return (np.concatenate(encoded) if encoded else np.zeros((0, codec.row_bytes), np.uint8)), counts


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
