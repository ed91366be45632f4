"""What a recursion has to beat: constants, copies, ridge regressions, a network of its size, the seed's own form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsr_net.config import ModelConfig, RsrConfig, TrainConfig
from rsr_net.data.types import ArticleVectors, Floats
from rsr_net.model.recursion import RecursionModel
from rsr_net.training.ridge import Moments, article_matrix, target_matrix
from rsr_net.training.seed import fit_recursion, predict_recursion

Doubles = NDArray[np.float64]
PENALTIES = (0.03, 0.1, 0.2, 0.4, 0.8, 2.0)


def ridge_baseline(
    train: Sequence[ArticleVectors], valid: Sequence[ArticleVectors], test: Sequence[ArticleVectors], parts: int
) -> Floats:
    """Ridge regression from the first ``parts`` of [document, lead, mean sentence], penalty chosen on validation."""

    def inputs(articles: Sequence[ArticleVectors]) -> Doubles:
        matrix = article_matrix(articles)
        return matrix[:, : parts * matrix.shape[1] // 3]

    moments = Moments.of(inputs(train), target_matrix(train).astype(np.float64))
    maps = [moments.solve(penalty) for penalty in PENALTIES]
    goal = target_matrix(valid)
    errors = [float(((inputs(valid) @ weights + bias - goal) ** 2).sum()) for weights, bias in maps]
    weights, bias = maps[int(np.argmin(errors))]
    return (inputs(test) @ weights + bias).astype(np.float32)


class SkipMlp(nn.Module):
    """[document, lead, mean sentence] → hidden → a correction of the scaled document embedding.

    Args:
        width: D.
        parameters: about how many numbers it may hold; decides the hidden width.
        dropout: of the inputs and the hidden layer.
    """

    def __init__(self, width: int, parameters: int, dropout: float = 0.3) -> None:
        super().__init__()
        hidden = max(8, round((parameters - 2 * width) / (4 * width + 1)))
        self.scale = nn.Parameter(torch.full((width,), 0.6))
        self.body = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(3 * width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3 D) → (B, D)."""
        found: Tensor = self.scale * x[:, : len(self.scale)] + self.body(x)
        return found


def mlp_baseline(
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    test: Sequence[ArticleVectors],
    *,
    parameters: int,
    seed: int,
    epochs: int = 80,
    patience: int = 8,
) -> Floats:
    """A network with as many numbers as the refiner, ridge map included; averaged weights, best validation epoch."""
    x, y = torch.from_numpy(article_matrix(train)).float(), torch.from_numpy(target_matrix(train))
    valid_x, valid_y = torch.from_numpy(article_matrix(valid)).float(), torch.from_numpy(target_matrix(valid))
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = SkipMlp(y.shape[1], parameters)
        averaged = copy.deepcopy(net).eval()
        best, best_error, best_epoch, updates = copy.deepcopy(averaged), float("inf"), 0, 0
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
        for epoch in range(epochs):
            order = torch.from_numpy(rng.permutation(len(x)))
            for at in range(0, len(x), 64):
                rows = order[at : at + 64]
                loss = ((net(x[rows]) - y[rows]) ** 2).sum(-1).mean()
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                updates += 1
                decay = min(0.99, (1 + updates) / (10 + updates))
                with torch.no_grad():
                    for mean, new in zip(averaged.parameters(), net.parameters(), strict=True):
                        mean.lerp_(new, 1 - decay)
            with torch.no_grad():
                error = float(((averaged(valid_x) - valid_y) ** 2).sum())
            if error < best_error:
                best, best_error, best_epoch = copy.deepcopy(averaged), error, epoch
            if epoch - best_epoch >= patience:
                break
    with torch.no_grad():
        found: Floats = best(torch.from_numpy(article_matrix(test)).float()).numpy()
    return found


def seed_network(
    train: Sequence[ArticleVectors], *, seed: int, epochs: int = 2, mended: bool = False
) -> RecursionModel:
    """The seed's network trained the seed's way, on cached document and summary vectors.

    Args:
        train: articles with targets.
        seed: of the weights and the order.
        epochs: two in its notebook.
        mended: layer instead of batch norm, and no loss on the confidence.
    """
    x, y = torch.from_numpy(np.stack([a.doc for a in train])), torch.from_numpy(target_matrix(train))
    model = ModelConfig(input_dim=x.shape[1], norm="layer" if mended else "batch")
    settings = TrainConfig(epochs=epochs, seed=seed, aux_weight=0.0 if mended else TrainConfig.aux_weight)
    return fit_recursion(x, y, RsrConfig("seed", model, settings))


def seed_predictions(
    net: RecursionModel, articles: Sequence[ArticleVectors], segments: int = TrainConfig.n_supervision
) -> Floats:
    """What the seed's network says of articles after so many segments, (N, D); it is trained with three."""
    y: Floats = predict_recursion(net, torch.from_numpy(np.stack([a.doc for a in articles])), segments=segments)[
        0
    ].numpy()
    return y


def closed_form_baselines(
    train: Sequence[ArticleVectors], valid: Sequence[ArticleVectors], test: Sequence[ArticleVectors]
) -> dict[str, Callable[[], Floats]]:
    """The baselines without a random number, by name; each computes its predictions of the test articles."""
    mean = target_matrix(train).mean(0)
    return {
        "mean of the training summaries": lambda: np.tile(mean, (len(test), 1)),
        "document": lambda: np.stack([a.doc for a in test]),
        "lead": lambda: np.stack([a.lead for a in test]),
        "ridge [document]": lambda: ridge_baseline(train, valid, test, 1),
        "ridge [document, lead]": lambda: ridge_baseline(train, valid, test, 2),
    }
