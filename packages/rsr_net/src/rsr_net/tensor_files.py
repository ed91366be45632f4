"""Writing tensors so that a full disk is told like any other, by the system's own error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    safetensors' own writer hides the cause of a failure, so the bytes are made first and written like any file's.

    Args:
        path: the file.
        tensors: by name; they may share memory and lie on any device.
        metadata: of the header.

    Raises:
        OSError: what the system says; ``disk_errors`` makes it one line.
    """
    from safetensors.torch import save

    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.write_bytes(save(own, metadata))
