"""The closed-form start: ridge regression from an article's vectors to its summary's, and its cross-fitted form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


class CrossFit:
    """The moments of a training set in parts, so that every article can get a map which has not seen it.

    A start fitted on the article itself already points at its summary; steps trained from it would learn to trust it.

    Args:
        train: N articles with targets, read a block at a time.
        parts: 1 gives starts that have seen their targets, for comparison.
        seed: of the partition.
        block: articles in memory.

    Raises:
        UserError: if an article has no target.
    """

    def __init__(self, train: Sequence[ArticleVectors], parts: int, seed: int, block: int = 1024) -> None:
        self._train, self._block = train, block
        parts = max(1, min(parts, len(train)))
        self._part = np.random.default_rng(seed).permutation(len(train)) % parts  # (N,)
        moments: dict[int, Moments] = {}
        for rows, articles in self._blocks():
            x, y = article_matrix(articles), target_matrix(articles).astype(np.float64)
            for k in range(parts):
                chosen = self._part[rows] == k
                if chosen.any():
                    new = Moments.of(x[chosen], y[chosen])
                    moments[k] = moments[k] + new if k in moments else new
        self._moments = moments
        found = list(moments.values())
        self.whole = sum(found[1:], found[0])

    def _blocks(self) -> Iterator[tuple[slice, list[ArticleVectors]]]:
        for at in range(0, len(self._train), self._block):
            rows = slice(at, min(at + self._block, len(self._train)))
            yield rows, [self._train[i] for i in range(rows.start, rows.stop)]

    def starts(self, penalty: float) -> Floats:
        """Each article's ridge guess, from the parts it is not in, (N, D)."""
        others = {k: self.whole - m if len(self._moments) > 1 else m for k, m in self._moments.items()}
        maps = {k: m.solve(penalty) for k, m in others.items()}
        guesses = np.zeros((len(self._train), len(self.whole.y)), dtype=np.float32)
        for rows, articles in self._blocks():
            x = article_matrix(articles)
            for k, (weights, bias) in maps.items():
                chosen = self._part[rows] == k
                guesses[rows][chosen] = x[chosen] @ weights + bias
        return guesses

    def best_penalty(self, penalties: Sequence[float], valid: Sequence[ArticleVectors]) -> float:
        """The penalty whose map, fitted on the whole training set, is nearest to the validation targets.

        Raises:
            UserError: if an article has no target, or a vector of either set holds NaN or infinity.
        """
        x, y = article_matrix(valid), target_matrix(valid)
        errors = []
        for penalty in penalties:
            weights, bias = self.whole.solve(penalty)
            errors.append(float(((x @ weights + bias - y) ** 2).sum()))
        if not np.isfinite(errors).all():
            raise UserError("a number of the articles' vectors is not finite", "data", "Embed them again")
        return penalties[int(np.argmin(errors))]
