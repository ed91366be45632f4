"""Fitting the refiner's confidence: what to look at, on training articles; how sure to be, on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rsr_net.data.types import ArticleVectors, Batch
from rsr_net.model.quality import quality_signs
from rsr_net.model.refiner import Refiner

_SLOPE_PENALTY = 1.0  # articles: keeps the slope finite where a score separates the few held-out ones


@torch.no_grad()
def calibrate(
    model: Refiner,
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    *,
    starts: Tensor | None = None,
    penalty: float = 1e-3,
    batch_size: int = 64,
) -> None:
    """Fit ``model.quality`` in place, in two parts.

    The direction is a ridge regression of cos(y_hat, y_true) on the signs of training articles, of which there are
    many; these articles become the known ones, each expecting its cosine from the others. The direction's score then
    becomes a probability by a logistic regression on held-out articles: a slope and an intercept. Training articles
    alone would make it overconfident, because there the predictions are better than they will be.

    The event is that the cosine lies above its median over the held-out articles, so a model that knows nothing says
    one half.

    Args:
        model: a trained refiner.
        train: training articles with targets.
        valid: held-out articles with targets; at least two.
        starts: starts that have not seen the training articles' targets (``ridge.CrossFit``), (N, D); None takes the
            model's.
        penalty: of the squared weights of the direction, relative to an article's squared error.
        batch_size: articles refined together.
    """
    head = model.quality
    signs, predicted, cosines = _look(model, train, starts, batch_size)  # (N, SIGNS), (N, D), (N,)
    head.known, head.known_cosine = F.normalize(predicted, dim=-1), cosines.to(predicted.dtype)
    places = torch.arange(len(train), device=predicted.device)
    x = _with_expected(signs, head.expected_cosine(predicted, places if len(train) > 1 else None))
    mean, std = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    x = (x - mean) / std
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    direction = torch.linalg.solve(x.T @ x / len(x) + penalty * eye, x.T @ (cosines - cosines.mean()) / len(x))

    signs, predicted, cosines = _look(model, valid, None, batch_size)
    x = _with_expected(signs, head.expected_cosine(predicted))
    score = (x - mean) / std @ direction  # (M,)
    middle, spread = score.mean(), score.std(unbiased=False).clamp_min(1e-6)
    slope, intercept = _logistic((score - middle) / spread, (cosines > cosines.quantile(0.5)).double())
    head.mean.copy_(mean)
    head.std.copy_(std)
    head.weight.copy_(direction * slope / spread)
    head.bias.copy_(intercept - slope * middle / spread)


def _with_expected(signs: Tensor, expected: Tensor) -> Tensor:
    return torch.cat([signs, expected.double()[:, None]], dim=-1)  # (N, SIGNS + 1)


def _look(
    model: Refiner, articles: Sequence[ArticleVectors], starts: Tensor | None, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Signs (N, SIGNS) and predictions (N, D) of articles, and the predictions' cosines with the targets, (N,)."""
    signs, predicted, near = [], [], []
    for at in range(0, len(articles), batch_size):
        batch = Batch.collate(articles[at : at + batch_size]).to(model.center.device)
        assert batch.target is not None
        found = model(batch, start=None if starts is None else starts[at : at + batch_size].to(model.center.device))
        signs.append(quality_signs(batch, found.y, model.center, found.attention).double())
        predicted.append(found.y)
        near.append(F.cosine_similarity(found.y, batch.target, dim=-1).double())
    return torch.cat(signs), torch.cat(predicted), torch.cat(near)


def _logistic(score: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a logistic regression on one standardised score, (M,), by Newton's method."""
    x = torch.stack([score, torch.ones_like(score)], dim=-1)  # (M, 2)
    ridge = x.new_tensor([_SLOPE_PENALTY, 1e-6])  # the intercept is free
    w = x.new_zeros(2)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - event) + ridge * w
        change = torch.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge.diag(), gradient)
        w = w - change
        if float(change.abs().max()) < 1e-9:
            break
    return w[0], w[1]
