"""What each part of the recipe is worth: the folds with one thing changed at a time, and the seed's own recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentlab_shared.files import read_json, write_json
from latentlab_shared.provenance import write_table
from rsr_net.config import RsrConfig, TrainConfig
from rsr_net.data.types import Floats
from rsr_net.evaluation.baselines import seed_network, seed_predictions
from rsr_net.evaluation.folds import (
    FULL,
    OVER,
    SHORT,
    Fold,
    Log,
    Part,
    follow,
    load_fold,
    read_part,
    train_on,
    with_seed,
)
from rsr_net.evaluation.halting import HaltingHead
from rsr_net.evaluation.tables import SEED_NETWORK, pooled
from rsr_net.evaluation.vectors import r2, r2_difference, score_vectors
from rsr_net.model.refiner import Refiner
from rsr_net.training.ridge import CrossFit, target_matrix

# One change each: of the model's settings, of the training's.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "recipe": ({}, {}),
    "one step, straight to its target": ({"steps": 1, "step_size": 1.0}, {"gradient_steps": 1}),
    "gradient through all eight steps": ({}, {"gradient_steps": 8}),
    "starts that have seen their target": ({}, {"cross_fits": 1}),
    "latent memory of one number": ({"latent_dim": 1}, {}),
    "latent memory of 256 numbers": ({"latent_dim": 256}, {}),
    "one head": ({"heads": 1}, {}),
    "eight heads": ({"heads": 8}, {}),
    "no hidden sentences": ({}, {"sentence_dropout": 0.0}),
    "last weights instead of averaged": ({}, {"ema_decay": 0.0}),
    "no retrieval loss": ({}, {"contrastive_weight": 0.0}),
    "a fifth of the retrieval loss": ({}, {"contrastive_weight": 0.2}),
}
# How an article stops by itself: a tolerance of the residual, or a halting head (None).
STOPS: dict[str, float | None] = {
    "each article stops at a residual below 0.02": 0.02,
    "each article stops where a halting head sees no gain": None,
}
FULL_ONLY = "without the short articles"
# The seed's own network: epochs, and whether its norm and loss are mended.
SEED_FORMS: dict[str, tuple[int, bool]] = {
    SEED_NETWORK: (2, False),
    "the seed's network, 20 epochs": (20, False),
    "the seed's network, layer norm, no confidence loss, 20 epochs": (20, True),
}


def run_ablation(
    data_dir: Path,
    work_dir: Path,
    *,
    encoder: str = "lsa",
    seeds: Sequence[int] = (0,),
    folds: int = 5,
    few: int | None = None,
    limit: int | None = None,
    log: Log = lambda _: None,
) -> list[dict[str, Any]]:
    """Train every variant on every fold, or on the first ``few``; a finished one is not trained again.

    The other arguments are those of ``folds.run_folds``.

    Returns:
        Rows with R² at the last step, at three times the depth, cosine, centred R@1, the steps taken, and the
        difference in R² to the recipe with its paired interval over articles.
    """
    full = list(chain.from_iterable(read_part(data_dir / name) for name in FULL))[:limit]
    short = read_part(data_dir / SHORT)[: None if limit is None else 3 * limit]
    done: dict[str, list[dict[str, Any]]] = {}
    for number in range(folds)[:few]:
        fold: Fold | None = None
        for seed in seeds:
            path = work_dir / f"ablation-{encoder.replace('/', '-')}-{limit}-{folds}-{number}-{seed}.json"
            found: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
            for name in (*CHANGES, *STOPS, FULL_ONLY, *SEED_FORMS):
                if name not in found:
                    fold = fold or load_fold(full, short, number, folds, encoder, work_dir, log)
                    found[name] = {"seed": seed, **_variant(fold, name, seed, len(short))}
                    write_json(path, found)
                    log(f"fold {number + 1} of {folds}, seed {seed}: {name}")
                done.setdefault(name, []).append(found[name])
    return [_row(name, done) for name in done]


def write_ablation(
    output_dir: Path, rows: list[dict[str, Any]], *, command: str, data: str, seeds: Sequence[int]
) -> Path:
    """Write ``ablation.json``, from which the README's table is made."""
    path = output_dir / "ablation.json"
    write_table(path, rows, command=command, data=data, seeds=seeds)
    return path


