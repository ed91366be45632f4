"""Summaries that need no training, to stand beside every score; the oracles see the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from seq2seq_keras.config import DataConfig
from seq2seq_keras.data.labels import create_pseudo_summary
from seq2seq_keras.data.text import BOUNDARY, make_splitter, source_tokens, words
from seq2seq_keras.data.types import Example

Baseline = Callable[[Example, list[str]], list[str]]


def baselines(config: DataConfig, leads: Sequence[int], seed_exact: bool = False) -> dict[str, Baseline]:
    """Functions from an example and its reference words to summary words, by name.

    Args:
        config: the label function's settings, the window, and the longest summary.
        leads: lengths of the leads.
        seed_exact: cut sentences as the seed cut its labels, at the front, and use its label function.
    """
    split = make_splitter(config.splitter)

    def cut(tokens: list[str]) -> list[str]:
        return tokens[-(config.max_target - 1) :] if seed_exact else tokens[: config.max_target - 2]

    def copy(example: Example, reference: list[str]) -> list[str]:
        return [t for t in source_tokens(example.text, split)[: config.max_source] if t != BOUNDARY]

    def longest(example: Example, reference: list[str]) -> list[str]:
        return cut(max((words(s) for s in split(example.text)), key=len))

    def label(example: Example, reference: list[str]) -> list[str]:
        scoring = config.label_scoring
        return cut(words(create_pseudo_summary(example.text, seed_exact=seed_exact, scoring=scoring, split=split)))

    def lead(count: int) -> Baseline:
        return lambda example, reference: words(example.text)[:count]

    return {
        **{f"lead-{count}": lead(count) for count in leads},
        "copy of the input": copy,
        "longest sentence": longest,
        "label function": label,
        "best span (oracle)": lambda example, reference: best_span(words(example.text), reference),
    }


def best_span(tokens: list[str], reference: list[str]) -> list[str]:
    """The run of ``len(reference)`` words that shares most with the reference; the first among equals."""
    width = len(reference)
    wanted = Counter(reference)
    starts = range(max(1, len(tokens) - width + 1))
    best = max(starts, key=lambda i: (Counter(tokens[i : i + width]) & wanted).total(), default=0)
    return tokens[best : best + width]
