"""Where tensors live: ``auto``, or a device by name. Needs the package ``torch``."""

import os
from collections.abc import Sequence

from latentlab_shared.errors import NeedsExtra, UserError


def choose_device(name: str, prefer: Sequence[str] = ("cuda", "mps", "cpu")) -> str:
    """A device that is there; under torchrun each process takes a GPU of its own.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", "mps".
        prefer: what "auto" takes, the first that is there.

    Raises:
        UserError: for a device that is unknown or not here.
        NeedsExtra: without torch.
    """
    try:
        import torch
    except ImportError:
        raise NeedsExtra("torch", "encoders") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        name = next((kind for kind in prefer if there[kind]), "cpu")
    kind, _, index = name.partition(":")
    if kind not in there or not (index or "0").isdigit():
        raise UserError(f"{name!r} is no device", "--device", "Use auto, cpu, cuda or mps")
    if int(index or "0") >= there[kind]:
        raise UserError("this machine has no such device", f"--device {name}", "Use auto or cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % there['cuda']}"
    return name
