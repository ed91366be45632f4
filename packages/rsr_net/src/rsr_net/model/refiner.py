"""The refiner: a ridge guess of the summary's embedding, corrected by re-reading the article's sentences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rsr_net.config import ModelConfig
from rsr_net.data.types import Batch
from rsr_net.model.fixed_point import Solver, solve


@dataclass(frozen=True)
class Refinement:
    """The refinement of B articles in K steps: D is the embedding's width, S the longest article's sentences.

    Attributes:
        y: the predicted summary embedding, in the encoder's space, (B, D).
        trajectory: the state at the start and after each step, in the encoder's space, (K + 1, B, D).
        residuals: relative change of each step, (K, B); zero once a row has halted.
        attention: weight of each sentence in each step's read, (K, B, S).
        steps_used: steps each article took before it halted, (B,) int64.
        quality: calibrated probability that the prediction is better than the typical one, (B,).
    """

    y: Tensor
    trajectory: Tensor
    residuals: Tensor
    attention: Tensor
    steps_used: Tensor
    quality: Tensor


class Refiner(nn.Module):
    """y ← y + a (g(x, y) - y), where g reads the sentences that y points at.

    Args:
        config: sizes and depth; every tensor's shape follows from it.
    """

    center: Tensor
    base: Tensor
    base_bias: Tensor
    calibration: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.input_dim
        self.register_buffer("center", torch.zeros(width))  # mean of the training targets
        self.register_buffer("base", torch.zeros(2 * width, width))  # ridge map of [doc, lead]
        self.register_buffer("base_bias", torch.zeros(width))
        self.register_buffer("calibration", torch.zeros(4))  # logistic weights, bias last
        self.query = nn.Linear(width, width, bias=False)
        self.gain = nn.Linear(width, width, bias=False)
        self.log_sharpness = nn.Parameter(torch.tensor(2.0))
        self.position = nn.Parameter(torch.zeros(3))
        nn.init.eye_(self.query.weight)
        nn.init.zeros_(self.gain.weight)

    def start(self, batch: Batch) -> Tensor:
        """The ridge guess from the document and its lead, (B, D)."""
        return torch.cat([batch.doc, batch.lead], dim=-1) @ self.base + self.base_bias

    def read(self, batch: Batch, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The sentences that y points at: their mix (A, D) and their weights (A, S), for the given rows."""
        sentences, mask = batch.sentences[rows], batch.mask[rows]  # (A, S, D), (A, S)
        place = torch.arange(mask.shape[1], device=y.device, dtype=y.dtype)  # (S,)
        places = torch.stack([(place == 0).to(y.dtype), 1 / (1 + place), torch.log1p(place)])  # (3, S)
        scores = (sentences @ self.query(y).unsqueeze(-1)).squeeze(-1) * self.log_sharpness.exp()  # (A, S)
        scores = scores + self.position @ places
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)  # (A, S)
        return (weights.unsqueeze(1) @ sentences).squeeze(1), weights

    def forward(
        self, batch: Batch, *, steps: int | None = None, tol: float | None = None, solver: Solver = "picard"
    ) -> Refinement:
        """Predict the summary's embedding.

        Args:
            batch: B articles.
            steps: refinement steps; None takes the trained number.
            tol: an article halts when a step changes its state by less than this share; None runs every step.
            solver: "picard" or "anderson".

        Raises:
            ValueError: for an unknown solver.
        """
        y0 = self.start(batch)
        seen: list[Tensor] = []

        def step(y: Tensor, rows: Tensor) -> Tensor:
            read, weights = self.read(batch, y, rows)
            seen.append(y.new_zeros(batch.mask.shape).index_put((rows,), weights))
            return y + self.config.step_size * (y0[rows] + self.gain(read - self.center) - y)

        found = solve(step, y0, steps=self.config.steps if steps is None else steps, tol=tol, solver=solver)
        attention = torch.stack(seen) if seen else y0.new_zeros(0, *batch.mask.shape)
        size = found.y.norm(dim=-1)  # (B,)
        near = torch.cosine_similarity(found.y, batch.doc, dim=-1)
        far = found.y.std(dim=-1)
        quality = torch.sigmoid(torch.stack([size, near, far, torch.ones_like(size)], dim=-1) @ self.calibration)
        return Refinement(found.y, found.trajectory, found.residuals, attention, found.steps_used, quality)
