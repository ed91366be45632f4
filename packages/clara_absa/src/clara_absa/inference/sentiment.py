"""The one object a user holds: compress a text, ask about its aspects."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clara_absa.configs.base_config import ClaraConfig
from clara_absa.configs.schema import (
    MAX_ASPECT_CHARACTERS,
    POLARITIES,
    PROMPTS,
    Aspect,
    AspectSentimentResult,
    Task,
    ensure_characters,
)
from clara_absa.data_utils.packing import Branch
from clara_absa.data_utils.prompts import parse_extraction
from clara_absa.inference.memory import Memory
from clara_absa.model.clara import FastClaraModel
from clara_absa.model.folder import load_model, own_parameters, save_model
from clara_absa.training.build import make_batcher
from latentlab_shared.devices import choose_device
from latentlab_shared.errors import RunFailed, UserError

Asked = str | tuple[int, int] | Aspect
Mode = Literal["score", "generate"]
Question = tuple[str, Sequence[Asked]]

_TEXTS_AT_ONCE = 64
_QUESTION_TOKENS = 512  # in one packed row: many or long questions on a text are asked in several


class AspectSentiment:
    """Sentiment of the aspects of a text, from k memory vectors.

    Args:
        model: trained.
        tokenizer: of its backbone.
        config: it was trained with.
        encoder_tokenizer: of its light encoder, if it has one.
        device: where to compute.
    """

    def __init__(
        self,
        model: FastClaraModel,
        tokenizer: Any,
        config: ClaraConfig,
        encoder_tokenizer: Any = None,
        device: str = "cpu",
    ) -> None:
        self.model, self.tokenizer, self.config, self.device = model.to(device).eval(), tokenizer, config, device
        self.encoder_tokenizer = encoder_tokenizer
        self.batcher = make_batcher(tokenizer, config, encoder_tokenizer)
        self._identity = ""

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "auto", quantise: bool = False) -> AspectSentiment:
        """Load a run folder of ``clara-absa train``, or what ``save_pretrained`` wrote.

        Args:
            folder: the folder.
            device: "auto", "cpu", "cuda" or "mps".
            quantise: load a public backbone in 4 bits.

        Raises:
            UserError: if there is no model, or it is damaged.
            NeedsNetwork: if its public backbone is not here and cannot be fetched.
        """
        model, tokenizer, config, encoder_tokenizer = load_model(Path(folder), quantise)
        return cls(model, tokenizer, config, encoder_tokenizer, choose_device(device))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into a folder: JSON and safetensors only."""
        save_model(self.model, self.tokenizer, self.config, Path(folder), self.encoder_tokenizer)

    @property
    def identity(self) -> str:
        """A hash of everything that was trained: memories of another model are refused by it."""
        if not self._identity:
            found = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
            state = own_parameters(self.model)
            whole = self.config.lora.rank == 0
            for name, value in self.model.backbone.state_dict().items():
                if whole or "lora_" in name:
                    state[f"backbone.{name}"] = value.cpu()
            for name in sorted(state):
                found.update(name.encode())
                found.update(state[name].float().contiguous().numpy().tobytes())
            self._identity = found.hexdigest()
        return self._identity

    def forget_identity(self) -> None:
        """Hash the weights anew when they are next asked for; call it after training them further."""
        self._identity = ""

    # ---- compressing ----------------------------------------------------------------------------------------------

    def compress(self, text: str) -> Memory:
        """The memory of one text."""
        return self.compress_batch([text])[0]

    @torch.no_grad()
    def compress_batch(self, texts: Sequence[str], cache_dir: Path | None = None) -> list[Memory]:
        """Memories of texts, in their order.

        Args:
            texts: anything but blank.
            cache_dir: keep memories here, in the shared cache of token vectors, and take those that are there.

        Raises:
            UserError: for a blank text, one with half a surrogate pair, or a model that reads the text itself.
        """
        if self.config.memory.reader == "none":
            raise UserError("this model reads the text itself and has no memory", "memory.reader")
        _ensure_texts(texts)
        counts = [len(self.batcher.read(text)) for text in texts]
        if cache_dir is None:
            vectors = self._compress(texts)
        else:
            with self._cache(cache_dir) as cache:
                found = cache.get_or_compute(
                    list(texts), lambda some: [m.numpy() for m in self._compress(some)], progress=False
                )
            vectors = [torch.from_numpy(np.array(matrix)) for matrix in found]
        made = zip(vectors, texts, counts, strict=True)
        return [Memory(found, text, count, self.identity, self.is_cut(text)) for found, text, count in made]

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than ``memory.max_text_tokens``, so that only its beginning is read."""
        return self.batcher.kept(text) < len(text)

    def _cache(self, folder: Path) -> Any:
        from latentlab_shared.embeddings import Fingerprint, TokenEmbeddingCache

        fingerprint = Fingerprint(
            encoder="clara_absa",
            weights_sha256=self.identity,
            max_length=self.config.memory.max_text_tokens,
            pooling=f"memory-{self.config.memory.tokens}",
        )
        return TokenEmbeddingCache(folder / self.identity[:16], fingerprint, self.model.width, "float32")

    def _compress(self, texts: Sequence[str]) -> list[Tensor]:
        """Vectors (k, d) of each text, on the CPU."""
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for chosen in self._chunks([len(text) for text in texts]):
            ids = [self.batcher.read(texts[i]) for i in chosen]
            packed = self.batcher.texts(ids)
            assert packed is not None
            memory = self.model.compress(packed.to(self.device))[0].float().cpu()
            # A light encoder computes all its vectors; a ratio keeps the first of them.
            stride = [
                self.config.memory.tokens if self.model.reader is not None else self.batcher.slots(t) for t in ids
            ]
            for i, text, part in zip(chosen, ids, torch.split(memory, stride), strict=True):
                found[i] = part[: self.batcher.slots(text)].clone()
        return found

    @staticmethod
    def _chunks(sizes: Sequence[int]) -> Iterator[list[int]]:
        """Indices in parts of like size."""
        order = sorted(range(len(sizes)), key=lambda i: sizes[i])
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            yield order[start : start + _TEXTS_AT_ONCE]

    # ---- asking ---------------------------------------------------------------------------------------------------

    def predict(
        self,
        text: str | None = None,
        aspects: Sequence[Asked] = (),
        *,
        memory: Memory | None = None,
        size: int | None = None,
        abstain: float = 0.0,
        mode: Mode = "score",
    ) -> list[AspectSentimentResult]:
        """The sentiment of each aspect.

        Args:
            text: what is asked about; not needed with ``memory``.
            aspects: terms or categories, or ``(start, end)`` spans of the text.
            memory: of the text, from ``compress``: the answers are those of the text.
            size: use only the first memory vectors.
            abstain: below this probability the polarity is None.
            mode: "score" compares the three answers in one pass; "generate" lets the model write, as the seed does.

        Raises:
            UserError: for no aspects, one of more than 200 characters, a span outside of what is read of the text, or a
                memory of another model or text.
        """
        if memory is None:
            if text is None:
                raise UserError("give a text or a memory", "predict")
            return self.predict_batch([(text, aspects)], size=size, abstain=abstain, mode=mode)[0]
        self._check(memory)
        if text and memory.text and text != memory.text:
            raise UserError("this memory is of another text", "memory", "Leave the text out")
        about = text or memory.text
        found = self._answer([memory.vectors], [self._aspects(about, aspects, self._kept(about))], size, abstain, mode)
        return [replace(result, cut=memory.cut) for result in found[0]]

    def predict_batch(
        self, questions: Sequence[Question], *, size: int | None = None, abstain: float = 0.0, mode: Mode = "score"
    ) -> list[list[AspectSentimentResult]]:
        """The sentiment of the aspects of many texts: each text is compressed once, all in packed rows.

        Args:
            questions: texts, each with its aspects.
            size: use only the first memory vectors.
            abstain: below this probability the polarity is None.
            mode: see `predict`.
        """
        if any(isinstance(one, str) or len(one) != 2 for one in questions):  # of a text, its characters
            fix = 'For example: [("Good food", ["food"])]'
            raise UserError("give pairs of a text and its aspects", "questions", fix)
        texts = [text for text, _ in questions]
        _ensure_texts(texts)
        kept = [self._kept(text) for text in texts]
        aspects = [self._aspects(text, asked, n) for (text, asked), n in zip(questions, kept, strict=True)]
        if self.config.memory.reader != "none":
            memories = self.compress_batch(texts) if texts else []
            found = self._answer([memory.vectors for memory in memories], aspects, size, abstain, mode)
        elif mode != "score":
            raise UserError("a model without memory only scores its answers", "--mode", "Use --mode score")
        else:
            found = self._read(texts, aspects, abstain)
        return [
            [replace(result, cut=True) for result in each] if n < len(text) else each
            for text, n, each in zip(texts, kept, found, strict=True)
        ]

    def _read(
        self, texts: Sequence[str], aspects: Sequence[Sequence[Aspect]], abstain: float
    ) -> list[list[AspectSentimentResult]]:
        """Answers of a model that reads the texts itself."""
        pieces = self._pieces(aspects)
        found: list[list[AspectSentimentResult]] = [[] for _ in texts]
        answers: list[list[AspectSentimentResult]] = [[]] * len(pieces)
        for chosen in self._chunks([len(texts[i]) for i, _ in pieces]):
            ids = [self.batcher.read(texts[pieces[n][0]]) for n in chosen]
            asked = [[self.batcher.prompter.ask(a.term) for a in pieces[n][1]] for n in chosen]
            scores = self._scores(self.batcher.questions(ids, asked), None)
            for n, part in zip(chosen, torch.split(scores, [len(each) for each in asked]), strict=True):
                answers[n] = [_result(a, p, abstain) for a, p in zip(pieces[n][1], part, strict=True)]
        for (i, _), each in zip(pieces, answers, strict=True):
            found[i] += each
        return found

    def _pieces(self, aspects: Sequence[Sequence[Aspect]]) -> list[tuple[int, list[Aspect]]]:
        """The aspects of each text, in parts whose questions fill a packed row at most; with the text's index."""
        found: list[tuple[int, list[Aspect]]] = []
        for i, each in enumerate(aspects):
            room = 0
            for aspect in each:
                size = len(self.batcher.prompter.prompt(Task.REASONING, aspect.term))
                if room < size:
                    found.append((i, []))
                    room = max(_QUESTION_TOKENS, size)
                found[-1][1].append(aspect)
                room -= size
        return found

    def _kept(self, text: str) -> int:
        """Characters of a text that are read; of a text that was not kept with its memory, none are known."""
        return self.batcher.kept(text) if text else 0

    def ask_memory(self, memory: Memory, branches: Sequence[Branch], size: int | None = None) -> Tensor:
        """Log-probabilities of all answers of questions about one memory, (A,)."""
        packed, table = self._on_memory([memory.vectors], [branches], size)
        with torch.no_grad():
            return self.model.answer_scores(packed.to(self.device), table.to(self.device)).cpu()

    def _check(self, memory: Memory) -> None:
        if memory.model != self.identity:
            raise UserError("this memory was made by another model", "memory", "Compress the text again")

    @staticmethod
    def _aspects(text: str, asked: Sequence[Asked], kept: int | None = None) -> list[Aspect]:
        """Aspects as asked: a span must lie in the text, and a term gets its place where it stands there once.

        Args:
            text: the text.
            asked: terms, spans or aspects.
            kept: characters of the text that are read; None for all.
        """
        if isinstance(asked, str) or not len(asked):
            raise UserError("give a list of aspects", "aspects", 'For example: ["food", "service"]')
        found = []
        for one in asked:
            if isinstance(one, Aspect):
                try:
                    if text:  # a memory may come without its text
                        one.ensure_in(text)
                except ValueError as error:
                    raise UserError(str(error), "aspects") from None
                found.append(one)
            elif isinstance(one, str):
                if not one.strip():
                    raise UserError("an aspect is empty", "aspects")
                start = text.find(one) if text.count(one) == 1 else -1
                found.append(Aspect(one, None, start, start + len(one)) if start >= 0 else Aspect(one))
            else:
                start, end = _span(one)
                if not 0 <= start < end <= len(text):
                    raise UserError(f"({start}, {end}) is no span of a text of {len(text)} characters", "aspects")
                if kept is not None and end > kept:
                    what = f"({start}, {end}) lies behind the first {kept} characters, all that is read of this text"
                    raise UserError(what, "aspects", "Give a shorter text")
                found.append(Aspect(text[start:end], None, start, end))
            ensure_characters(found[-1].term, "aspects")
            if len(found[-1].term) > MAX_ASPECT_CHARACTERS:
                raise UserError(f"an aspect has more than {MAX_ASPECT_CHARACTERS} characters", "aspects")
        return found

    def _on_memory(
        self, vectors: Sequence[Tensor], branches: Sequence[Sequence[Branch]], size: int | None
    ) -> tuple[Any, Tensor]:
        """Packed questions on memories, and their table of vectors."""
        from clara_absa.data_utils.packing import Tree, pack

        if size is not None and not (isinstance(size, int) and 1 <= size <= self.config.memory.tokens):
            raise UserError(f"must be 1 to {self.config.memory.tokens}, not {size}", "size")
        trees, start = [], 0
        for memory, asked in zip(vectors, branches, strict=True):
            shown = len(memory) if size is None else min(size, len(memory))
            trees.append(Tree(tuple(-1 - start - i for i in range(shown)), tuple(asked)))
            start += len(memory)
        return pack(trees, self.batcher.row_tokens), torch.cat(list(vectors))

    @torch.no_grad()
    def _scores(self, packed: Any, table: Tensor | None) -> Tensor:
        """Probabilities of the three polarities for each question, (Q, 3)."""
        given = None if table is None else table.to(self.device)
        scores = self.model.answer_scores(packed.to(self.device), given).view(-1, len(POLARITIES)).softmax(1).cpu()
        if not bool(torch.isfinite(scores).all()):
            raise RunFailed("the model's answers are no numbers", "model", "Train with a lower train.learning_rate")
        return scores

    def _answer(
        self,
        vectors: Sequence[Tensor],
        aspects: Sequence[Sequence[Aspect]],
        size: int | None,
        abstain: float,
        mode: Mode,
    ) -> list[list[AspectSentimentResult]]:
        if not isinstance(abstain, (int, float)) or not 0 <= abstain <= 1:
            raise UserError(f"must be a probability, not {abstain}", "abstain")
        if mode not in ("score", "generate"):
            raise UserError(f"{mode!r} is not a mode", "--mode", "Use score or generate")
        prompter = self.batcher.prompter
        found: list[list[AspectSentimentResult]] = [[] for _ in vectors]
        pieces = self._pieces(aspects)
        for start in range(0, len(pieces), _TEXTS_AT_ONCE):
            some = pieces[start : start + _TEXTS_AT_ONCE]
            questions = [[prompter.ask(a.term) for a in each] for _, each in some]
            packed, table = self._on_memory([vectors[i] for i, _ in some], questions, size)
            scores = torch.split(self._scores(packed, table), [len(each) for _, each in some])
            for (i, each), part in zip(some, scores, strict=True):
                found[i] += [_result(a, p, abstain) for a, p in zip(each, part, strict=True)]
        if mode == "generate":
            written = iter(
                self.generate(
                    [memory[:size] for memory, each in zip(vectors, aspects, strict=True) for _ in each],
                    [PROMPTS[Task.REASONING].format(aspect=a.term) for each in aspects for a in each],
                    max_tokens=4,
                )
            )
            found = [[_said(result, next(written)) for result in each] for each in found]
        return found

    @torch.no_grad()
    def generate(self, vectors: Sequence[Tensor], prompts: Sequence[str], max_tokens: int = 128) -> list[str]:
        """What the model writes after each memory and prompt, greedily.

        Args:
            vectors: memories, (k, d) each.
            prompts: one for each.
            max_tokens: at most so many.
        """
        causal: Any = self.model._causal
        table, end = causal.get_input_embeddings(), self.tokenizer.eos_token_id
        written = []
        for start in range(0, len(vectors), _TEXTS_AT_ONCE):
            rows = []
            for memory, prompt in zip(
                vectors[start : start + _TEXTS_AT_ONCE], prompts[start : start + _TEXTS_AT_ONCE], strict=True
            ):
                ids = torch.tensor(self.batcher.prompter._ids(prompt), device=self.device)
                words = table(ids)
                rows.append(torch.cat([memory.to(words), words]))
            length = max(len(row) for row in rows)
            inputs = torch.stack([torch.nn.functional.pad(row, (0, 0, length - len(row), 0)) for row in rows])
            mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=self.device)
            with self.model.role("answer"):
                ids = causal.generate(
                    inputs_embeds=inputs,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    eos_token_id=end,
                    pad_token_id=end,
                )
            written += [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids.tolist()]
        return written

    # ---- finding --------------------------------------------------------------------------------------------------

    def extract(self, text: str, *, memory: Memory | None = None, abstain: float = 0.0) -> list[AspectSentimentResult]:
        """The aspects the model finds in a text, with their sentiment.

        Args:
            text: the text; spans of the aspects are looked up in it.
            memory: of the text, if there is one already.
            abstain: below this probability the polarity is None.

        Raises:
            UserError: for a model that was not trained to list aspects.
        """
        return self.extract_batch([memory or self.compress(text)], [text], abstain=abstain)[0]

    def extract_batch(
        self, memories: Sequence[Memory], texts: Sequence[str], *, abstain: float = 0.0
    ) -> list[list[AspectSentimentResult]]:
        """See `extract`; for many texts at once."""
        self.ensure_lists()
        for memory in memories:
            self._check(memory)
        vectors = [memory.vectors for memory in memories]
        written = self.generate(vectors, [PROMPTS[Task.EXTRACTION]] * len(vectors), 96)
        found: list[list[AspectSentimentResult]] = []
        for memory, text, listed in zip(memories, texts, written, strict=True):
            terms = list(dict.fromkeys(term for term, _ in parse_extraction(listed)))
            aspects = [_located(term, text) for term in terms]
            found.append(self.predict(text, aspects, memory=memory, abstain=abstain) if aspects else [])
        return found

    @property
    def lists_aspects(self) -> bool:
        """Whether the model was trained to list aspects; what another one wrote would be no list."""
        loss = self.config.loss
        return loss.ext_share > 0 and max(loss.beta) > 0 and self.config.memory.reader != "none"

    def ensure_lists(self) -> None:
        """Refuse a model that does not list aspects."""
        if not self.lists_aspects:
            fix = "Name them (--aspect food, or aspects in a request), or train with --set loss.ext_share=0.5"
            raise UserError("this model was not trained to find aspects", "aspects", fix)

    def restore(self, memories: Sequence[Memory]) -> list[str]:
        """The texts as the model remembers them."""
        vectors = [memory.vectors for memory in memories]
        return self.generate(vectors, [PROMPTS[Task.RECONSTRUCTION]] * len(vectors))


