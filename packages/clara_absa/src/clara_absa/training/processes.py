"""Processes that share a training: each holds the whole model (DDP), or a part of every layer (FSDP2)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentlab_shared.errors import RunFailed


@dataclass(frozen=True)
class Workers:
    """The processes that share a training: those of ``accelerate launch`` or ``torchrun``, else this one.

    Attributes:
        rank: of this process.
        world: how many there are.
        sharded: whether each holds only a part of the model.
    """

    rank: int = 0
    world: int = 1
    sharded: bool = False

    @classmethod
    def join(cls, device: str, sharded: bool) -> Workers:
        """Meet the other processes, if a launcher started several.

        Args:
            device: the kind it will compute on; "cpu" keeps them off a GPU.
            sharded: for ``train.parallel == "shard"``; alone, a process always holds everything.

        Raises:
            RunFailed: if the launcher's processes do not meet: each would train a model of its own.
        """
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")
        if state.num_processes != started:
            fix = "Start as many as there are GPUs, or give --device cpu"
            raise RunFailed(f"{started} processes were started and did not meet", "WORLD_SIZE", fix)
        return cls(state.process_index, state.num_processes, sharded)

    def wrap(self, model: Any) -> Any:
        """The model, its gradients averaged over the processes."""
        if self.world == 1:
            return model
        if self.sharded:
            return _shard(model)
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)


def _shard(model: Any) -> Any:
    """FSDP2: each decoder layer is gathered when it is used, the rest of the model for the whole of a step."""
    from torch.distributed import get_backend
    from torch.distributed.fsdp import fully_shard

    for layer in model._causal.model.layers:
        fully_shard(layer)
    fully_shard(model)
    if get_backend() == "gloo":  # it has no average
        model.set_force_sum_reduction_for_comms(True)
    return model


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes; all of them have to ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def like(tensor: Tensor, held: Tensor) -> Tensor:
    """A whole tensor, cut as ``held`` is if that is shared out."""
    mesh = getattr(held, "device_mesh", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Any = held
    return distribute_tensor(tensor.to(mesh.device_type), mesh, placed.placements)
