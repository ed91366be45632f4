"""The seed's checkpoint, ``checkpoint_epoch5.pt``: read without running anything that it holds, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path

CHECKPOINT_NAME = "checkpoint_epoch5.pt"
_CONTAINERS = ("model_state_dict", "state_dict", "model")  # where training scripts keep the weights
_PREFIX = "module."  # of DataParallel


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a ``.pt`` file: a state dict, or a dictionary that holds one.

    Raises:
        UserError: if it is missing, damaged, or holds anything but tensors and plain values.
    """
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except Exception as error:  # what torch refuses to load is an error class of the pickle module
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot be read as weights ({reason})", path, "Only tensors and plain values load") from None
    for name in _CONTAINERS:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError("holds no state dict", path, f"Save one with {', '.join(_CONTAINERS)} or by itself")
    return {str(name).removeprefix(_PREFIX): value.contiguous() for name, value in held.items()}


def write_checkpoint(folder: Path, model: nn.Module, epoch: int) -> Path:
    """Write ``checkpoint_epoch{epoch}.pt`` into a model folder; returns the file."""
    path = folder / f"checkpoint_epoch{epoch}.pt"
    with atomic_path(path) as temporary:
        torch.save({"epoch": epoch, "model_state_dict": model.state_dict()}, temporary)
    return path
