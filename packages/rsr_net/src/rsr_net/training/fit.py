"""Training the refiner on cached vectors: a closed-form start, then the steps, then the confidence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latentlab_shared.errors import RunFailed, UserError
from rsr_net.config import RsrConfig, TrainConfig
from rsr_net.data.types import ArticleVectors, Batch
from rsr_net.model.refiner import Refiner, article_vectors
from rsr_net.training.calibration import calibrate
from rsr_net.training.checkpoint import Checkpoint
from rsr_net.training.ridge import CrossFit

# Parameters that grow with D; the others are few, and learn at twice the rate with hardly any decay.
_WIDE = ("gain_by_component", "to_latent.weight", "from_latent.weight")
_STANDARDISED_ON = 2048  # articles
_CALIBRATED_ON = 4096
_LENGTH_JITTER = 8  # sentences by which articles of one batch may differ beyond their order
_TEMPERATURE = 0.05

Log = Callable[[int, dict[str, float]], None]


def fit(
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    config: RsrConfig,
    *,
    run: Path | None = None,
    resume: Path | None = None,
    log: Log = lambda epoch, values: None,
    device: str = "cpu",
) -> Refiner:
    """Train a refiner.

    Each update takes a random number of steps without gradient, then a few with it, each of them supervised: the seed's
    rule, with the free segment's length drawn anew, so that every step up to ``steps`` learns from where it stands.

    Args:
        train: articles with targets; read a batch at a time, so they may lie on disk.
        valid: held-out articles with targets: they choose the penalty and the epoch, and set the confidence.
        config: what to train.
        run: folder for ``checkpoints/last/``, written after each epoch; None writes nothing.
        resume: a run folder to go on with; on the CPU the result is bit-identical to the uninterrupted run's.
        log: told the epoch and its figures.
        device: where to train.

    Returns:
        The refiner of the best epoch, averaged weights, in evaluation mode, on the CPU.

    Raises:
        RunFailed: if the loss is no longer finite.
        UserError: without articles, for the seed recipe (its loop is ``train_refinement``), or if the checkpoint is of
            another configuration.
    """
    if config.recipe != "rsr":
        fix = "Train the seed's network with train_refinement or fit_recursion; `rsr-net bench` compares both"
        raise UserError("a Refiner is trained with the rsr recipe", "recipe", fix)
    if not train or len(valid) < 2:
        raise UserError(f"{len(train)} training and {len(valid)} validation articles are too few to train on", "data")
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):  # the caller's random numbers stay as they were
        return _fit(train, valid, config, run, resume, log, device)


def _fit(
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    config: RsrConfig,
    run: Path | None,
    resume: Path | None,
    log: Log,
    device: str,
) -> Refiner:
    settings = config.train
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    lengths = np.array([len(article.sentences) for article in train])
    fits = CrossFit(train, settings.cross_fits, settings.seed)
    penalty = fits.best_penalty(settings.ridge, valid)
    base, bias = fits.whole.solve(penalty)
    own = torch.from_numpy(fits.starts(penalty))  # (N, D)

    model = Refiner(config.model)
    with torch.no_grad():
        model.base.copy_(torch.from_numpy(base))
        model.base_bias.copy_(torch.from_numpy(bias))
        model.center.copy_(torch.from_numpy(fits.whole.y / fits.whole.count))
    order = rng.permutation(len(train))
    some = order[:_STANDARDISED_ON]
    _standardise(model, [train[i] for i in some], own[some], settings.batch_size)
    model.to(device)
    averaged = copy.deepcopy(model).eval()
    best = copy.deepcopy(averaged)
    optimiser = _optimiser(model, settings)
    state = Checkpoint(model, averaged, best, optimiser, rng, config)
    if resume is not None:
        state.load(resume)

    valid_batches = [Batch.collate(valid[at : at + 64]).to(device) for at in range(0, len(valid), 64)]
    if state.epoch == 0:
        state.best_score = _score(averaged, valid_batches)  # of the untrained steps, that is of the start
    while state.epoch < settings.epochs and state.epoch - state.best_epoch < settings.patience:
        model.train()
        losses = []
        for rows in _batches(lengths, settings.batch_size, rng):
            batch = Batch.collate([train[i] for i in rows]).to(device)
            free = int(rng.integers(max(0, config.model.steps - settings.gradient_steps) + 1))
            loss = _loss(model, batch, own[rows].to(device), free, settings)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimiser.step()
            state.updates += 1
            _average(averaged, model, min(settings.ema_decay, (1 + state.updates) / (10 + state.updates)))
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise RunFailed("the loss is not finite", f"epoch {state.epoch + 1}", "Lower train.learning_rate")
        state.epoch += 1
        score = _score(averaged, valid_batches)
        if score > state.best_score:
            state.best_score, state.best_epoch = score, state.epoch
            best.load_state_dict(averaged.state_dict())
        log(state.epoch, {"loss": float(np.mean(losses)), "valid_r2": score})
        if run is not None:
            state.save(run)
    best = best.cpu().eval()
    some = order[:_CALIBRATED_ON]
    calibrate(best, [train[i] for i in some], valid, starts=own[some])
    return best


def _optimiser(model: Refiner, settings: TrainConfig) -> torch.optim.Optimizer:
    wide = [p for name, p in model.named_parameters() if name in _WIDE]
    narrow = [p for name, p in model.named_parameters() if name not in _WIDE]
    groups = [
        {"params": narrow, "lr": 2 * settings.learning_rate, "weight_decay": 1e-3},
        {"params": wide, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
    ]
    return torch.optim.AdamW(groups)


def _loss(model: Refiner, batch: Batch, y0: Tensor, free: int, settings: TrainConfig) -> Tensor:
    """Mean squared error of every supervised step, summed over components, (); more with the retrieval loss."""
    target = batch.target
    assert target is not None
    if settings.sentence_dropout > 0:
        kept = batch.mask & (torch.rand(batch.mask.shape, device=batch.mask.device) >= settings.sentence_dropout)
        batch = replace(batch, mask=torch.where(kept.any(1, keepdim=True), kept, batch.mask))
    step = model.step_map(batch, y0)
    y = y0
    with torch.no_grad():
        for _ in range(free):
            y = step(y, None)
    loss = y0.new_zeros(())
    for _ in range(settings.gradient_steps):
        y = step(y, None)
        loss = loss + ((y - target) ** 2).sum(-1).mean()
        if settings.contrastive_weight > 0:
            near = F.normalize(y - model.center, dim=-1) @ F.normalize(target - model.center, dim=-1).mT  # (B, B)
            right = torch.arange(len(near), device=near.device)
            loss = loss + settings.contrastive_weight * F.cross_entropy(near / _TEMPERATURE, right)
    return loss / settings.gradient_steps


@torch.no_grad()
def _score(model: Refiner, batches: Sequence[Batch]) -> float:
    """R² of the last step: 1 - squared error / squared distance from the mean of the training targets."""
    error = total = 0.0
    for batch in batches:
        assert batch.target is not None
        error += float(((model(batch).y - batch.target) ** 2).sum())
        total += float(((model.center - batch.target) ** 2).sum())
    return 1 - error / max(total, 1e-12)


@torch.no_grad()
def _average(averaged: Refiner, model: Refiner, decay: float) -> None:
    for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(new, 1 - decay)


@torch.no_grad()
def _standardise(model: Refiner, articles: Sequence[ArticleVectors], y0: Tensor, batch_size: int) -> None:
    """Set the mean and scale of the sentences' features."""
    rows = []
    for at in range(0, len(articles), batch_size):
        batch = Batch.collate(articles[at : at + batch_size])
        guess = y0[at : at + batch_size]
        fixed = torch.cat([guess[:, None], article_vectors(batch)], 1)
        rows.append(model.features(batch, guess, fixed)[batch.mask])
    found = torch.cat(rows)  # (sentences, F)
    model.feature_mean.copy_(found.mean(0))
    model.feature_std.copy_(found.std(0, unbiased=False).clamp_min(1e-3))


def _batches(lengths: NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Batches of articles of about the same length, in random order: little padding."""
    order = np.argsort(lengths + rng.random(len(lengths)) * _LENGTH_JITTER, kind="stable")
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]
