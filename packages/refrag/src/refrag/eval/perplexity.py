"""Perplexity of what follows a context, by how the context is given: the paper's test of compression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlab_shared.errors import UserError
from refrag.model.tokenization_refrag import Chunk
from refrag.training.objectives import ContinuationObjective, Passage

WAYS = ("none", "last", "compressed", "full")
"""No context; its last tokens, as many as there are vectors; its vectors; all of its tokens."""


@dataclass(frozen=True)
class Perplexity:
    """Mean negative log-likelihood of the targets, in nats per token.

    Attributes:
        none: without a context.
        last: after the last tokens of the context, as many as there are vectors.
        compressed: after its vectors.
        full: after all its tokens.
        tokens: of all targets.
        windows: contexts with a target.
        spread: standard error of ``gap_closed`` over windows, by the delta method.
    """

    none: float
    last: float
    compressed: float
    full: float
    tokens: int
    windows: int = 0
    spread: float = 0.0

    def gap_closed(self, way: str = "compressed") -> float:
        """Share of what the whole context gains that a way of giving it keeps: 1 as good as full, 0 as none.

        Where the whole context gains nothing, there is no share, and it is 0.

        Source: the paper, footnote 2.
        """
        value: float = getattr(self, way)
        gap = self.none - self.full
        return (self.none - value) / gap if gap else 0.0


def contexts(
    texts: Sequence[Sequence[Chunk]], context: int, target: int
) -> Iterator[tuple[Sequence[Chunk], tuple[int, ...]]]:
    """Contexts of so many chunks, and the tokens of the chunks behind each, side by side through each text."""
    for chunks in texts:
        for start in range(0, len(chunks) - context - target + 1, context + target):
            end = start + context
            yield chunks[start:end], tuple(t for chunk in chunks[end : end + target] for t in chunk.decoder_ids)


def passages(context: Sequence[Chunk], target: Sequence[int]) -> dict[str, Passage]:
    """One passage for each of ``WAYS``; all are given the target's first token, before which there may be nothing."""
    tokens = tuple(token for chunk in context for token in chunk.decoder_ids)
    first, rest = tuple(target[:1]), tuple(target[1:])
    return {
        "none": Passage((first,), rest),
        "last": Passage((tokens[-len(context) :], first), rest),
        "compressed": Passage((*context, first), rest),
        "full": Passage((tokens, first), rest),
    }


@torch.no_grad()
def measure_perplexity(
    objective: ContinuationObjective,
    texts: Sequence[str],
    *,
    context: int,
    target: int,
    compression: int | None = None,
    batch_size: int = 16,
    reference: Any = None,
) -> Perplexity:
    """Measure a model on held-out texts.

    Args:
        objective: of the model; put into evaluation mode.
        texts: held out.
        context: chunks of a context.
        target: chunks behind it.
        compression: another k than the tokenizer's own.
        batch_size: passages per decoder call.
        reference: another decoder with the same tokens, such as the one that the model began with. What has no vectors
            is then read by both, and the one that is better at it counts: a decoder that training has made worse at
            reading tokens would flatter its vectors.

    Raises:
        UserError: if no text is long enough, or the reference has other tokens.
    """
    objective.eval()
    cut = [objective.tokenizer.chunks(text, compression) for text in texts]
    found = [passages(*pair) for pair in contexts(cut, context, target) if len(pair[1]) > 1]
    if not found:
        raise UserError(f"no text has {context + target} chunks", "data", "Give longer texts, or a shorter context")
    counts = torch.tensor([len(ways["full"].target) for ways in found], dtype=torch.float64)

    def read(way: str) -> Tensor:
        losses = [
            objective.per_passage([ways[way] for ways in found[at : at + batch_size]]).double().cpu()
            for at in range(0, len(found), batch_size)
        ]
        return torch.cat(losses) * counts  # nats of each window

    sums = {way: read(way) for way in WAYS}
    if reference is not None:
        own = objective.model.decoder
        if reference.config.vocab_size != own.config.vocab_size:
            raise UserError("the reference has another vocabulary", "--decoder", "Give the decoder it began with")
        objective.model.decoder = reference.to(own.device).eval()
        try:
            for way in ("none", "last", "full"):
                sums[way] = min(sums[way], read(way), key=lambda nats: float(nats.sum()))
        finally:
            objective.model.decoder = own
    means = {way: float(nats.sum() / counts.sum()) for way, nats in sums.items()}
    # A ratio of two sums over windows: its error is that of the residual, over the windows' whole gap.
    gained, gap = sums["none"] - sums["compressed"], sums["none"] - sums["full"]
    whole = float(gap.sum())
    spread = float((gained - float(gained.sum()) / whole * gap).norm()) / abs(whole) if whole else 0.0
    return Perplexity(**means, tokens=int(counts.sum()), windows=len(found), spread=spread)
