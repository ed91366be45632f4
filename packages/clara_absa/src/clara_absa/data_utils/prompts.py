"""Sentences and questions as token ids: the seed's prompts, joined to their answers as the tokenizer would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from clara_absa.configs.schema import POLARITIES, PROMPTS, Aspect, Example, Task
from clara_absa.data_utils.packing import Branch
from latentlab_shared.errors import UserError


def extraction_answer(aspects: Sequence[Aspect]) -> str:
    """``decor: negative, food: positive``, the seed's list."""
    return ", ".join(f"{aspect.term}: {aspect.polarity}" for aspect in aspects)


def parse_extraction(answer: str) -> list[tuple[str, str]]:
    """Terms and polarities of such a list; parts without a known polarity are left out."""
    found = []
    for part in answer.split(","):
        term, _, polarity = part.rpartition(":")
        if term.strip() and polarity.strip() in POLARITIES:
            found.append((term.strip(), polarity.strip()))
    return found


@dataclass
class Prompter:
    """Makes ids of texts, questions and answers for one tokenizer.

    Args:
        tokenizer: of the backbone.
        max_text_tokens: longer texts are cut.

    Attributes:
        verbalizers: ids of each polarity as an answer.
    """

    tokenizer: Any
    max_text_tokens: int = 246
    verbalizers: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        self._ids = lru_cache(10_000)(self._tokenise)  # questions come again and again
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token", getattr(self.tokenizer, "name_or_path", ""))
        asked = PROMPTS[Task.REASONING].format(aspect="food")
        self.verbalizers = tuple(self.answer(asked, polarity, end=False) for polarity in POLARITIES)
        first = {answer[0] for answer in self.verbalizers}
        if len(set(self.verbalizers)) < len(POLARITIES) or self.tokenizer.unk_token_id in first:
            raise UserError("the tokenizer cannot tell the polarities apart", "backbone", "Choose another backbone")

    @property
    def single(self) -> bool:
        """Whether each polarity is one token."""
        return all(len(answer) == 1 for answer in self.verbalizers)

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of a text, cut to the longest allowed; a text without tokens is one end-of-text token."""
        return self._ids(text)[: self.max_text_tokens] or (self.tokenizer.eos_token_id,)

    def answer(self, prompt: str, answer: str, end: bool = True) -> tuple[int, ...]:
        """Ids of an answer as it follows a prompt, one blank between them; ``end`` adds the end-of-text token."""
        head, whole = self._ids(prompt), self._ids(f"{prompt} {answer}")
        ids = whole[len(head) :] if whole[: len(head)] == head else self._ids(answer)
        return (*ids, self.tokenizer.eos_token_id) if end else ids

    def prompt(self, task: Task, aspect: str = "") -> tuple[int, ...]:
        """Ids of a question."""
        return self._ids(PROMPTS[task].format(aspect=aspect))

    def ask(self, aspect: str) -> Branch:
        """The question about an aspect, with the three polarities as its answers."""
        return Branch(self.prompt(Task.REASONING, aspect), self.verbalizers)

    def branches(self, example: Example) -> dict[Task, tuple[Branch, ...]]:
        """All training questions of a sentence, each with its right answer."""
        found: dict[Task, tuple[Branch, ...]] = {}
        for task, said in (
            (Task.RECONSTRUCTION, self.tokenizer.decode(list(self.text(example.text)))),
            (Task.EXTRACTION, extraction_answer(example.aspects)),
        ):
            found[task] = (Branch(self.prompt(task), (self.answer(PROMPTS[task], said.strip()),), task),)
        asked = []
        for aspect in example.aspects:
            prompt = PROMPTS[Task.REASONING].format(aspect=aspect.term)
            answer = self.answer(prompt, str(aspect.polarity))
            asked.append(Branch(self.prompt(Task.REASONING, aspect.term), (answer,), Task.REASONING))
        found[Task.REASONING] = tuple(asked)
        return found
