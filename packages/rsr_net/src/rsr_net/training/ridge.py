"""The closed-form start: ridge regression from an article's vectors to its summary's, and its cross-fitted form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from rsr_net.data.types import ArticleVectors, Floats

Doubles = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over N pairs (x, y): enough for any ridge regression, and they add up.

    Attributes:
        count: N.
        x: sum of x, (X,).
        y: sum of y, (Y,).
        xx: sum of x xᵀ, (X, X).
        xy: sum of x yᵀ, (X, Y).
    """

    count: int
    x: Doubles
    y: Doubles
    xx: Doubles
    xy: Doubles

    @classmethod
    def of(cls, x: Doubles, y: Doubles) -> Moments:
        """The moments of x (N, X) and y (N, Y)."""
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__))

    def solve(self, penalty: float) -> tuple[Doubles, Doubles]:
        """The map (X, Y) and intercept (Y,) least in Σ ||y - xW - b||² / N + penalty · scale · ||W||².

        The scale is the mean variance of x, so that a penalty means the same for any encoder.
        """
        mx, my = self.x / self.count, self.y / self.count
        gram = self.xx / self.count - np.outer(mx, mx)
        cross = self.xy / self.count - np.outer(mx, my)
        scale = max(float(np.trace(gram)) / len(gram), 1e-12)
        gram[np.diag_indices_from(gram)] += penalty * scale
        weights: Doubles = np.linalg.solve(gram, cross).astype(np.float64)
        return weights, my - mx @ weights


def article_matrix(articles: Iterable[ArticleVectors]) -> Doubles:
    """Document, lead and mean sentence of each article side by side, (N, 3 D)."""
    return np.stack([np.concatenate([a.doc, a.lead, a.sentences.mean(0)]) for a in articles]).astype(np.float64)


def target_matrix(articles: Iterable[ArticleVectors]) -> Floats:
    """The targets of articles, (N, D).

    Raises:
        UserError: if one has none.
    """
    targets = []
    for article in articles:
        if article.target is None:
            raise UserError(f"article {article.id} has no target", "data", "Training needs articles with summaries")
        targets.append(article.target)
    return np.stack(targets)


@dataclass(frozen=True)
class Start:
    """A fitted start.

    Attributes:
        weights: (3 D, D).
        bias: (D,).
        penalty: the one chosen.
        own: the starts of the training articles, each from a map that has not seen its target, (N, D).
        center: mean of the training targets, (D,).
    """

    weights: Floats
    bias: Floats
    penalty: float
    own: Floats
    center: Floats


def fit_start(
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    penalties: Sequence[float],
    parts: int,
    seed: int,
    block: int = 1024,
) -> Start:
    """Fit the ridge start and give every training article one that has not seen its target.

    A start fitted on the article itself already points at the answer; steps trained from it would learn to trust it.

    Args:
        train: N articles with targets, read one block at a time, twice.
        valid: articles with targets, which choose the penalty.
        penalties: to try.
        parts: cross-fits; at least 2.
        seed: of the partition.
        block: articles in memory.

    Raises:
        UserError: if an article has no target, or a vector holds NaN or infinity.
    """
    count = len(train)
    parts = max(2, min(parts, count))
    part = np.random.default_rng(seed).permutation(count) % parts  # (N,)
    moments: list[Moments | None] = [None] * parts
    for at in range(0, count, block):
        articles = [train[i] for i in range(at, min(at + block, count))]
        x, y = article_matrix(articles), target_matrix(articles).astype(np.float64)
        for k in range(parts):
            rows = part[at : at + block] == k
            if rows.any():
                new = Moments.of(x[rows], y[rows])
                old = moments[k]
                moments[k] = new if old is None else old + new
    found = [m for m in moments if m is not None]
    whole = sum(found[1:], found[0])

    valid_x, valid_y = article_matrix(valid), target_matrix(valid)
    errors = []
    for penalty in penalties:
        weights, bias = whole.solve(penalty)
        errors.append(float(((valid_x @ weights + bias - valid_y) ** 2).sum()))
    if not np.isfinite(errors).all():
        raise UserError("a number of the articles' vectors is not finite", "data", "Embed them again")
    best = penalties[int(np.argmin(errors))]
    maps = [(whole - m).solve(best) for m in found]
    own = np.zeros((count, valid_y.shape[1]), dtype=np.float32)
    for at in range(0, count, block):
        x = article_matrix(train[i] for i in range(at, min(at + block, count)))
        for k, (weights, bias) in enumerate(maps):
            rows = part[at : at + block] == k
            own[at : at + block][rows] = x[rows] @ weights + bias
    weights, bias = whole.solve(best)
    center = whole.y / whole.count
    return Start(weights.astype(np.float32), bias.astype(np.float32), best, own, center.astype(np.float32))
