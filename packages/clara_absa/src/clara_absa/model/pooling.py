"""Which part of a text a memory position begins with."""

from __future__ import annotations

import torch
from torch import Tensor


def stretches(number: Tensor, count: Tensor, length: Tensor, nested: bool) -> tuple[Tensor, Tensor]:
    """The stretch of text that a memory position begins with.

    Plain memories part the text evenly. Nested ones go from coarse to fine, because the first of them must do alone:
    the whole text; its second half; the second and the last quarter; every second eighth, and so on.

    Args:
        number: of the position in its memory, from 0, (V,).
        count: positions of that memory, (V,).
        length: tokens of its text, (V,).
        nested: whether prefixes of the memory are memories.

    Returns:
        First token and the token after the last, (V,) each; at least one token lies between.
    """
    if nested:
        level = torch.where(number > 0, torch.log2(number.clamp(min=1).float()).floor().long() + 1, 0)
        parts = 2**level
        at = torch.where(number > 0, 2 * (number - parts // 2) + 1, 0)
    else:
        parts, at = count, number
    low = (at * length // parts).clamp(max=length - 1)
    return low, torch.maximum((at + 1) * length // parts, low + 1)
