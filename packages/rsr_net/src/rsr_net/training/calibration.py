"""Fitting the refiner's confidence on articles that its training has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from rsr_net.data.types import ArticleVectors, Batch
from rsr_net.model.quality import quality_signs
from rsr_net.model.refiner import Refiner


@torch.no_grad()
def calibrate(model: Refiner, valid: Sequence[ArticleVectors], *, penalty: float = 5.0, batch_size: int = 64) -> None:
    """Fit ``model.quality`` in place: logistic regression by Newton's method, with an L2 penalty.

    The event is that cos(y_hat, y_true) lies above its median over these articles, so a model that knows nothing says
    one half. Training articles would make it overconfident: there the predictions are better than they will be.

    Args:
        model: a trained refiner.
        valid: held-out articles with targets; at least two.
        penalty: of the squared weights, in articles.
        batch_size: articles refined together.
    """
    signs, near = [], []
    for at in range(0, len(valid), batch_size):
        batch = Batch.collate(valid[at : at + batch_size]).to(model.center.device)
        assert batch.target is not None
        found = model(batch)
        signs.append(quality_signs(batch, found.y, model.center, found.attention).double())
        near.append(F.cosine_similarity(found.y, batch.target, dim=-1))
    x, cosines = torch.cat(signs), torch.cat(near)  # (N, SIGNS), (N,)
    y = (cosines > cosines.quantile(0.5)).double()
    mean, std = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    x = torch.cat([(x - mean) / std, torch.ones_like(x[:, :1])], dim=-1)
    ridge = torch.full((x.shape[1],), penalty, dtype=x.dtype, device=x.device)
    ridge[-1] = 1e-6  # the bias is free
    w = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - y) + ridge * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge.diag()
        change = torch.linalg.solve(hessian, gradient)
        w = w - change
        if float(change.abs().max()) < 1e-9:
            break
    head = model.quality
    head.mean.copy_(mean)
    head.std.copy_(std)
    head.weight.copy_(w[:-1])
    head.bias.copy_(w[-1])


def median_cosine(cosines: Sequence[float]) -> float:
    """The threshold of the event, for reports."""
    return float(np.median(cosines))
