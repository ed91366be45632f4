"""Which part of a text a memory position stands for, what its words are, and what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clara_absa.data_utils.packing import Packed


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


@dataclass(frozen=True)
class Slots:
    """The stretches of the memory positions of packed texts, tree by tree, (V,) each.

    Attributes:
        first: flat place of the first token of the position's text.
        low: first token of its stretch, counted in its text.
        high: the token after its last.
    """

    first: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, texts: Packed, nested: bool) -> Slots:
        """Find them; a trunk is the text, then its slots.

        Args:
            texts: trunks to compress.
            nested: see `stretches`.
        """
        tree = texts.tree.flatten()
        owner = tree[texts.slots]  # (V,)
        length = torch.bincount(tree[(tree >= 0) & (texts.ids.flatten() >= 0)])  # (S,)
        count = torch.bincount(owner)  # (S,)
        begins = count.cumsum(0) - count  # (S,) number of each text's first slot
        number = torch.arange(len(owner), device=owner.device) - begins[owner]
        low, high = stretches(number, count[owner], length[owner], nested)
        return cls((texts.slots[begins] - length)[owner], low, high)

    def means(self, embeddings: Tensor) -> Tensor:
        """Mean embedding of each stretch, (V, d).

        Args:
            embeddings: of all places of the rows, (R * L, d).
        """
        sums = embeddings.float().cumsum(0)
        sums = torch.cat([sums.new_zeros(1, sums.shape[1]), sums])  # (R * L + 1, d)
        length = (self.high - self.low)[:, None]
        return (sums[self.first + self.high] - sums[self.first + self.low]) / length


def neighbours(packed: Packed, window: int, slots: Slots | None = None) -> tuple[Tensor, Tensor]:
    """Which places of a trunk are near enough to be seen, and where each place stands for that.

    A place of the text sees ``window`` tokens on either side, a memory position those of its stretch and ``window``
    around it, and of the memory itself alone. It stands in the middle of its stretch. Questions see everything.

    Args:
        packed: rows.
        window: tokens on either side.
        slots: of the memory positions, if there are any.

    Returns:
        The mask, (R, L, L) bool: who looks, and at whom; and positions, (R, L).
    """
    place = packed.positions.flatten().clone()
    low, high = place - window, place + window
    if slots is not None:
        low[packed.slots], high[packed.slots] = slots.low - window, slots.high - 1 + window
        place[packed.slots] = (slots.low + slots.high - 1) // 2
    place, low, high = (x.view(packed.ids.shape) for x in (place, low, high))
    asks = packed.branch > 0
    near = (low[:, :, None] <= place[:, None]) & (place[:, None] <= high[:, :, None]) & (packed.ids >= 0)[:, None]
    itself = torch.eye(packed.ids.shape[1], dtype=torch.bool, device=place.device)
    return near | asks[:, :, None] | itself, place
