"""One process or several: what `torchrun` started, and the sums over them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentlab_shared.errors import UserError


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: of this one, from 0; only the first writes.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def gather(self, value: Tensor) -> list[Tensor]:
        """The tensors of all processes, of one shape, on every process."""
        if self.size == 1:
            return [value]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return parts

    def share(self, value: Any) -> Any:
        """The first process's plain value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def leave(self) -> None:
        """Say goodbye to the others."""
        if self.size > 1:
            dist.destroy_process_group()


def join(device: torch.device) -> Processes:
    """Join the processes that `torchrun` started; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes()
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot meet ({error})", "WORLD_SIZE", "Start them with torchrun") from error
    return Processes(dist.get_rank(), dist.get_world_size())
