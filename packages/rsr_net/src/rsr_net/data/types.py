"""What text is at each stage: ``Example`` (words) → ``ArticleVectors`` (one article) → ``Batch`` (tensors)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """One article and, where it is known, its human summary.

    Attributes:
        id: the source's own identifier (CNN/DailyMail: the sha1 of the article's address).
        sentences: the article, split into sentences, in order.
        highlights: the summary's sentences; empty when there is none.
    """

    id: str
    sentences: tuple[str, ...]
    highlights: tuple[str, ...] = ()

    @property
    def article(self) -> str:
        """The article as one text."""
        return " ".join(self.sentences)

    @property
    def summary(self) -> str:
        """The summary as one text."""
        return " ".join(self.highlights)

    @property
    def lead(self) -> str:
        """The first three sentences."""
        return " ".join(self.sentences[:3])


@dataclass(frozen=True)
class ArticleVectors:
    """The embeddings of one example: D is the encoder's width, S the number of sentences.

    Attributes:
        id: the example's id.
        doc: the whole article, (D,).
        lead: its first three sentences read as one text, (D,).
        sentences: each sentence, (S, D).
        target: the human summary, (D,), or None.
    """

    id: str
    doc: Floats
    lead: Floats
    sentences: Floats
    target: Floats | None = None


@dataclass(frozen=True)
class Batch:
    """Padded tensors of B articles: S sentences at most, D the encoder's width.

    Attributes:
        doc: (B, D).
        lead: (B, D).
        sentences: (B, S, D), zero where ``mask`` is False.
        mask: True where a sentence is, (B, S).
        target: (B, D), or None when the summaries are not known.
    """

    doc: Tensor
    lead: Tensor
    sentences: Tensor
    mask: Tensor
    target: Tensor | None = None

    @classmethod
    def collate(cls, articles: Sequence[ArticleVectors]) -> Batch:
        """Stack articles, padding each to the longest; targets only when every article has one."""
        width, longest = articles[0].doc.shape[0], max(len(a.sentences) for a in articles)
        sentences = torch.zeros(len(articles), longest, width)  # (B, S, D)
        mask = torch.zeros(len(articles), longest, dtype=torch.bool)
        for row, article in enumerate(articles):
            sentences[row, : len(article.sentences)] = torch.from_numpy(article.sentences)
            mask[row, : len(article.sentences)] = True
        targets = [a.target for a in articles if a.target is not None]
        return cls(
            doc=torch.from_numpy(np.stack([a.doc for a in articles])),
            lead=torch.from_numpy(np.stack([a.lead for a in articles])),
            sentences=sentences,
            mask=mask,
            target=torch.from_numpy(np.stack(targets)) if len(targets) == len(articles) else None,
        )

    def __len__(self) -> int:
        return len(self.doc)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: v.to(device) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **moved)
