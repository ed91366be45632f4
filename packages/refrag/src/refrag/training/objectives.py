"""Reconstruction and continual pre-training: a context as vectors, then text that the decoder has to write.

Reconstruction: the text is the context's own. With the decoder frozen, encoder and projector learn to say in one vector
what k tokens say. Next paragraph: the text is what follows, and some chunks of the context are left as tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentlab_shared.errors import UserError
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import Chunk, RefragTokenizer
from refrag.training.settings import Lengths

_NOT_ASKED = -100
LONGEST = 9  # the paper's stages, and its lengths 1, 2, 4 … 256 chunks

"""How long reconstructed stretches are: from short to long, every length equally often, or always the longest."""

Piece = tuple[int, ...] | Chunk
"""Decoder tokens, or a chunk that stands as one vector."""


@dataclass(frozen=True)
class Passage:
    """A context and what the decoder has to write after it.

    Attributes:
        pieces: of the context.
        target: decoder tokens to write.
    """

    pieces: tuple[Piece, ...]
    target: tuple[int, ...]


class ContinuationObjective(nn.Module):
    """Mean negative log-likelihood of a token of the targets, in nats; each passage counts the same.

    Args:
        model: whose parts learn as its ``training_model`` says.
        tokenizer: makes rows of chunks.
    """

    def __init__(self, model: RefragModel, tokenizer: RefragTokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def forward(self, batch: Sequence[Passage]) -> dict[str, Tensor]:
        """``loss`` of a batch."""
        return {"loss": self.per_passage(batch).mean()}

    def per_passage(self, batch: Sequence[Passage]) -> Tensor:
        """Mean negative log-likelihood of each passage's target, (B,); one encoder and one decoder call."""
        return self.scored(batch)[0]

    def scored(self, batch: Sequence[Passage]) -> tuple[Tensor, Tensor]:
        """As ``per_passage``, and how many tokens of each target are the likeliest in their place, (B,)."""
        model = self.model
        rows: list[list[int]] = []
        gaps: list[tuple[int, int]] = []  # passage and slot of each vector
        for n, passage in enumerate(batch):
            ids: list[int] = []
            for piece in passage.pieces:
                if isinstance(piece, Chunk):
                    gaps.append((n, len(ids)))
                    ids.append(0)
                else:
                    ids += piece
            rows.append([*ids, *passage.target[:-1]])
        longest = max(len(row) for row in rows)
        inputs = model.embed([token for row in rows for token in (*row, *[0] * (longest - len(row)))])  # (B · L, D)
        if gaps:
            where = torch.tensor([n * longest + slot for n, slot in gaps], device=inputs.device)
            inputs = inputs.index_copy(0, where, self.vectors(batch).to(inputs.dtype))
        lengths = [len(row) for row in rows]
        return self._compared(inputs.view(len(rows), longest, -1), lengths, [passage.target for passage in batch])

    def after(self, prompts: Sequence[Tensor], targets: Sequence[Sequence[int]]) -> Tensor:
        """Mean negative log-likelihood of each target after its prompt (L_i, D), (B,); one decoder call."""
        return self.scored_after(prompts, targets)[0]

    def scored_after(self, prompts: Sequence[Tensor], targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """As ``after``, and how many tokens of each target are the likeliest in their place, (B,)."""
        sequences = [
            torch.cat([prompt, self.model.embed(target[:-1])]) for prompt, target in zip(prompts, targets, strict=True)
        ]
        inputs = nn.utils.rnn.pad_sequence(sequences, batch_first=True)  # (B, L, D)
        return self._compared(inputs, [len(sequence) for sequence in sequences], targets)

    def _compared(
        self, inputs: Tensor, lengths: Sequence[int], targets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Mean nats and right tokens of targets, whose tokens but the last end the rows of ``inputs`` (B, L, D)."""
        count, longest = inputs.shape[:2]
        ends = torch.tensor(lengths, device=inputs.device)
        mask = (torch.arange(longest, device=inputs.device) < ends[:, None]).long()
        labels = torch.full((count, longest), _NOT_ASKED)
        for n, (length, target) in enumerate(zip(lengths, targets, strict=True)):
            # The last slot of the prompt expects the first token of the target.
            labels[n, length - len(target) : length] = torch.tensor(target)
        labels = labels.to(inputs.device)
        logits = self.model.decoder(inputs_embeds=inputs, attention_mask=mask).logits.float()  # (B, L, V)
        nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_NOT_ASKED, reduction="none")
        counts = torch.tensor([len(target) for target in targets], device=inputs.device)
        right = (logits.detach().argmax(-1) == labels).sum(1)
        return nats.view(count, longest).sum(1) / counts, right

    def vectors(self, batch: Sequence[Passage]) -> Tensor:
        """Projected vectors of all chunks that are compressed, in their order, (R, D): one encoder call."""
        tokenizer = self.tokenizer
        kept = [piece for passage in batch for piece in passage.pieces if isinstance(piece, Chunk)]
        rows, masks = tokenizer.pack([tokenizer.row(chunk.encoder_ids) for chunk in kept])
        return self.model.project(self.model.encode_rows(rows, masks))


def curriculum(share: float, longest: int, stages: int = LONGEST) -> list[float]:
    """Weights of contexts of 1, 2, 4 … chunks at a point of the training: each stage halves around its own length.

    Args:
        share: of the training done, 0 … 1.
        longest: how many lengths there are: 2 ** (longest - 1) chunks at most.
        stages: of the curriculum; the first has mostly one chunk, the last mostly the longest.

    Source: the paper's table 8, a geometric mixture that moves from short to long in nine stages.
    """
    stage = min(stages - 1, int(share * stages))
    centre = stage * (longest - 1) / max(1, stages - 1)
    weights = [2.0 ** -abs(length - centre) for length in range(longest)]
    return [weight / sum(weights) for weight in weights]


class ReconstructionBatches:
    """Stretches of texts that the decoder has to write again from their vectors.

    Args:
        texts: of the corpus.
        tokenizer: both sides of it.
        batch_size: passages per step, over all processes.
        steps: of the training, over which the curriculum runs.
        longest: lengths are 1, 2, 4 … 2 ** (longest - 1) chunks.
        seed: of the draws.
        lengths: of the stretches.
        compression: another k than the tokenizer's own.

    Raises:
        UserError: if no text is long enough for the longest stretch.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: RefragTokenizer,
        batch_size: int,
        steps: int,
        longest: int,
        seed: int,
        lengths: Lengths = "curriculum",
        compression: int | None = None,
    ) -> None:
        cut = [tokenizer.chunks(text, compression) for text in texts]
        self.texts = [chunks for chunks in cut if len(chunks) >= 2 ** (longest - 1)]
        if not self.texts:
            raise UserError(f"no text has {2 ** (longest - 1)} chunks", "data", "Give longer texts, or a lower longest")
        self.batch_size, self.steps, self.longest, self.seed = batch_size, steps, longest, seed
        self.lengths = lengths

    def batch(self, step: int, rank: int, world: int) -> list[Passage]:
        """Every ``world``-th passage of a step, from ``rank`` on."""
        draw = random.Random(f"{self.seed} {step}")
        weights = {
            "curriculum": curriculum(step / self.steps, self.longest),
            "mixed": [1.0] * self.longest,
            "longest": [0.0] * (self.longest - 1) + [1.0],
        }[self.lengths]
        passages = []
        for exponent in draw.choices(range(self.longest), weights, k=self.batch_size):
            chunks = draw.choice(self.texts)
            count = 2**exponent
            start = draw.randrange(len(chunks) - count + 1)
            stretch = tuple(chunks[start : start + count])
            target = tuple(token for chunk in stretch for token in chunk.decoder_ids)
            passages.append(Passage(stretch, target))
        return passages[rank::world]


class NextParagraphBatches:
    """Contexts of ``context`` chunks and the tokens that follow them.

    Args:
        texts: of the corpus.
        tokenizer: both sides of it.
        batch_size: passages per step, over all processes.
        context: chunks before the target.
        target: chunks whose decoder tokens are the target.
        expanded: share of the context's chunks left as tokens, drawn at random (the paper's 0.1).
        seed: of the draws.
        compression: another k than the tokenizer's own.
        whole: share of the steps whose contexts are left as tokens from end to end, so that the decoder does not forget
            how to read; a step has one kind, since its passages are as long as the longest.

    Raises:
        UserError: if no text is long enough.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: RefragTokenizer,
        batch_size: int,
        context: int,
        target: int,
        seed: int,
        expanded: float = 0.1,
        compression: int | None = None,
        whole: float = 0.0,
    ) -> None:
        cut = [tokenizer.chunks(text, compression) for text in texts]
        self.texts = [chunks for chunks in cut if len(chunks) >= context + target]
        if not self.texts:
            raise UserError(f"no text has {context + target} chunks", "data", "Give longer texts")
        self.batch_size, self.context, self.target, self.seed = batch_size, context, target, seed
        self.expanded, self.whole = expanded, whole
        self.stretches = [*accumulate(len(chunks) - context - target + 1 for chunks in self.texts)]

    def batch(self, step: int, rank: int, world: int) -> list[Passage]:
        """Every ``world``-th passage of a step, from ``rank`` on."""
        draw = random.Random(f"{self.seed} {step}")
        share = 1.0 if draw.random() < self.whole else self.expanded
        passages = []
        for _ in range(self.batch_size):
            (chunks,) = draw.choices(self.texts, cum_weights=self.stretches)  # every stretch is as likely
            start = draw.randrange(len(chunks) - self.context - self.target + 1)
            end = start + self.context
            pieces = tuple(c.decoder_ids if draw.random() < share else c for c in chunks[start:end])
            target = tuple(token for chunk in chunks[end : end + self.target] for token in chunk.decoder_ids)
            passages.append(Passage(pieces, target))
        return passages[rank::world]


class TurnBatches:
    """Several kinds of batches by turns, step by step, such as one for each k.

    Args:
        kinds: with ``batch(step, rank, world)``.
    """

    def __init__(self, kinds: Sequence[Any]) -> None:
        self.kinds = kinds

    def batch(self, step: int, rank: int, world: int) -> list[Passage]:
        """Of the kind whose turn it is."""
        found: list[Passage] = self.kinds[step % len(self.kinds)].batch(step, rank, world)
        return found
