"""How well a text can be written again from its vectors alone: the paper's first stage, measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latentlab_shared.errors import UserError
from refrag.model.tokenization_refrag import Chunk
from refrag.training.objectives import ContinuationObjective, Passage


@torch.no_grad()
def measure_reconstruction(
    objective: ContinuationObjective,
    texts: Sequence[str],
    *,
    lengths: Sequence[int] = (1, 2, 4, 8),
    compression: int | None = None,
    most: int = 256,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Nats per token of stretches of several lengths, and the share of tokens that the decoder would write right.

    Args:
        objective: of the model; put into evaluation mode.
        texts: held out.
        lengths: chunks of a stretch; stretches of one length lie side by side.
        compression: another k than the tokenizer's own.
        most: stretches of one length, taken evenly from all texts.
        batch_size: passages per decoder call.

    Returns:
        For each length ``nats`` after the right vectors, ``unrelated`` after those of another stretch (what the decoder
        knows without them), ``right`` (share of tokens that are the likeliest, each after the true ones before it), and
        ``tokens``.

    Raises:
        UserError: if no text is long enough.
    """
    objective.eval()
    cut = [objective.tokenizer.chunks(text, compression) for text in texts]
    rows = []
    for length in lengths:
        every = [
            tuple(chunks[at : at + length])
            for chunks in cut
            for at in range(0, len(chunks) - length + 1, length)
            if sum(len(chunk.decoder_ids) for chunk in chunks[at : at + length])
        ]
        if len(every) < 2:
            raise UserError(f"no two stretches of {length} chunks", "data", "Give longer texts, or shorter stretches")
        stretches = [every[n * len(every) // min(most, len(every))] for n in range(min(most, len(every)))]
        others = [*stretches[1:], stretches[0]]
        pairs = list(zip(stretches, others, strict=True))
        nats, unrelated, right, tokens = 0.0, 0.0, 0, 0
        for at in range(0, len(pairs), batch_size):
            part = pairs[at : at + batch_size]
            targets = [_tokens(own) for own, _ in part]
            counts = torch.tensor([len(target) for target in targets], dtype=torch.float64)
            found, hits = objective.scored(
                [Passage(own, target) for (own, _), target in zip(part, targets, strict=True)]
            )
            wrong = [Passage(other, target) for (_, other), target in zip(part, targets, strict=True)]
            nats += float(found.double().cpu() @ counts)
            right += int(hits.sum())
            unrelated += float(objective.per_passage(wrong).double().cpu() @ counts)
            tokens += int(counts.sum())
        rows.append(
            {
                "chunks": length,
                "nats": nats / tokens,
                "unrelated": unrelated / tokens,
                "right": right / tokens,
                "tokens": tokens,
            }
        )
    return rows


def _tokens(stretch: Sequence[Chunk]) -> tuple[int, ...]:
    return tuple(token for chunk in stretch for token in chunk.decoder_ids)
