"""Where tensors live."""

from __future__ import annotations

import os

import torch

from latentlab_shared.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``mps`` as a device; under torchrun each process takes its own GPU.

    Raises:
        UserError: for a device that is not here.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there.get(name.partition(":")[0], False):
        raise UserError(f"there is no device {name!r} here", "--device", "Use auto or cpu")
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)
