"""Fixed points of y ↦ f(y), a batch at a time: Picard and Anderson iteration, residuals, spectral radius."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Solver = Literal["picard", "anderson"]
# Takes the states of some rows, (A, D), and which rows they are, (A,), or None for all of them.
StepMap = Callable[[Tensor, Tensor | None], Tensor]


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
    """Iterate ``y ← step(y)`` and let each row halt by itself.

    Args:
        step: the map; its rows must not depend on each other.
        y: first state, (B, D).
        steps: at most so many steps, K.
        tol: a row halts when its residual falls to this value; None runs every step.
        solver: "picard" takes f(y) itself, "anderson" the combination of the last ``memory`` values of f whose
            residuals cancel best, per row.
        memory: Anderson's window.
        ridge: Anderson's regularisation, relative to the residuals' scale.

    Returns:
        States, residuals and step counts. Halted rows keep their state and are not computed any more.

    Raises:
        ValueError: for an unknown solver, or numbers out of range.

    Source: Walker & Ni 2011 (Anderson acceleration); Bai et al. 2019 (DEQ).
    """
    if solver not in get_args(Solver):
        raise ValueError(f"solver={solver!r} is not a choice; use one of: {', '.join(get_args(Solver))}")
    if steps < 0 or memory < 1 or (tol is not None and not tol >= 0):
        raise ValueError(f"steps={steps}, memory={memory} or tol={tol} is out of range")
    rows: Tensor | None = None  # the rows still running; None while that is all of them
    running = torch.ones(len(y), dtype=torch.bool, device=y.device)
    steps_used = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    trajectory, residuals = [y], []
    inputs: list[Tensor] = []  # the last states and their images, of every row: (B, D) each
    images: list[Tensor] = []
    for _ in range(steps):
        image = step(y, None) if rows is None else y.index_put((rows,), step(y[rows], rows))  # (B, D)
        new = image
        if solver == "anderson":
            inputs, images = [*inputs, y][-memory:], [*images, image][-memory:]
            new = torch.where(running[:, None], _anderson(inputs, images, ridge), y)
        residual = (new - y).norm(dim=-1) / new.norm(dim=-1).clamp_min(1e-12)  # (B,)
        steps_used = steps_used + running
        y = new
        trajectory.append(y)
        residuals.append(residual)
        if tol is not None:
            running = running & (residual > tol)
            rows = running.nonzero().squeeze(-1)
            if not len(rows):
                break
            rows = None if len(rows) == len(y) else rows
    return FixedPoint(
        y=y,
        trajectory=torch.stack(trajectory),
        residuals=torch.stack(residuals) if residuals else y.new_zeros(0, len(y)),
        steps_used=steps_used,
    )


def _anderson(inputs: list[Tensor], images: list[Tensor], ridge: float) -> Tensor:
    """The mix of images, weights summing to 1, whose mixed residual is smallest; (B, D)."""
    image = torch.stack(images, dim=1)  # (B, m, D)
    residual = image - torch.stack(inputs, dim=1)  # (B, m, D)
    gram = residual @ residual.mT  # (B, m, m)
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)  # (B,)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights: Tensor = torch.linalg.solve(gram / scale[:, None, None] + ridge * eye, torch.ones_like(gram[..., :1]))
    return (weights / weights.sum(1, keepdim=True) * image).sum(1)


def spectral_radius(step: StepMap, y: Tensor, *, iterations: int = 30, seed: int = 0) -> Tensor:
    """The largest |eigenvalue| of the step's Jacobian at ``y``, per row, by power iteration.

    Below 1 the iteration converges near ``y``. The estimate is the geometric mean growth over the second half of the
    iterations, so that a leading complex pair does not make it oscillate.

    Args:
        step: the map, as in ``solve``.
        y: where to linearise, (B, D).
        iterations: products with the Jacobian.
        seed: of the first direction.

    Returns:
        (B,).
    """
    draw = torch.Generator().manual_seed(seed)
    v = torch.randn(y.shape, generator=draw, dtype=y.dtype).to(y.device)
    v = v / v.norm(dim=-1, keepdim=True)
    growth = []
    # Products with the transpose, which has the same eigenvalues: one forward pass serves all of them.
    pull = torch.func.vjp(lambda state: step(state, None), y)[1]
    for _ in range(iterations):
        product: Tensor = pull(v)[0]
        size = product.norm(dim=-1).clamp_min(1e-30)  # (B,)
        growth.append(size.log())
        v = product / size[:, None]
    return torch.stack(growth[iterations // 2 :]).mean(0).exp()
