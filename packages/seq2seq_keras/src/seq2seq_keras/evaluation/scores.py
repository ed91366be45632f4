"""How good summaries are against references, and how they behave by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.metrics.statistics import bootstrap_interval
from latentlab_shared.metrics.summarization import RougeScorer
from seq2seq_keras.data.labels import calculate_text_f1
from seq2seq_keras.data.text import words

Scores = dict[str, NDArray[np.float64]]


def score(predictions: Sequence[str], references: Sequence[str], scorer: RougeScorer) -> Scores:
    """Scores of each pair, (N,): token F1, the seed's F1, ROUGE F1s."""
    pairs = list(zip(references, predictions, strict=True))
    return {
        "f1": np.array([calculate_text_f1(r, p) for r, p in pairs]),
        "f1_seed": np.array([calculate_text_f1(r, p, seed_exact=True) for r, p in pairs]),
        **scorer.f1(predictions, references),
    }


def behaviour(predictions: Sequence[str], sources: Sequence[str]) -> dict[str, float]:
    """Shares that need no reference.

    Returns:
        ``distinct``: different summaries among the first 200; ``repeated_bigrams``: summaries in which a pair of words
        comes twice; ``copied_words``: words that stand in their source; ``novel_bigrams``: pairs of words that do not;
        ``numbers_kept``: numbers in summaries that stand in their source; ``empty``; ``length`` in words.
    """
    tokens = [words(p) for p in predictions]
    known = [words(s) for s in sources]
    first = [" ".join(t) for t in tokens[:200]]
    pairs = [list(zip(t, t[1:], strict=False)) for t in tokens]
    in_source = [word in set(k) for t, k in zip(tokens, known, strict=True) for word in t]
    numbers = [w in set(k) for t, k in zip(tokens, known, strict=True) for w in t if w[0].isdigit()]
    novel = [
        pair not in source
        for p, k in zip(pairs, known, strict=True)
        for source in [set(zip(k, k[1:], strict=False))]
        for pair in p
    ]
    return {
        "distinct": len(set(first)) / max(1, len(first)),
        "repeated_bigrams": _share([len(set(p)) < len(p) for p in pairs]),
        "copied_words": _share(in_source),
        "novel_bigrams": _share(novel),
        "numbers_kept": _share(numbers),
        "empty": _share([not t for t in tokens]),
        "length": float(np.mean([len(t) for t in tokens])),
    }


def _share(flags: list[bool]) -> float:
    return float(np.mean(flags)) if flags else 0.0


def table_row(name: str, scores: Scores, clusters: Sequence[str] | None, seed: int = 0) -> dict[str, Any]:
    """A row for a results table: means, and 95 % bootstrap intervals over examples (over clusters if given)."""
    intervals = {
        metric: bootstrap_interval(values, clusters=clusters, resamples=2_000, seed=seed)
        for metric, values in scores.items()
    }
    return {
        "name": name,
        "metrics": {metric: interval.estimate for metric, interval in intervals.items()},
        "interval": {metric: [interval.low, interval.high] for metric, interval in intervals.items()},
    }
