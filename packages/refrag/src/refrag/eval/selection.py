"""What the gate has to beat: other ways to score chunks, for ``RefragGenerator.window(..., scores=…)``."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from refrag.inference.generator import RefragGenerator
from refrag.model.documents import Doc


def random_scores(chunks: int, seed: int) -> list[float]:
    """Any order, the same for the same seed."""
    draw = random.Random(seed)
    return [draw.random() for _ in range(chunks)]


@torch.no_grad()
def cosine_scores(
    generator: RefragGenerator, question: str, docs: Sequence[Doc], compression: int | None = None
) -> list[float]:
    """Cosine of each chunk's vector to the question's; needs a conditioning that reads the question."""
    vectors, _, query = generator.gate_inputs(question, docs, compression)
    if query is None:
        raise ValueError("this model does not read the question")
    found: list[float] = F.cosine_similarity(vectors, query[None], dim=-1).tolist()
    return found


@torch.no_grad()
def perplexity_scores(generator: RefragGenerator, docs: Sequence[Doc], compression: int | None = None) -> list[float]:
    """Mean negative log-likelihood of each chunk's tokens after the text before it, in nats per token.

    Higher scores are expanded first: negate them to expand what the decoder finds easiest. A document's first token has
    nothing before it and is left out.

    Source: the paper's perplexity heuristics.
    """
    model, tokenizer = generator.model, generator.tokenizer
    scores: list[float] = []
    for doc in docs:
        chunks = tokenizer.chunks(doc.text, compression)
        ids = torch.tensor([[t for chunk in chunks for t in chunk.decoder_ids]], dtype=torch.long, device=model.device)
        if ids.shape[1] < 2:
            scores += [0.0] * len(chunks)
            continue
        logits = model.decoder(input_ids=ids).logits[0, :-1].float()
        nats = F.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()  # of the tokens from the second on
        at = 0
        for chunk in chunks:
            mine = nats[max(0, at - 1) : at - 1 + len(chunk.decoder_ids)]
            scores.append(sum(mine) / len(mine) if mine else 0.0)
            at += len(chunk.decoder_ids)
    return scores
