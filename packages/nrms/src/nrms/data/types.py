"""What a click log is at each stage: rows → ``News`` and ``Impression`` → token arrays → ``Batch``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class News:
    """One article of the catalogue.

    Attributes:
        id: the source's own identifier (MIND: N1234).
        title: as published.
        category: top-level topic, or "".
        subcategory: or "".
        abstract: or "".
        published: or None.
    """

    id: str
    title: str
    category: str = ""
    subcategory: str = ""
    abstract: str = ""
    published: datetime | None = None


@dataclass(frozen=True)
class Impression:
    """One list of articles shown to one user.

    Attributes:
        id: the impression's identifier.
        user: the user's identifier.
        time: when it was shown.
        history: ids of the articles clicked before, oldest first; may be empty.
        candidates: ids of the articles shown, in the order of the log.
        labels: 1 for clicked, 0 for not, one per candidate; None in an unlabelled test part.
    """

    id: str
    user: str
    time: datetime
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    labels: tuple[int, ...] | None


@dataclass(frozen=True)
class TokenTable:
    """The titles of a catalogue as rows of token ids; row 0 is the empty title that pads.

    Attributes:
        tokens: (N + 1, T) int32, 0 where there is no token; may be a memory map.
        lengths: tokens of each row, (N + 1,); with more views than the title of each view, (N + 1, views).
        row_of: article id → row.
    """

    tokens: Ints
    lengths: Ints
    row_of: dict[str, int]


@dataclass(frozen=True)
class Batch:
    """B training samples over the U distinct articles that they mention; each article is encoded once.

    Attributes:
        titles: token ids of the distinct articles, (U, T); row 0 is padding.
        title_lengths: tokens of each, (U,), or of each view, (U, views).
        history: rows of ``titles``, oldest first, 0 where there is none, (B, H).
        candidates: rows of ``titles``: the clicked article and K negatives, or a whole impression, (B, C).
        candidate_mask: True where a candidate is, (B, C).
        target: the place of the clicked article among the candidates, (B,); None when labels are not known.
        weight: how much each sample counts, (B,); None where all count alike.
    """

    titles: Tensor
    title_lengths: Tensor
    history: Tensor
    candidates: Tensor
    candidate_mask: Tensor
    target: Tensor | None = None
    weight: Tensor | None = None

    @property
    def history_mask(self) -> Tensor:
        """True where a read article is, (B, H)."""
        return self.history != 0

    def __len__(self) -> int:
        return len(self.history)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: v.to(device) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **moved)
