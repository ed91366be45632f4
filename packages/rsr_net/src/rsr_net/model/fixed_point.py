"""Fixed points of y ↦ f(y), a batch at a time: Picard and Anderson iteration, residuals, spectral radius."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Solver = Literal["picard", "anderson"]
StepMap = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FixedPoint:
    """What a solver did with B rows of width D in K steps.

    Attributes:
        y: the last state of each row, (B, D).
        trajectory: the state at the start and after each step, (K + 1, B, D).
        residuals: ||y_k - y_{k-1}|| / ||y_k|| of each step, (K, B); zero once a row has halted.
        steps_used: steps each row took, (B,) int64.
    """

    y: Tensor
    trajectory: Tensor
    residuals: Tensor
    steps_used: Tensor


def solve(
    step: StepMap,
    y: Tensor,
    *,
    steps: int,
    tol: float | None = None,
    solver: Solver = "picard",
    memory: int = 4,
    ridge: float = 1e-4,
) -> FixedPoint:
    """Iterate ``y ← step(y, rows)`` and stop each row by itself.

    Args:
        step: the map; gets the states of the rows still running, (A, D), and their row numbers, (A,).
        y: first state, (B, D).
        steps: at most so many steps, K.
        tol: a row halts when its residual falls to this value; None runs every step.
        solver: "picard" takes f(y) itself, "anderson" the combination of the last ``memory`` values of f whose
            residuals cancel best, per row.
        memory: Anderson's window.
        ridge: Anderson's regularisation, relative to the residuals' scale.

    Returns:
        States, residuals and step counts. Halted rows keep their state and are no longer computed.

    Raises:
        ValueError: for an unknown solver, or a negative number of steps.

    Source: Walker & Ni 2011 (Anderson acceleration, "type II"); Bai et al. 2019 (DEQ).
    """
    if solver not in ("picard", "anderson"):
        raise ValueError(f"solver={solver!r} is not a choice; use 'picard' or 'anderson'")
    if steps < 0 or memory < 1:
        raise ValueError(f"steps={steps} and memory={memory} must be at least 0 and 1")
    running = torch.arange(len(y), device=y.device)  # (A,) rows not halted yet
    steps_used = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    trajectory, residuals = [y], []
    inputs: list[Tensor] = []  # the last states and their images, of every row: (B, D) each
    images: list[Tensor] = []
    for _ in range(steps):
        if not len(running):
            break
        image = y.index_put((running,), step(y[running], running))  # (B, D); halted rows keep y
        if solver == "anderson":
            inputs, images = [*inputs, y][-memory:], [*images, image][-memory:]
            new = y.index_put((running,), _anderson(inputs, images, ridge)[running])
        else:
            new = image
        residual = (new - y).norm(dim=-1) / new.norm(dim=-1).clamp_min(1e-12)  # (B,)
        steps_used[running] += 1
        y = new
        trajectory.append(y)
        residuals.append(residual)
        if tol is not None:
            running = running[residual[running] > tol]
    return FixedPoint(
        y=y,
        trajectory=torch.stack(trajectory),
        residuals=torch.stack(residuals) if residuals else y.new_zeros(0, len(y)),
        steps_used=steps_used,
    )


def _anderson(inputs: list[Tensor], images: list[Tensor], ridge: float) -> Tensor:
    """The mix of images, weights summing to 1, whose mixed residual is smallest; (B, D)."""
    f = torch.stack(images, dim=1)  # (B, m, D)
    g = f - torch.stack(inputs, dim=1)  # (B, m, D) residuals
    gram = g @ g.mT  # (B, m, m)
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)  # (B,)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram / scale[:, None, None] + ridge * eye, torch.ones_like(gram[..., :1]))  # (B, m, 1)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * f).sum(1)


def spectral_radius(step: StepMap, y: Tensor, *, iterations: int = 30, seed: int = 0) -> Tensor:
    """The largest |eigenvalue| of the step's Jacobian at ``y``, per row, by power iteration.

    Below 1 the iteration converges near ``y``. The estimate is the geometric mean growth over the second half of the
    iterations, so a leading complex pair does not make it oscillate.

    Args:
        step: the map, as in ``solve``.
        y: where to linearise, (B, D).
        iterations: Jacobian-vector products.
        seed: of the first direction.

    Returns:
        (B,).
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    v = v / v.norm(dim=-1, keepdim=True)
    rows = torch.arange(len(y), device=y.device)
    growth = []
    for _ in range(iterations):
        _, jv = torch.func.jvp(lambda state: step(state, rows), (y,), (v,))
        size = jv.norm(dim=-1).clamp_min(1e-30)  # (B,)
        growth.append(size.log())
        v = jv / size[:, None]
    return torch.stack(growth[iterations // 2 :]).mean(0).exp()