def _span(one: Any) -> tuple[int, int]:
    """A pair of whole numbers, NumPy's too."""
    try:
        start, end = one
        if isinstance(start, bool) or isinstance(end, bool):
            raise TypeError
        return operator.index(start), operator.index(end)
    except (TypeError, ValueError):
        what = f"{one!r} is neither a term nor a (start, end) span"
        raise UserError(what, "aspects", 'For example: ["food", (4, 8)]') from None


def _ensure_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UserError("this is one text, not a list of texts", "texts", "Give a list")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"a text is needed, not {type(text).__name__}", f"text {number}")
        if not text.strip():
            raise UserError("the text is empty", f"text {number}")
        ensure_characters(text, f"text {number}")


def _located(term: str, text: str) -> Aspect:
    """An aspect at the term's first place in the text, whatever its case; without a place if it is not there."""
    start = text.find(term)
    start = start if start >= 0 else text.lower().find(term.lower())
    if start < 0:
        return Aspect(term)
    return Aspect(text[start : start + len(term)], None, start, start + len(term))


def _result(aspect: Aspect, probabilities: Tensor, abstain: float) -> AspectSentimentResult:
    best = int(probabilities.argmax())
    confidence = float(probabilities[best])
    named: dict[str, float] = dict(zip(POLARITIES, (float(p) for p in probabilities), strict=True))
    return AspectSentimentResult(aspect, POLARITIES[best] if confidence >= abstain else None, confidence, named)


def _said(result: AspectSentimentResult, written: str) -> AspectSentimentResult:
    """The result with the polarity that was written; None for anything else."""
    said = next((polarity for polarity in POLARITIES if written.lower().startswith(polarity)), None)
    return AspectSentimentResult(
        result.aspect, said, result.probabilities[said] if said else result.confidence, result.probabilities
    )
