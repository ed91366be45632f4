"""How the weights of the losses move while a model is trained."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from clara_absa.configs.base_config import LossConfig


class Schedule(Protocol):
    """Joins the losses of an update into one."""

    def weights(self, progress: float) -> dict[str, float]:
        """Alpha and beta at ``progress``, the share of the updates done, in [0, 1]."""

    def combine(self, rec: Tensor, absa: Tensor, progress: float, share: float = 1.0) -> Tensor:
        """One loss of the reconstruction loss and the sum of the other two.

        Args:
            rec: loss of the reconstruction, ().
            absa: sum of the other two, ().
            progress: share of the updates done.
            share: of the update that these losses are a part of; what the schedule itself adds is scaled by it.
        """


class Moving(nn.Module):
    """Weights that are a fixed function of the progress: constant, linear, cosine or staged."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def _share(self, progress: float) -> float:
        """How far the weights are from their first (0) to their second value (1)."""
        kind = self.config.schedule
        if kind == "constant":
            return 0.0
        if kind == "staged":
            return float(progress >= self.config.staged_at)
        return progress if kind == "linear" else (1 - math.cos(math.pi * progress)) / 2

    def weights(self, progress: float) -> dict[str, float]:
        """See `Schedule`."""
        share = self._share(min(max(progress, 0.0), 1.0))
        return {
            name: first + share * (second - first)
            for name, (first, second) in (("alpha", self.config.alpha), ("beta", self.config.beta))
        }

    def combine(self, rec: Tensor, absa: Tensor, progress: float, share: float = 1.0) -> Tensor:
        """See `Schedule`."""
        weights = self.weights(progress)
        return weights["alpha"] * rec + weights["beta"] * absa


class Uncertainty(nn.Module):
    """Learned weights: ``exp(-s) * loss + s`` with one trainable s for each loss.

    Source: Kendall, Gal, Cipolla 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(2))

    def weights(self, progress: float) -> dict[str, float]:
        """See `Schedule`."""
        alpha, beta = torch.exp(-self.log_variance.detach()).tolist()
        return {"alpha": alpha, "beta": beta}

    def combine(self, rec: Tensor, absa: Tensor, progress: float, share: float = 1.0) -> Tensor:
        """See `Schedule`."""
        losses = torch.stack([rec, absa])
        return (torch.exp(-self.log_variance) * losses + share * self.log_variance).sum()


def make_schedule(config: LossConfig) -> Moving | Uncertainty:
    """The schedule that the configuration names."""
    return Uncertainty() if config.schedule == "uncertainty" else Moving(config)
