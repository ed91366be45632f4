"""Instruction tuning on questions with documents, and the gate, from what expanding a chunk is worth."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from refrag.data.questions import QuestionExample
from refrag.model.documents import Message
from refrag.model.gate import Gate
from refrag.model.prompt import frame
from refrag.model.tokenization_refrag import Chunk, RefragTokenizer
from refrag.model.window import heading
from refrag.training.objectives import ContinuationObjective, Passage, Piece


@dataclass(frozen=True)
class Prepared:
    """A question, tokenized once.

    Attributes:
        around: decoder tokens before and after the documents.
        heads: decoder tokens before each document.
        chunks: of each document.
        evidence: whether each chunk, counted through all documents, holds part of the evidence.
        target: the answer's tokens and the end mark.
    """

    around: tuple[tuple[int, ...], tuple[int, ...]]
    heads: tuple[tuple[int, ...], ...]
    chunks: tuple[tuple[Chunk, ...], ...]
    evidence: tuple[bool, ...]
    target: tuple[int, ...]

    def passage(self, expanded: Sequence[bool], tail: Sequence[int]) -> Passage:
        """The question as it is trained on, with some chunks as tokens; laid out as ``build_window`` does."""
        pieces: list[Piece] = [self.around[0]]
        n = 0
        for head, parts in zip(self.heads, self.chunks, strict=True):
            pieces.append(head)
            for chunk in parts:
                pieces.append(chunk.decoder_ids if expanded[n] else chunk)
                n += 1
            pieces.append(tuple(tail))
        return Passage((*pieces, self.around[1]), self.target)


def prepare(example: QuestionExample, tokenizer: RefragTokenizer, compression: int | None = None) -> Prepared:
    """Tokenize a question and what belongs to it."""
    messages: list[Message] = [{"role": "user", "content": example.question}]
    before, after = frame(messages, tokenizer)
    chunks = tuple(tuple(tokenizer.chunks(doc.text, compression)) for doc in example.docs)
    evidence = tuple(
        doc.id == example.gold and chunk.start < example.end and chunk.end > example.start
        for doc, parts in zip(example.docs, chunks, strict=True)
        for chunk in parts
    )
    space = "" if tokenizer.decoder_tokenizer.chat_template else " "  # after "Answer:"
    end = tokenizer.decoder_tokenizer.eos_token_id
    target = (*tokenizer.decoder_ids(space + example.answer), *([] if end is None else [int(end)]))
    heads = tuple(tuple(tokenizer.decoder_ids(heading(doc))) for doc in example.docs)
    return Prepared((tuple(before), tuple(after)), heads, chunks, evidence, target)


def prepare_group(group: Sequence[QuestionExample], tokenizer: RefragTokenizer) -> Prepared:
    """Questions about the same documents, one after another: what is read once is asked several times.

    A decoder with a chat template gets the first question only: its turns are not for us to write.
    """
    every = [prepare(example, tokenizer) for example in group]
    first = every[0]
    if len(every) == 1 or tokenizer.decoder_tokenizer.chat_template:
        return first
    if any(example.docs != group[0].docs for example in group):
        raise ValueError("the questions of a group share their documents")
    target = list(first.target)
    for example, prepared in zip(group[1:], every[1:], strict=True):
        target += [*tokenizer.decoder_ids(f"\nQuestion: {example.question}\nAnswer:"), *prepared.target]
    evidence = tuple(any(held) for held in zip(*(prepared.evidence for prepared in every), strict=True))
    return Prepared(first.around, first.heads, first.chunks, evidence, tuple(target))


class QuestionBatches:
    """Questions whose evidence is expanded, and some other chunks with it, so that neither tells which is right.

    Args:
        groups: to draw from; each is asked about the same documents.
        tokenizer: both sides of it.
        batch_size: questions per step, over all processes.
        seed: of the draws.
        others: share of the other chunks that are expanded too.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[QuestionExample]],
        tokenizer: RefragTokenizer,
        batch_size: int,
        seed: int,
        others: float = 0.25,
    ) -> None:
        self.prepared = [prepare_group(group, tokenizer) for group in groups]
        self.tail = tokenizer.decoder_ids("\n")
        self.batch_size, self.seed, self.others = batch_size, seed, others

    def batch(self, step: int, rank: int, world: int) -> list[Passage]:
        """Every ``world``-th question of a step, from ``rank`` on."""
        draw = random.Random(f"{self.seed} {step}")
        passages = []
        for _ in range(self.batch_size):
            chosen = draw.choice(self.prepared)
            expanded = [held or draw.random() < self.others for held in chosen.evidence]
            passages.append(chosen.passage(expanded, self.tail))
        return passages[rank::world]


@torch.no_grad()
def expansion_gains(objective: ContinuationObjective, prepared: Prepared, tail: Sequence[int]) -> Tensor:
    """What each chunk's expansion is worth, (N,): nats per answer token lost when it alone stays a vector.

    The others are all expanded, so that evidence cut in two is worth something in both its halves.
    """
    count = len(prepared.evidence)
    passages = [prepared.passage([m != n for m in range(count)], tail) for n in range(count + 1)]  # the last: all
    losses = objective.per_passage(passages)
    return losses[:-1] - losses[-1]


def train_gate(
    gate: Gate,
    given: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    gains: Sequence[Tensor],
    *,
    steps: int = 300,
    learning_rate: float = 1e-2,
    margin: float = 0.05,
) -> list[float]:
    """Train the gate to tell chunks worth expanding; no reinforcement learning.

    Args:
        gate: learns; nothing else does.
        given: its inputs for each question, as ``RefragGenerator.gate_inputs`` gives them.
        gains: of each question's chunks, as ``expansion_gains`` gives them.
        steps: updates, each over all chunks.
        learning_rate: Adam's.
        margin: nats per answer token from which a chunk is worth its tokens.

    Returns:
        The loss of every step.
    """
    worth = torch.cat([(gain > margin).float() for gain in gains])
    gate.requires_grad_(True)
    optimiser = torch.optim.Adam(gate.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(torch.cat([gate(*inputs) for inputs in given]), worth)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    gate.requires_grad_(False)
    return losses
