"""A halting head: does the next step bring the state nearer to the summary? Measured beside halting by the residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsr_net.data.types import ArticleVectors, Batch, Floats
from rsr_net.model.quality import quality_signs
from rsr_net.model.refiner import Refiner
from rsr_net.training.ridge import target_matrix

_GROUP = 64


class HaltingHead:
    """A logistic regression, on what is known before a step, of whether that step lowers the squared error.

    Args:
        refiner: a trained refiner.
        articles: N training articles with targets.
        starts: their starts, which have not seen those targets (``CrossFit``), (N, D).
    """

    def __init__(self, refiner: Refiner, articles: Sequence[ArticleVectors], starts: torch.Tensor) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        depth = refiner.config.steps
        states, signs = states_and_signs(refiner, articles, depth, starts)  # (K + 1, N, D), (K, N, F)
        errors = ((states - target_matrix(articles)) ** 2).sum(-1)  # (K + 1, N)
        helps = (errors[1:] < errors[:-1]).ravel()  # (K N,)
        self._always = bool(helps[0]) if helps.min() == helps.max() else None  # nothing to learn
        self._model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        if self._always is None:
            self._model.fit(signs.reshape(helps.size, -1), helps)

    def going_on(self, signs: Floats) -> NDArray[np.float64]:
        """The probability that the next step helps, of states with these signs (N, F), (N,)."""
        if self._always is not None:
            return np.full(len(signs), float(self._always))
        found: NDArray[np.float64] = self._model.predict_proba(signs)[:, 1]
        return found

    def refine(
        self, refiner: Refiner, articles: Sequence[ArticleVectors], steps: int
    ) -> tuple[Floats, NDArray[np.int64]]:
        """The states (N, D) at which the articles halt within so many steps, and how many they took, (N,)."""
        states, signs = states_and_signs(refiner, articles, steps)
        halts = np.stack([self.going_on(before) < 0.5 for before in signs] + [np.ones(len(articles), bool)])
        used = halts.argmax(0)  # (N,): the first step that is not worth taking
        return states[used, np.arange(len(articles))], used


@torch.no_grad()
def states_and_signs(
    refiner: Refiner, articles: Sequence[ArticleVectors], steps: int, starts: torch.Tensor | None = None
) -> tuple[Floats, Floats]:
    """States before and after each step, (K + 1, N, D), and what is known before each step, (K, N, F).

    Known are the signs of the confidence at that state, the last residual and the number of the step.
    """
    states, signs = [], []
    for at in range(0, len(articles), _GROUP):
        batch = Batch.collate(articles[at : at + _GROUP])
        found = refiner(batch, steps=steps, start=None if starts is None else starts[at : at + _GROUP])
        states.append(found.trajectory.numpy())
        known = []
        for k in range(steps):
            y = found.trajectory[k]
            last = found.residuals[k - 1] if k else torch.ones(len(y))
            own = quality_signs(batch, y, refiner.center, found.attention[:k])  # (B, SIGNS)
            extra = torch.stack([last, last.clamp_min(1e-6).log(), torch.full_like(last, k)], -1)
            known.append(torch.cat([own, extra], -1))
        signs.append(torch.stack(known).numpy())
    return np.concatenate(states, 1), np.concatenate(signs, 1)
