"""The seed's recursion: one small network, applied n times per segment, T segments, gradient in the last only."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

States = tuple[Tensor, Tensor]


class RecursionModel(nn.Module):
    """x, y and z concatenated → hidden → hidden → a new y, an auxiliary y and a new z.

    Args:
        input_dim: width of the document embedding x.
        hidden_dim: width of both hidden layers.
        latent_dim: width of the latent memory z.
        num_classes: width of the summary state y (the embedding's width, 768 for BART-base).
        norm: "batch" is the seed's notebook: in training mode the articles of a batch change each other's states, and
            the passes without gradient move the running statistics. "layer" has neither effect.
        confidence: "max" is the seed's notebook, sigmoid(max(y)); its ``fc_aux`` then never gets a gradient.
            "aux" reads y_aux instead: sigmoid(mean(y_aux)).

    Source: the seed's "Model Architecture".
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 128,
        latent_dim: int = 64,
        num_classes: int = 768,
        *,
        norm: Literal["batch", "layer"] = "batch",
        confidence: Literal["max", "aux"] = "max",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "layer") or confidence not in ("max", "aux"):
            raise ValueError(f"norm={norm!r} or confidence={confidence!r} is not a choice")
        self.input_dim, self.hidden_dim, self.latent_dim = input_dim, hidden_dim, latent_dim
        self.num_classes, self.confidence = num_classes, confidence
        make_norm = nn.BatchNorm1d if norm == "batch" else nn.LayerNorm
        self.fc1 = nn.Linear(input_dim + num_classes + latent_dim, hidden_dim)
        self.norm1 = make_norm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.norm2 = make_norm(hidden_dim)
        self.fc_latent = nn.Linear(hidden_dim, latent_dim)
        self.fc_out = nn.Linear(hidden_dim, num_classes)
        self.fc_aux = nn.Linear(hidden_dim, num_classes)

    def start(self, x: Tensor) -> States:
        """The first states: zeros (B, num_classes) and (B, latent_dim)."""
        return x.new_zeros(len(x), self.num_classes), x.new_zeros(len(x), self.latent_dim)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One application.

        Args:
            x: document embedding, (B, input_dim).
            y: summary state, (B, num_classes).
            z: latent memory, (B, latent_dim).

        Returns:
            ``y_out`` and ``y_aux``, (B, num_classes), and ``z_new`` ≥ 0, (B, latent_dim).
        """
        h = torch.cat([x, y, z], dim=-1)  # (B, input_dim + num_classes + latent_dim)
        h = F.relu(self.norm1(self.fc1(h)))  # (B, H)
        h = F.relu(self.norm2(self.fc2(h)))  # (B, H)
        return self.fc_out(h), self.fc_aux(h), F.relu(self.fc_latent(h))


def _inner_loop(x: Tensor, y: Tensor, z: Tensor, net: RecursionModel, n: int) -> tuple[Tensor, Tensor, Tensor]:
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    for _ in range(n):
        y, y_aux, z = net(x, y, z)
    return y, y_aux, z


def latent_recursion(x: Tensor, y: Tensor, z: Tensor, net: RecursionModel, n: int = 4) -> States:
    """The inner loop: (y, z) ← net(x, y, z), n times, both states at once.

    Args:
        x: document embedding, (B, D).
        y: summary state, (B, D).
        z: latent memory, (B, L).
        net: the network.
        n: applications.

    Returns:
        The new y (B, D) and z (B, L).

    Raises:
        ValueError: if ``n < 1``.

    Source: the seed's "Recursive Training Mechanism", 1. (The paper updates y once, after n updates of z.)
    """
    y, _, z = _inner_loop(x, y, z, net, n)
    return y, z


def deep_recursion(
    x: Tensor, y: Tensor, z: Tensor, net: RecursionModel, n: int = 4, T: int = 3
) -> tuple[States, Tensor, Tensor]:
    """The outer loop: T - 1 segments without gradient, one with.

    Args:
        x: document embedding, (B, D).
        y: current summary embedding, (B, D).
        z: latent memory, (B, L).
        net: the network.
        n: network applications per segment.
        T: segments; only the last carries gradient.

    Returns:
        The detached states (y, z); the prediction ``y_hat`` (B, D) and the confidence ``q_hat`` (B,), with gradient.

    Raises:
        ValueError: if the batch sizes differ, or ``n < 1`` or ``T < 1``.

    Source: the seed's "Recursive Training Mechanism", 2; Jolicoeur-Martineau 2025, figure 3.
    """
    if not len(x) == len(y) == len(z):
        raise ValueError(f"batch sizes differ: x {len(x)}, y {len(y)}, z {len(z)}")
    if T < 1:
        raise ValueError(f"T must be at least 1, not {T}")
    with torch.no_grad():
        for _ in range(T - 1):
            y, z = latent_recursion(x, y, z, net, n)
    y_hat, y_aux, z = _inner_loop(x, y, z, net, n)
    q_hat = torch.sigmoid(y_hat.amax(-1) if net.confidence == "max" else y_aux.mean(-1))
    return (y_hat.detach(), z.detach()), y_hat, q_hat


def recursion_loss(y_hat: Tensor, q_hat: Tensor, y_true_emb: Tensor, aux_weight: float = 0.1) -> Tensor:
    """MSE(y_hat, y_true_emb) + aux_weight · BCE(q_hat, 1), the seed's loss.

    The second term asks for confidence whatever the error is: see the README for what it does to training.
    """
    return F.mse_loss(y_hat, y_true_emb) + aux_weight * F.binary_cross_entropy(q_hat, torch.ones_like(q_hat))
