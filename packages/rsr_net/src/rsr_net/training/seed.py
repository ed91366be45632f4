"""The seed's training function: one batch of texts, encoded on the spot, a few supervised segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsr_net.config import RsrConfig, TrainConfig
from rsr_net.model.recursion import RecursionModel, States, deep_recursion, recursion_loss


@dataclass(frozen=True)
class SegmentReport:
    """One supervised segment: the loss before its update, and the batch's mean confidence."""

    loss: float
    confidence: float


def train_refinement(
    articles: Sequence[str],
    summaries: Sequence[str],
    net: RecursionModel,
    optimizer: torch.optim.Optimizer,
    encode: Callable[[Sequence[str]], Tensor],
    *,
    n: int = 4,
    T: int = 3,
    config: TrainConfig | None = None,
) -> list[SegmentReport]:
    """Train on one batch of texts, the seed's way: both sides are encoded anew at every call.

    Args:
        articles: B documents.
        summaries: their B summaries.
        net: the network; its widths must be the encoder's.
        optimizer: over the network's parameters.
        encode: texts → embeddings, (B, D).
        n: network applications per segment.
        T: segments per update; only the last carries gradient.
        config: weights and limits; the seed's when None.

    Returns:
        One report per supervised segment; fewer than ``n_supervision`` when the mean confidence passed the limit.

    Raises:
        ValueError: if the encoder's width is not the network's.
    """
    with torch.no_grad():
        x, target = encode(articles), encode(summaries)
    if x.shape[-1] != net.input_dim or target.shape[-1] != net.num_classes:
        raise ValueError(
            f"the encoder gives {x.shape[-1]} and {target.shape[-1]} numbers, the network takes {net.input_dim} "
            f"and {net.num_classes}"
        )
    return supervise(x, target, net, optimizer, n=n, T=T, config=config or TrainConfig())


def supervise(
    x: Tensor,
    target: Tensor,
    net: RecursionModel,
    optimizer: torch.optim.Optimizer,
    *,
    n: int,
    T: int,
    config: TrainConfig,
) -> list[SegmentReport]:
    """Deep supervision on one batch of embeddings, (B, D) both: an update per segment, states carried, detached."""
    net.train()
    y, z = net.start(x)
    reports = []
    for _ in range(config.n_supervision):
        (y, z), y_hat, q_hat = deep_recursion(x, y, z, net, n, T)
        loss = recursion_loss(y_hat, q_hat, target, config.aux_weight)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        optimizer.step()
        reports.append(SegmentReport(loss.item(), q_hat.mean().item()))
        if reports[-1].confidence > config.stop_confidence:
            break
    return reports


def fit_recursion(
    x: Tensor,
    target: Tensor,
    config: RsrConfig,
    *,
    log: Callable[[int, float], None] = lambda epoch, loss: None,
) -> RecursionModel:
    """The seed's training loop on cached embeddings: batches in random order, each supervised ``n_supervision`` times.

    Args:
        x: document embeddings, (N, D).
        target: summary embeddings, (N, D).
        config: sizes, weights and epochs.
        log: told each epoch and its mean loss.

    Returns:
        The network of the last epoch, in evaluation mode.
    """
    model, train = config.model, config.train
    with torch.random.fork_rng([]):
        torch.manual_seed(train.seed)
        net = RecursionModel(
            x.shape[1],
            model.hidden_dim,
            model.latent_dim,
            target.shape[1],
            norm=model.norm,
            confidence=model.confidence,
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=train.learning_rate)
        for epoch in range(train.epochs):
            losses = []
            # A last batch of one article would have no variance for the batch norm.
            for rows in torch.split(torch.randperm(len(x)), train.batch_size):
                if len(rows) > 1 or model.norm == "layer":
                    reports = supervise(x[rows], target[rows], net, optimizer, n=model.n, T=model.T, config=train)
                    losses.append(reports[-1].loss)
            log(epoch + 1, sum(losses) / max(len(losses), 1))
    return net.eval()


@torch.no_grad()
def predict_recursion(net: RecursionModel, x: Tensor, *, n: int = 4, T: int = 3, segments: int = 1) -> States:
    """The seed's prediction from zero states: ``y_hat`` (N, D) and ``q_hat`` (N,) after some deep recursions."""
    y, z = net.start(x)
    for _ in range(segments):
        (y, z), y_hat, q_hat = deep_recursion(x, y, z, net, n, T)
    return y_hat, q_hat
