"""Examples as ids, encoded once; batches of them in an order that a seed and an epoch determine; as ``tf.data``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from latentlab_shared.files import ZIP_ERRORS, atomic_path, to_json
from seq2seq_keras.config import DataConfig
from seq2seq_keras.data.labels import create_pseudo_summary
from seq2seq_keras.data.readers import digest
from seq2seq_keras.data.text import Splitter, make_splitter, source_tokens, words
from seq2seq_keras.data.types import Batch, Example, Ids
from seq2seq_keras.data.vocabulary import EOS, SOS, UNK, Vocabulary

_POOL = 50  # batches among which examples of like length are put together


def with_labels(examples: Sequence[Example], config: DataConfig) -> list[Example]:
    """The examples, those without a summary with a pseudo-summary."""
    split = make_splitter(config.splitter)
    exact = config.labels == "seed_exact"
    return [
        e
        if e.summary
        else replace(
            e,
            summary=create_pseudo_summary(e.text, seed_exact=exact, scoring=config.label_scoring, split=split),
            pseudo=True,
        )
        for e in examples
    ]


def target_tokens(summary: str, config: DataConfig) -> list[str]:
    """The words of a summary that a model can be asked for: the first ``max_target - 2``."""
    return words(summary)[: config.max_target - 2]


@dataclass(frozen=True)
class Source:
    """One text as the encoder reads it.

    Attributes:
        tokens: its words and sentence ends, at most ``max_source``.
        ids: (S,) vocabulary ids.
        ext: (S,) extended ids.
        unknown: the words behind V, V + 1, ….
    """

    tokens: list[str]
    ids: list[int]
    ext: list[int]
    unknown: list[str]


def encode_source(text: str, vocabulary: Vocabulary, config: DataConfig, split: Splitter) -> Source:
    """A text as ids; it may be empty."""
    tokens = source_tokens(text, split)[: config.max_source]
    ext, unknown = vocabulary.extend(tokens)
    return Source(tokens, [i if i < len(vocabulary) else UNK for i in ext], ext, unknown)


def pad(rows: Sequence[Sequence[int]], width: int | None = None) -> Ids:
    """(B, width) ids, padded on the right with 0; ``width`` is the longest row's by default, at least 1."""
    width = width or max((len(row) for row in rows), default=1) or 1
    padded = np.zeros((len(rows), width), np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


@dataclass(frozen=True)
class Encoded:
    """All pairs of one part, padded once.

    Attributes:
        source_ext: (N, S) extended ids of the texts.
        target: (N, T) extended ids of the summaries, without start and end.
        vocabulary_size: V.
    """

    source_ext: Ids
    target: Ids
    vocabulary_size: int

    def __len__(self) -> int:
        return len(self.source_ext)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of some rows, cut to its longest source and target."""
        ext, target = self.source_ext[rows], self.target[rows]
        ext = ext[:, : max(1, int((ext != 0).sum(1).max()))]
        length = (target != 0).sum(1)
        out = np.zeros((len(rows), int(length.max()) + 1), np.int32)
        out[:, :-1] = target[:, : int(length.max())]
        out[np.arange(len(rows)), length] = EOS
        into = np.zeros_like(out)
        into[:, 0] = SOS
        into[:, 1:] = np.where(out[:, 1:] != 0, self._known(out[:, :-1]), 0)
        return Batch(self._known(ext), ext, into, out)

    def _known(self, ids: Ids) -> Ids:
        return np.where(ids < self.vocabulary_size, ids, UNK).astype(np.int32)


def encode_pairs(
    examples: Sequence[Example], vocabulary: Vocabulary, config: DataConfig, cache: Path | None = None
) -> Encoded:
    """Encode texts with their summaries; pairs without a word on either side are left out.

    Args:
        examples: with summaries.
        vocabulary: of both sides.
        config: lengths and splitter.
        cache: folder in which the arrays are kept, under a name that text, vocabulary and lengths determine.

    Raises:
        UserError: if no pair is left.
    """
    file = None
    if cache is not None:
        key = to_json([digest(list(examples)), vocabulary.words, config.max_source, config.max_target, config.splitter])
        file = cache / f"encoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        if file.is_file():
            # A damaged one is made again.
            with suppress(*ZIP_ERRORS), np.load(file, allow_pickle=False) as held:
                return Encoded(held["source_ext"], held["target"], len(vocabulary))
    split, rows = make_splitter(config.splitter), []
    for example in examples:
        source = encode_source(example.text, vocabulary, config, split)
        target = vocabulary.encode_target(target_tokens(example.summary, config), source.unknown)
        if source.ids and target:
            rows.append((source.ext, target))
    if not rows:
        raise UserError("no example has words in both its text and its summary", "data")
    encoded = Encoded(pad([ext for ext, _ in rows]), pad([target for _, target in rows]), len(vocabulary))
    if file is not None:
        with atomic_path(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, source_ext=encoded.source_ext, target=encoded.target)
    return encoded


def build_vocabulary(examples: Sequence[Example], config: DataConfig) -> Vocabulary:
    """The vocabulary of texts and summaries together."""
    split = make_splitter(config.splitter)
    return Vocabulary.build(
        (tokens for e in examples for tokens in (source_tokens(e.text, split), words(e.summary))),
        config.vocabulary_size,
        config.min_count,
    )


def batch_rows(encoded: Encoded, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The rows of each batch of one epoch: shuffled, and of like length within a pool, so that little is padding."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(encoded))
    lengths = (encoded.source_ext != 0).sum(1)
    batches = []
    for at in range(0, len(order), batch_size * _POOL):
        pool = order[at : at + batch_size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def in_order(encoded: Encoded, batch_size: int) -> Iterator[Batch]:
    """All rows, each once, in their order."""
    rows = np.arange(len(encoded))
    for at in range(0, len(rows), batch_size):
        yield encoded.batch(rows[at : at + batch_size])


def dataset(encoded: Encoded, rows: Sequence[NDArray[np.int64]], *, shard: tuple[int, int] = (0, 1)) -> Any:
    """A prefetching ``tf.data.Dataset`` of batches.

    Args:
        encoded: the pairs.
        rows: of each batch.
        shard: index and number of the workers; each takes every n-th row of every batch.
    """
    import tensorflow as tf

    index, count = shard
    spec = tf.TensorSpec((None, None), tf.int32)

    def batches() -> Iterator[tuple[Ids, ...]]:
        for chosen in rows:
            yield tuple(part[index::count] for part in encoded.batch(chosen))

    made = tf.data.Dataset.from_generator(batches, output_signature=(spec,) * len(Batch._fields))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return made.with_options(options).prefetch(tf.data.AUTOTUNE)