def _variant(fold: Fold, name: str, seed: int, short: int) -> dict[str, Any]:
    """One variant on one fold: per article, the errors at the last step and at three times the depth, and the hits."""
    target = target_matrix(fold.test.vectors).astype(np.float64)
    if name in SEED_FORMS:
        epochs, mended = SEED_FORMS[name]
        net = seed_network(fold.train.vectors, seed=seed, epochs=epochs, mended=mended)
        depth = TrainConfig.n_supervision
        used = np.full(len(target), depth)
        y, far = (seed_predictions(net, fold.test.vectors, segments) for segments in (depth, OVER * depth))
        center = target_matrix(fold.train.vectors).mean(0)
    else:
        model, train = CHANGES.get(name, ({}, {}))
        base = with_seed(RsrConfig.default("rsr"), target.shape[1], seed)
        config = replace(base, model=replace(base.model, **model), train=replace(base.train, **train))
        if name == FULL_ONLY:
            kept = len(fold.train.vectors) - short
            fold = replace(fold, train=Part(fold.train.examples[:kept], fold.train.vectors[:kept]))
        refiner, depth = train_on(fold, config, selector=False), config.model.steps
        center = refiner.center.numpy()
        if name in STOPS:
            y, used = _stopped(refiner, fold, config, STOPS[name], depth)
            far, _ = _stopped(refiner, fold, config, STOPS[name], OVER * depth)
        else:
            states, _ = follow(refiner, fold.test, OVER * depth)
            y, far, used = states[depth], states[-1], np.full(len(target), depth)
    scores = score_vectors(y, target, center.astype(np.float64), target[:0])
    return {
        "ids": [e.id for e in fold.test.examples],
        "error": scores.error.tolist(),
        "error_far": ((far - target) ** 2).sum(1).tolist(),
        "spread": scores.spread.tolist(),
        "cosine": scores.cosine.tolist(),
        "hit_centred": scores.hit_centred.tolist(),
        "steps": used.tolist(),
    }


@torch.no_grad()
def _stopped(
    refiner: Refiner, fold: Fold, config: RsrConfig, tol: float | None, steps: int
) -> tuple[Floats, NDArray[np.int64]]:
    """The test articles' states where they halt, (N, D), and the steps they took, (N,)."""
    if tol is None:
        fits = CrossFit(fold.train.vectors, config.train.cross_fits, config.train.seed)
        starts = torch.from_numpy(fits.starts(fits.best_penalty(config.train.ridge, fold.valid.vectors)))
        return HaltingHead(refiner, fold.train.vectors, starts).refine(refiner, fold.test.vectors, steps)
    found = [refiner(batch, tol=tol, steps=steps) for _, batch in fold.test.batches()]
    return np.concatenate([f.y.numpy() for f in found]), torch.cat([f.steps_used for f in found]).numpy()


def _row(name: str, done: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    mine, recipe = done[name], done["recipe"]
    # One yardstick: another training set has another mean.
    error, spread = pooled(mine, "error"), pooled(recipe, "spread")
    metrics = {
        "r2": r2(error, spread),
        "r2_3x_depth": r2(pooled(mine, "error_far"), spread),
        "cosine": float(pooled(mine, "cosine").mean()),
        "r@1_centred": float(pooled(mine, "hit_centred").mean()),
        "steps": float(pooled(mine, "steps").mean()),
    }
    if name == "recipe":
        return {"name": name, "metrics": metrics, "interval": {}}
    change = r2_difference(error, pooled(recipe, "error"), spread)
    return {
        "name": name,
        "metrics": {**metrics, "r2_change": change.estimate},
        "interval": {"r2_change": [change.low, change.high]},
    }
