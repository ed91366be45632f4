"""The gate: which chunks the decoder is shown as tokens, given the question.

A chunk's score adds how its cached vector fits the question's vector to four signs that need no network: whether it
holds a number, how rare its tokens are among the chunks at hand, how much of the question it repeats, and how much its
neighbours repeat, since a cut may fall between what is asked and the answer. Vectors lose numbers and rare names first,
so these are what is worth expanding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from latentlab_shared.errors import UserError

SIGNS = 4  # number, rarity, overlap, overlap of the neighbours


@dataclass(frozen=True)
class Budget:
    """How much may be expanded; exactly one of the three is set.

    Attributes:
        fraction: of the chunks, 0 … 1, rounded to the nearest number of chunks.
        tokens: decoder tokens that all expanded chunks may take together.
        threshold: expand every chunk whose probability is at least this, 0 … 1.
    """

    fraction: float | None = None
    tokens: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.fraction, self.tokens, self.threshold) if value is not None]
        if len(given) != 1:
            raise UserError("a budget is one of fraction, tokens and threshold", "budget", "For example: fraction=0.1")
        if isinstance(given[0], bool) or not isinstance(given[0], int if self.tokens is not None else (int, float)):
            raise UserError(f"{given[0]!r} is no budget", "budget", "Tokens are a whole number, shares a number")
        if not math.isfinite(given[0]) or given[0] < 0 or (self.tokens is None and given[0] > 1):
            raise UserError(f"{given[0]} is no budget", "budget", "Shares are from 0 to 1, tokens are 0 or more")


def choose(scores: Sequence[float], lengths: Sequence[int], budget: Budget) -> list[bool]:
    """Which chunks to expand, those of higher scores first; of equal ones the earlier.

    Args:
        scores: a logit per chunk.
        lengths: decoder tokens per chunk; with a budget of tokens, a chunk that does not fit is passed over.
        budget: how much.
    """
    if budget.threshold is not None:
        p = budget.threshold
        least = math.log(p / (1 - p)) if 0 < p < 1 else math.inf if p else -math.inf
        return [score >= least for score in scores]
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    if budget.tokens is None:
        chosen = set(order[: math.floor((budget.fraction or 0.0) * len(scores) + 0.5)])
        return [n in chosen for n in range(len(scores))]
    left, taken = budget.tokens, [False] * len(scores)
    for n in order:
        if lengths[n] <= left:
            taken[n], left = True, left - lengths[n]
    return taken


def signs(
    chunks: Sequence[Sequence[int]], has_number: Sequence[bool], document: Sequence[int], question: Sequence[int]
) -> Tensor:
    """Number, rarity, overlap and the neighbours' overlap of N chunks, (N, SIGNS), each 0 … 1.

    Args:
        chunks: encoder ids of each chunk, in the documents' order.
        has_number: whether its text has a digit.
        document: number of the document it is of.
        question: encoder ids of the question; empty to leave it out.
    """
    count = len(chunks)
    if not count:
        return torch.zeros(0, SIGNS)
    owner = np.repeat(np.arange(count), [len(chunk) for chunk in chunks])
    tokens = np.fromiter(chain.from_iterable(chunks), np.int64, len(owner))
    size = 1 + int(max(tokens.max(initial=0), max(question, default=0)))
    owner, token = np.divmod(np.unique(owner * size + tokens), size)  # a token counts once in a chunk
    held = np.bincount(token, minlength=size)  # chunks that have it
    rare = np.log((1 + count) / np.maximum(1, held))
    wanted = np.zeros(size)
    wanted[list(question)] = 1.0
    worth = rare * wanted * (held > 0)
    rarity = np.bincount(owner, rare[token], count) / np.maximum(1, np.bincount(owner, minlength=count))
    overlap = np.bincount(owner, worth[token], count) / (worth.sum() or 1.0)
    one = np.asarray(document)
    together = one[1:] == one[:-1]  # neighbours of one document
    beside = np.zeros(count)
    beside[:-1] = np.where(together, overlap[1:], 0.0)
    beside[1:] = np.maximum(beside[1:], np.where(together, overlap[:-1], 0.0))
    columns = [np.asarray(has_number, np.float64), rarity / (math.log(1 + count) or 1.0), overlap, beside]
    return torch.from_numpy(np.stack(columns, 1)).float()


class Gate(nn.Module):
    """Scores of chunks, as logits: score = ⟨A c, B q⟩ / √G + w · signs + bias.

    Args:
        width: E, of the encoder's vectors.
        dim: G, in which chunk and question are compared.
        asks: whether there is a question; without one, a learned vector stands in its place.
    """

    def __init__(self, width: int, dim: int, asks: bool) -> None:
        super().__init__()
        self.chunk = nn.Linear(width, dim, bias=False)  # A
        self.question = nn.Linear(width, dim, bias=False) if asks else None  # B
        self.standing = None if asks else nn.Parameter(torch.zeros(dim))
        self.signs = nn.Linear(SIGNS, 1)
        with torch.no_grad():
            # Before any training: the question's rare words first, then numbers, then rare tokens.
            self.signs.weight.copy_(torch.tensor([[0.5, 0.5, 4.0, 2.0]]))
            self.signs.bias.fill_(-3.0)

    def forward(self, vectors: Tensor, signs: Tensor, question: Tensor | None = None) -> Tensor:
        """Scores (N,) of N chunks.

        Args:
            vectors: of the chunks, before the projector, (N, E).
            signs: what ``signs`` gave, (N, SIGNS).
            question: its vector, (E,); needed if the gate asks.
        """
        keys = self.chunk(nn.functional.normalize(vectors, dim=-1))  # (N, G)
        if self.question is not None:
            if question is None:
                raise ValueError("this gate compares chunks with a question")
            query = self.question(nn.functional.normalize(question, dim=-1))
        else:
            query = self.standing
        score: Tensor = keys @ query / math.sqrt(keys.shape[-1]) + self.signs(signs.to(keys)).squeeze(-1)
        return score
