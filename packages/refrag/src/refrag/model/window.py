"""The decoder's window: per document ``[id] title``, then its slots, each a vector or the tokens it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from refrag.model.documents import Doc
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import Chunk, RefragTokenizer


@dataclass(frozen=True)
class Slot:
    """A chunk in the window.

    Attributes:
        doc: the document's id.
        chunk: its number in the document, from 0.
        start: first character in the document's text.
        end: the character after its last.
        expanded: shown as tokens, not as one vector.
        score: the gate's logit; None if no gate was asked.
        position: first position in the decoder's window.
        length: positions it takes: 1, or its decoder tokens.
    """

    doc: str
    chunk: int
    start: int
    end: int
    expanded: bool
    score: float | None
    position: int
    length: int


@dataclass(frozen=True)
class Window:
    """A prompt ready for the decoder.

    Attributes:
        embeddings: (L, D).
        slots: of all documents, in their order.
        full_length: positions the same prompt would take with everything expanded.
    """

    embeddings: Tensor
    slots: tuple[Slot, ...]
    full_length: int


def build_window(
    model: RefragModel,
    tokenizer: RefragTokenizer,
    docs: Sequence[Doc],
    chunks: Sequence[Sequence[Chunk]],
    projected: Tensor,
    expanded: Sequence[bool],
    scores: Sequence[float] | None,
    around: tuple[Sequence[int], Sequence[int]],
) -> Window:
    """Put documents between the two parts of a prompt.

    Args:
        model: embeds tokens, in one call.
        tokenizer: writes ids and titles.
        docs: the documents.
        chunks: of each document.
        projected: vectors of all chunks in their order, in the decoder's space, (N, D).
        expanded: which of them are shown as tokens, N.
        scores: the gate's, N.
        around: decoder tokens before and after the documents.
    """
    pieces: list[Sequence[int] | None] = [around[0]]
    slots: list[Slot] = []
    position, full = len(around[0]), len(around[0]) + len(around[1])
    tail = tokenizer.decoder_ids("\n")
    for doc, parts in zip(docs, chunks, strict=True):
        head = tokenizer.decoder_ids(heading(doc))
        pieces.append(head)
        position += len(head)
        for number, chunk in enumerate(parts):
            n = len(slots)
            length = len(chunk.decoder_ids) if expanded[n] else 1
            score = None if scores is None else scores[n]
            slots.append(Slot(doc.id, number, chunk.start, chunk.end, expanded[n], score, position, length))
            pieces.append(chunk.decoder_ids if expanded[n] else None)
            position += length
        pieces.append(tail)
        position += len(tail)
        full += len(head) + len(tail) + sum(len(chunk.decoder_ids) for chunk in parts)
    pieces.append(around[1])
    kept = [n for n, slot in enumerate(slots) if not slot.expanded]
    shown = projected if len(kept) == len(slots) else projected[kept]
    return Window(model.splice(pieces, shown), tuple(slots), full)


def heading(doc: Doc) -> str:
    """What the decoder reads before a document."""
    title = " ".join((doc.title or "").split())  # on one line: a title is no place for other documents
    return f"[{doc.id}] {title}\n" if title else f"[{doc.id}]\n"
