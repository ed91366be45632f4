"""The refiner: a ridge guess of the summary's embedding, corrected by re-reading the article's sentences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsr_net.config import ModelConfig
from rsr_net.data.types import Batch
from rsr_net.model.fixed_point import Solver, StepMap, solve
from rsr_net.model.quality import QualityHead
from rsr_net.model.selection import SentenceSelector

PLACES = 7  # numbers that say where a sentence stands
FIXED = 4  # vectors of an article that no step changes: the start, the document, the lead, the sentences' mean


@dataclass(frozen=True)
class Refinement:
    """The refinement of B articles in K steps: D is the embedding's width, S the longest article's sentences.

    Attributes:
        y: the predicted summary embedding, in the encoder's space, (B, D).
        trajectory: the state at the start and after each step, in the encoder's space, (K + 1, B, D).
        residuals: relative change of each step, (K, B); zero once a row has halted.
        attention: weight of each sentence in each step's read, the mean of the heads, (K, B, S).
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
    """y ← y + a (g(x, y) - y): each step reads the sentences again, in the light of the current y.

    With the articles' vectors x = [document, lead, mean of the sentences] and their ridge guess y0 = x W + b,

        score_h(j) = κ_h cos(s_j, y) + linear_h(f_j) + MLP_h(f_j),    f_j = [cos(s_j, y), cos(s_j, y0 | x), place of j]
        read_h     = Σ_j softmax_j(score_h) s_j
        u          = [y0, x, read_1 … read_heads]
        z          = U u                                              the latent memory, ``latent_dim`` numbers
        g(x, y)    = Σ_k gain_k ∘ u_k + V z

    Gains are per component, so nearly all of the network's freedom is in *where to read*: that, unlike a D x D map of
    what was read, can be learned from a few thousand articles.

    Args:
        config: sizes and depth; every tensor's shape follows from it.
    """

    center: Tensor
    base: Tensor
    base_bias: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, features = config.input_dim, config.heads, PLACES + FIXED + 1
        self.register_buffer("center", torch.zeros(width))  # mean of the training targets
        self.register_buffer("base", torch.zeros(3 * width, width))  # the ridge map
        self.register_buffer("base_bias", torch.zeros(width))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))
        self.sharpness = nn.Parameter(torch.linspace(1.0, 4.0, heads))  # κ
        self.linear = nn.Linear(features, heads)
        self.scorer = nn.Sequential(
            nn.Linear(features, config.hidden_dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_dim, heads),
        )
        self.gain = nn.Parameter(torch.zeros(FIXED + heads, 1))
        self.gain_by_component = nn.Parameter(torch.zeros(FIXED + heads, width))
        self.to_latent = nn.Linear((FIXED + heads) * width, config.latent_dim, bias=False)  # U
        self.from_latent = nn.Linear(config.latent_dim, width, bias=False)  # V
        self.quality = QualityHead(width)
        self.selector = SentenceSelector()
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.from_latent.weight)
        with torch.no_grad():
            self.gain[0] = 1.0  # an untrained step changes nothing: g(x, y) = y0

    def start(self, batch: Batch) -> Tensor:
        """The ridge guess y0 from the document, the lead and the mean sentence, (B, D)."""
        guess: Tensor = article_vectors(batch).flatten(1) @ self.base + self.base_bias
        return guess

    def features(self, batch: Batch, y: Tensor, fixed: Tensor) -> Tensor:
        """What a sentence's score is made of, before standardisation, (B, S, 1 + FIXED + PLACES).

        Args:
            batch: B articles.
            y: the state, (B, D).
            fixed: the vectors that no step changes, (B, FIXED, D).
        """
        around = F.normalize(torch.cat([y[:, None], fixed], 1), dim=-1)  # (B, 1 + FIXED, D)
        near = F.normalize(batch.sentences, dim=-1) @ around.mT  # (B, S, 1 + FIXED)
        return torch.cat([near, _places(batch.mask, y.dtype)], dim=-1)

    def step_map(self, batch: Batch, y0: Tensor, seen: list[Tensor] | None = None) -> StepMap:
        """The map y ↦ y + a (g(x, y) - y) of some articles.

        Args:
            batch: B articles.
            y0: where their refinement starts, (B, D).
            seen: each call appends its reading weights, mean of the heads, (B, S); zero for rows not asked for.
        """
        fixed = torch.cat([y0[:, None], article_vectors(batch)], 1)  # (B, FIXED, D)
        still = (self.features(batch, y0, fixed) - self.feature_mean) / self.feature_std  # (B, S, F)
        unit = F.normalize(batch.sentences, dim=-1)  # (B, S, D): encoders differ in the lengths they give

        def step(y: Tensor, rows: Tensor | None = None) -> Tensor:
            given = (batch.sentences, unit, batch.mask, still[..., 1:], fixed)
            sentences, directions, mask, other, kept = given if rows is None else (part[rows] for part in given)
            near = directions @ F.normalize(y, dim=-1)[..., None]  # (A, S, 1)
            features = torch.cat([(near - self.feature_mean[0]) / self.feature_std[0], other], dim=-1)
            scores = self.sharpness * near + self.linear(features) + self.scorer(features)  # (A, S, heads)
            weights = scores.masked_fill(~mask[..., None], float("-inf")).softmax(1)
            if seen is not None:
                mean = weights.mean(-1)  # (A, S)
                seen.append(mean if rows is None else mean.new_zeros(batch.mask.shape).index_put((rows,), mean))
            u = torch.cat([kept, weights.mT @ sentences], 1)  # (A, FIXED + heads, D)
            drop = F.dropout(u, self.config.latent_dropout, self.training).flatten(1)
            z = self.to_latent(drop)  # (A, L)
            target = ((self.gain + self.gain_by_component) * u).sum(1) + self.from_latent(z)  # (A, D)
            new: Tensor = y + self.config.step_size * (target - y)
            return new

        return step

    def forward(
        self,
        batch: Batch,
        *,
        steps: int | None = None,
        tol: float | None = None,
        solver: Solver = "picard",
        start: Tensor | None = None,
    ) -> Refinement:
        """Predict the summaries' embeddings.

        Args:
            batch: B articles.
            steps: refinement steps; None takes the trained number.
            tol: an article halts when a step changes its state by less than this share; None runs every step.
            solver: "picard" or "anderson".
            start: other first states than the ridge guess, (B, D).

        Raises:
            ValueError: for an unknown solver, or a number out of range.
        """
        seen: list[Tensor] = []
        y0 = self.start(batch) if start is None else start
        step = self.step_map(batch, y0, seen)
        found = solve(step, y0, steps=self.config.steps if steps is None else steps, tol=tol, solver=solver)
        attention = torch.stack(seen) if seen else y0.new_zeros(0, *batch.mask.shape)
        quality = self.quality(batch, found.y, self.center, attention)
        return Refinement(found.y, found.trajectory, found.residuals, attention, found.steps_used, quality)


def article_vectors(batch: Batch) -> Tensor:
    """Document, lead and mean sentence of each article, (B, 3, D)."""
    count = batch.mask.sum(1, keepdim=True).to(batch.doc.dtype)  # (B, 1)
    mean = (batch.sentences * batch.mask[..., None]).sum(1) / count
    return torch.stack([batch.doc, batch.lead, mean], dim=1)


def _places(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Where each sentence stands, absolutely and relatively, (B, S, PLACES)."""
    place = torch.arange(mask.shape[1], device=mask.device).to(dtype).expand(mask.shape)  # (B, S)
    count = mask.sum(1, keepdim=True).to(dtype).expand(mask.shape)
    return torch.stack(
        [
            place,
            torch.log1p(place),
            1 / (1 + place),
            place / count,
            (place == 0).to(dtype),
            (place == 1).to(dtype),
            torch.log(count),
        ],
        dim=-1,
    )
