"""How near predicted embeddings are to the true ones, per article, so that anything can be bootstrapped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.metrics.ranking import retrieval_metrics_of_vectors
from latentlab_shared.metrics.statistics import Interval, bootstrap_interval
from rsr_net.data.types import Floats

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class VectorScores:
    """Scores of N predictions.

    Attributes:
        error: squared distance to the true embedding, (N,).
        spread: squared distance of the true embedding to the mean of the training targets, (N,).
        cosine: with the true embedding, (N,).
        hit: 1 where the true embedding is the nearest candidate by cosine, (N,).
        hit_centred: the same after subtracting the training targets' mean, so that a direction common to all texts
            cannot help, (N,).
        hit10_centred: 1 where it is among the nearest ten, centred, (N,).
        reciprocal_centred: 1 / its rank, centred, (N,).
        hit_500: ``hit_centred`` among 500 candidates, (N,); NaN where there are no 500.
    """

    error: Doubles
    spread: Doubles
    cosine: Doubles
    hit: Doubles
    hit_centred: Doubles
    hit10_centred: Doubles
    reciprocal_centred: Doubles
    hit_500: Doubles

    def means(self) -> dict[str, float]:
        """The figures of a table."""
        return {
            "r2": r2(self.error, self.spread),
            "mse": float(self.error.mean()),
            "cosine": float(self.cosine.mean()),
            "r@1": float(self.hit.mean()),
            "r@1_centred": float(self.hit_centred.mean()),
            "r@10_centred": float(self.hit10_centred.mean()),
            "mrr_centred": float(self.reciprocal_centred.mean()),
            "r@1_of_500": float(self.hit_500.mean()),
        }


def score_vectors(predicted: Floats | Doubles, target: Doubles, center: Doubles, others: Doubles) -> VectorScores:
    """Score predictions against the true embeddings of the same articles, which are each other's candidates.

    Args:
        predicted: (N, D).
        target: (N, D).
        center: mean of the training targets, (D,).
        others: further summaries, of training articles, that fill the candidates up to 500, (M, D).
    """
    y = predicted.astype(np.float64)
    raw = retrieval_metrics_of_vectors(y, target)
    centred = retrieval_metrics_of_vectors(y - center, target - center)
    hit_500 = np.full(len(target), np.nan)
    if len(target) + len(others) >= 500 >= len(target):
        candidates = np.concatenate([target, others[: 500 - len(target)]]) - center
        hit_500 = retrieval_metrics_of_vectors(y - center, candidates).recall[1]
    return VectorScores(
        error=((y - target) ** 2).sum(1),
        spread=((target - center) ** 2).sum(1),
        cosine=cosines(y, target),
        hit=raw.recall[1],
        hit_centred=centred.recall[1],
        hit10_centred=centred.recall[10],
        reciprocal_centred=centred.reciprocal_rank,
        hit_500=hit_500,
    )


def cosines(a: Doubles, b: Doubles) -> Doubles:
    """Cosine of each pair of rows, (N,); 0 where one is zero."""
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: Doubles = (a * b).sum(1) / np.maximum(sizes, 1e-12)
    return found


def r2(error: Doubles, spread: Doubles) -> float:
    """Explained share of the variance around the training mean: 1 - Σ error / Σ spread."""
    return float(1 - error.sum() / spread.sum())


def r2_interval(error: Doubles, spread: Doubles) -> Interval:
    """R² with its bootstrap interval over articles."""
    return bootstrap_interval(np.stack([error, spread], 1), lambda rows: r2(rows[:, 0], rows[:, 1]), resamples=2000)


def r2_difference(error: Doubles, baseline: Doubles, spread: Doubles) -> Interval:
    """By how much R² is above a baseline's, with the paired bootstrap interval over articles."""
    rows = np.stack([baseline - error, spread], 1)
    return bootstrap_interval(rows, lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum()), resamples=2000)
