"""The embedded default: made-up wire items, enough to train on without any download."""

from __future__ import annotations

from seq2seq_keras.data.types import Example
from seq2seq_keras.sample.generator import generate

TRAIN_SIZE = 8_000
_HELD_OUT = 500


def sample_parts(limit: int | None = None, seed: int = 0) -> dict[str, list[Example]]:
    """Three parts drawn apart: ``limit`` (8,000) items to train on, and up to 500 each for validation and test."""
    size = limit or TRAIN_SIZE
    few = min(_HELD_OUT, max(10, size // 10))
    return {
        "train": generate(size, seed=3 * seed),
        "valid": generate(few, seed=3 * seed + 1),
        "test": generate(few, seed=3 * seed + 2),
    }


def demo() -> Example:
    """The item that ``summarize --demo`` reads; in no part of the sample with seed 0."""
    return generate(4, seed=1_000_003)[3]


__all__ = ["TRAIN_SIZE", "demo", "generate", "sample_parts"]
