"""Where tensors live."""

from __future__ import annotations

import torch

from latentlab_shared.devices import choose_device


def own_device(name: str) -> torch.device:
    """A device by name; a GPU becomes the current one, so that NCCL uses it.

    Raises:
        UserError: for a device that is not here.
    """
    device = torch.device(choose_device(name))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
