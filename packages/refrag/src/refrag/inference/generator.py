"""Answers with citations: the object that a user holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from latentlab_shared.devices import choose_device
from latentlab_shared.errors import UserError
from refrag.inference.citations import Citation, CitationRule, CitationRules, Support, Vocabulary, find_citations
from refrag.inference.vectors import RowVectors
from refrag.model.config_refrag import check_compression
from refrag.model.documents import Doc, Message
from refrag.model.gate import Budget, choose, signs
from refrag.model.modeling_refrag import RefragModel
from refrag.model.prompt import frame
from refrag.model.tokenization_refrag import Chunk, RefragTokenizer
from refrag.model.tokenizer.spans import plain_ids
from refrag.model.window import Slot, Window, build_window

Question = str | Sequence[Message]

Cite = Literal["evidence", "decoder"]
"""Who decides which document a citation names: what the statement shares with the documents, or the decoder alone."""

_QUESTION_TOKENS = 64  # of the question, as the encoder reads it
_HELD_BYTES = 1 << 28  # of chunk vectors in memory


def greedy(max_new_tokens: int = 64) -> GenerationConfig:
    """The likeliest token each time, at most so many."""
    settings: Any = GenerationConfig  # its constructor has no types
    made: GenerationConfig = settings(max_new_tokens=max_new_tokens, do_sample=False)
    return made


_GREEDY = greedy()
_SOME = Budget(fraction=0.1)


@dataclass(frozen=True)
class Answer:
    """What a question got.

    Attributes:
        text: the answer, with its citations in brackets.
        citations: each names one of the given documents.
        slots: the slot map: what every document's chunks were for the decoder.
        window_length: positions the decoder read.
        full_length: positions it would have read with everything expanded.
        encoded_rows: rows the encoder had to read; none if all were in the cache.
        new_tokens: of the answer.
    """

    text: str
    citations: tuple[Citation, ...]
    slots: tuple[Slot, ...]
    window_length: int
    full_length: int
    encoded_rows: int
    new_tokens: int


@dataclass(frozen=True)
class _Plan:
    """A question before the encoder is asked: its documents as they were cut, and the rows to read."""

    docs: Sequence[Doc]
    compression: int
    chunks: list[list[Chunk]]
    rows: list[list[list[int]]]  # of each document
    asked: list[list[int]]  # the question's own row, if the gate asks
    signs: Tensor
    around: tuple[list[int], list[int]]

    @property
    def every(self) -> list[Chunk]:
        return [chunk for parts in self.chunks for chunk in parts]

    def texts(self) -> Iterator[tuple[tuple[str, int], list[list[int]]]]:
        """What has to be read, each with the name it is held by: the documents, then the question (its k is 0)."""
        for doc, rows in zip(self.docs, self.rows, strict=True):
            yield (doc.text, self.compression), rows
        if self.asked:
            yield (repr(self.asked), 0), self.asked


@dataclass(frozen=True)
class _Read:
    """Rows that have been read: vectors before the projector, (N, E), and behind it, (N, D)."""

    vectors: Tensor
    projected: Tensor

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + self.projected.nbytes


class RefragGenerator:
    """A model, its tokenizer and, if wished, a cache of chunk vectors.

    Args:
        model: in evaluation mode.
        tokenizer: of the model; its rows must end where both tokenizers cut.
        cache: a folder for chunk vectors; None encodes every time.
        cache_dtype: how they are kept, ``float32`` or ``float16``.
    """

    def __init__(
        self,
        model: RefragModel,
        tokenizer: RefragTokenizer,
        cache: str | Path | None = None,
        cache_dtype: str = "float32",
    ) -> None:
        if tokenizer.row_format == "seed":
            raise UserError("bare rows cannot be expanded", "row_format", "Use the row format cls")
        self.model, self.tokenizer = model, tokenizer
        self.vectors = RowVectors(model, tokenizer, cache, cache_dtype)
        self._vocabulary = Vocabulary(tokenizer.decoder_tokenizer)
        self._cut = lru_cache(maxsize=4096)(self._cut_anew)
        self._held: dict[tuple[str, int], _Read] = {}  # of texts that came lately, before the cache's folder

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, cache: str | Path | None = None, cache_dtype: str = "float32", device: str = "auto"
    ) -> RefragGenerator:
        """Read what ``save_pretrained`` wrote.

        Raises:
            UserError: if there is no model in the folder, it is damaged, or there is no such device.
        """
        place = choose_device(device)
        model = RefragModel.from_pretrained(folder).to(place)
        home, config = Path(folder), model.config
        tokenizer = RefragTokenizer.from_pretrained(
            home / "encoder", home / "decoder", config.compression, config.row_format
        )
        return cls(model, tokenizer, cache, cache_dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizers."""
        self.model.save_pretrained(folder)
        self.tokenizer.encoder_tokenizer.save_pretrained(Path(folder) / "encoder")
        self.tokenizer.decoder_tokenizer.save_pretrained(Path(folder) / "decoder")

    # -- what the decoder will read ------------------------------------------------------------------------------------

    @torch.no_grad()
    def window(
        self,
        question: Question,
        docs: Sequence[Doc],
        *,
        budget: Budget | None = _SOME,
        scores: Sequence[float] | None = None,
        compression: int | None = None,
    ) -> Window:
        """The decoder's prompt for a question.

        Args:
            question: a text, or a conversation that ends with one.
            docs: what was retrieved, in its order; ids differ.
            budget: what may be expanded to tokens; None for nothing.
            scores: of all chunks, in place of the gate's.
            compression: another k than the tokenizer's own.

        Raises:
            UserError: if there is no question, what is given are no documents, two of them have one id, or the scores
                do not fit.
        """
        plan = self._plan(question, docs, compression)
        return self._window(plan, self._read([plan])[0], budget, scores)

    @torch.no_grad()
    def gate_inputs(
        self, question: Question, docs: Sequence[Doc], compression: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the gate is given: vectors (N, E), signs (N, SIGNS) and, if it asks, the question's vector (E,)."""
        plan = self._plan(question, docs, compression)
        return self._for_gate(plan, self._read([plan])[0])

    def _plan(self, question: Question, docs: Sequence[Doc], compression: int | None) -> _Plan:
        """Cut the documents and write the rows."""
        if compression is not None:
            check_compression(compression, most=None)
        if not isinstance(docs, Sequence):
            raise UserError(f"documents are a list, not {type(docs).__name__}", "docs")
        for doc in docs:
            if not isinstance(doc, Doc):
                raise UserError(
                    f"documents are Doc objects, not {type(doc).__name__}", "docs", 'Write Doc("1", "text")'
                )
        if len({doc.id for doc in docs}) < len(docs):
            raise UserError("two documents have the same id", "docs", "Give each its own")
        messages: Sequence[Message] = [{"role": "user", "content": question}] if isinstance(question, str) else question
        around = frame(messages, self.tokenizer)
        conditioning = self.model.config.conditioning
        asked: list[int] = []
        if conditioning != "none":
            asked = plain_ids(messages[-1]["content"], self.tokenizer.encoder_tokenizer)[:_QUESTION_TOKENS]
        cut = [self._cut(doc.text, compression) for doc in docs]
        ids = [chunk.encoder_ids for chunks, _ in cut for chunk in chunks]
        beside = asked if conditioning == "joint" else ()
        rows = [[self.tokenizer.row(chunk.encoder_ids, beside) for chunk in chunks] for chunks, _ in cut]
        own = [] if conditioning == "none" else [self.tokenizer.row(asked)]
        numbers = [number for _, found in cut for number in found]
        seen = signs(ids, numbers, [n for n, (chunks, _) in enumerate(cut) for _ in chunks], asked)
        k = compression or self.tokenizer.compression
        return _Plan(docs, k, [chunks for chunks, _ in cut], rows, own, seen, around)

    def _read(self, plans: Sequence[_Plan]) -> list[list[_Read]]:
        """Every plan's documents, and its question at the end: from memory, or all that are missing in one call."""
        wanted = [rows for plan in plans for key, rows in plan.texts() if key not in self._held]
        vectors = self.vectors([row for rows in wanted for row in rows])
        projected = self.model.project(vectors)
        found = zip(*(torch.split(t, [len(rows) for rows in wanted]) for t in (vectors, projected)), strict=True)
        read, new = [], {}
        for plan in plans:
            parts = []
            for key, _ in plan.texts():
                if key not in self._held:
                    new[key] = _Read(*next(found))
                parts.append(self._held[key] if key in self._held else new[key])
            read.append(parts)
        # Without a cache every question is read anew, and so are rows that the question is part of.
        if self.vectors.cache is not None and self.model.config.conditioning != "joint":
            self._held |= {key: _Read(one.vectors.clone(), one.projected.clone()) for key, one in new.items()}
            while sum(one.nbytes for one in self._held.values()) > _HELD_BYTES:
                del self._held[next(iter(self._held))]
        return read

    def _cut_anew(self, text: str, compression: int | None) -> tuple[list[Chunk], list[bool]]:
        """A document's chunks, and which of them hold a number."""
        chunks = self.tokenizer.chunks(text, compression)
        return chunks, [any(c.isdigit() for c in text[chunk.start : chunk.end]) for chunk in chunks]

    def _for_gate(self, plan: _Plan, found: Sequence[_Read]) -> tuple[Tensor, Tensor, Tensor | None]:
        docs, question = found[: len(plan.docs)], found[len(plan.docs) :]
        vectors = [one.vectors for one in docs] or [torch.zeros(0, self.model.encoder_dim, device=self.model.device)]
        return torch.cat(vectors), plan.signs, question[0].vectors[0] if question else None

    def _window(
        self, plan: _Plan, found: Sequence[_Read], budget: Budget | None, scores: Sequence[float] | None = None
    ) -> Window:
        """The window of a plan whose rows have been read."""
        every = plan.every
        rated: list[float] | None = None
        if scores is not None:
            rated = [float(score) for score in scores]
        elif budget is not None:
            rated = self.model.gate(*self._for_gate(plan, found)).tolist()
        if rated is not None and len(rated) != len(every):
            raise UserError(f"{len(rated)} scores for {len(every)} chunks", "scores")
        expanded = [False] * len(every)
        if budget is not None and rated is not None:
            expanded = choose(rated, [len(chunk.decoder_ids) for chunk in every], budget)
        projected = [one.projected for one in found[: len(plan.docs)]]
        slots = torch.cat(projected) if projected else torch.zeros(0, self.model.decoder_dim, device=self.model.device)
        return build_window(self.model, self.tokenizer, plan.docs, plan.chunks, slots, expanded, rated, plan.around)

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(
        self,
        question: Question,
        docs: Sequence[Doc],
        *,
        budget: Budget | None = _SOME,
        scores: Sequence[float] | None = None,
        compression: int | None = None,
        cite: Cite = "evidence",
        generation: GenerationConfig = _GREEDY,
        on_window: Callable[[Window], None] | None = None,
        on_text: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            question: as for ``window``.
            docs: as for ``window``.
            budget: as for ``window``.
            scores: as for ``window``.
            compression: as for ``window``.
            cite: who decides which document a citation names; it is one of the given ones in any case.
            generation: transformers' settings; greedy by default.
            on_window: told what the decoder will read, before it does.
            on_text: told each new piece of the answer as it comes.
            stopped: asked after every token; the answer ends where it says yes.

        Raises:
            UserError: as for ``window``; if the decoder has not the room; if an id cannot be written by the decoder.
        """
        with torch.no_grad():
            plan = self._plan(question, docs, compression)
            window = self._window(plan, self._read([plan])[0], budget, scores)
        streamer = _Pieces(self.tokenizer.decoder_tokenizer, on_text) if on_text is not None else None
        rules = LogitsProcessorList([CitationRules([self._rule(docs, cite)])])
        if on_window is not None:
            on_window(window)
        (ids,) = self.model.generate(
            [window.embeddings], generation, logits_processor=rules, streamer=streamer, stopped=stopped
        )
        return self._answer(ids, plan, window)

    def answer_many(
        self,
        asked: Sequence[tuple[Question, Sequence[Doc]]],
        *,
        budget: Budget | None = _SOME,
        scores: Sequence[Sequence[float]] | None = None,
        compression: int | None = None,
        cite: Cite = "evidence",
        generation: GenerationConfig = _GREEDY,
    ) -> list[Answer]:
        """Answer questions side by side, each from its own documents, with one encoder call and the same answers."""
        with torch.no_grad():
            plans = [self._plan(question, docs, compression) for question, docs in asked]
            found = self._read(plans)
            given = scores if scores is not None else [None] * len(plans)
            windows = [
                self._window(plan, vectors, budget, rated)
                for plan, vectors, rated in zip(plans, found, given, strict=True)
            ]
        rules = LogitsProcessorList([CitationRules([self._rule(plan.docs, cite) for plan in plans])])
        written = self.model.generate([w.embeddings for w in windows], generation, logits_processor=rules)
        return [self._answer(ids, plan, window) for ids, plan, window in zip(written, plans, windows, strict=True)]

    def _rule(self, docs: Sequence[Doc], cite: Cite) -> CitationRule:
        if cite not in ("evidence", "decoder"):
            raise UserError(f"{cite!r} decides nothing", "cite", "Use evidence or decoder")
        return CitationRule(self._vocabulary, [doc.id for doc in docs], Support(docs) if cite == "evidence" else None)

    def _answer(self, ids: list[int], plan: _Plan, window: Window) -> Answer:
        text = _text(self.tokenizer.decoder_tokenizer, ids)
        citations = tuple(find_citations(text, plan.docs, window.slots))
        every = [row for rows in (*plan.rows, plan.asked) for row in rows]
        read = sum(tuple(row) in self.vectors.fresh for row in every)
        return Answer(text, citations, window.slots, len(window.embeddings), window.full_length, read, len(ids))


class _Pieces(BaseStreamer):
    """Decodes tokens as they come, and holds back characters that are not whole yet."""

    def __init__(self, tokenizer: Any, tell: Callable[[str], None]) -> None:
        self.tokenizer, self.tell = tokenizer, tell
        self.ids: list[int] = []
        self.told = ""

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()
        text = _text(self.tokenizer, self.ids)
        if not text.endswith("\ufffd"):
            self._say(text)

    def end(self) -> None:
        self._say(_text(self.tokenizer, self.ids))

    def _say(self, text: str) -> None:
        if text.startswith(self.told) and len(text) > len(self.told):
            self.tell(text[len(self.told) :])
            self.told = text


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)).lstrip()
