"""Examples to packed batches: what is compressed, and what is asked about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_absa.configs.base_config import MemoryConfig
from clara_absa.configs.schema import POLARITIES, Example, Task
from clara_absa.data_utils.packing import TASKS, Branch, Packed, Tree, pack
from clara_absa.data_utils.prompts import Prompter


@dataclass(frozen=True)
class Batch:
    """One pass of the model.

    Attributes:
        texts: to compress; None for a model that reads the text itself.
        questions: on memory slots, or on the text.
        sentences: how many there are.
        teacher: the teacher's probabilities for each question about an aspect, (Q, 3), or None.
        marks: text, token in the middle of an aspect, and number of its polarity, (N, 3).
    """

    texts: Packed | None
    questions: Packed
    sentences: int
    teacher: Tensor | None = None
    marks: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        teacher = None if self.teacher is None else self.teacher.to(device)
        marks = None if self.marks is None else self.marks.to(device)
        return Batch(self.texts and self.texts.to(device), self.questions.to(device), self.sentences, teacher, marks)


@dataclass(frozen=True)
class Item:
    """A sentence, tokenised once.

    Attributes:
        text: what the compressor reads: ids of the backbone, or of the light encoder.
        words: ids of the text in the backbone's vocabulary.
        branches: the training questions of each task.
        teacher: the teacher's probabilities for each aspect, (n, 3), or None.
        marks: the token in the middle of each aspect that has a place in the text, and the number of its polarity.
    """

    text: tuple[int, ...]
    words: tuple[int, ...]
    branches: dict[Task, tuple[Branch, ...]]
    teacher: Tensor | None = None
    marks: tuple[tuple[int, int], ...] = ()


class Batcher:
    """Makes packed batches for one model.

    Args:
        prompter: of the backbone's tokenizer.
        memory: how the memory is made.
        row_tokens: length of a packed row.
        encoder_tokenizer: of the light encoder, for ``memory.reader == "encoder"``.
    """

    def __init__(
        self, prompter: Prompter, memory: MemoryConfig, row_tokens: int = 256, encoder_tokenizer: Any = None
    ) -> None:
        self.prompter, self.memory, self.row_tokens = prompter, memory, row_tokens
        self.encoder_tokenizer = encoder_tokenizer

    def read(self, text: str) -> tuple[int, ...]:
        """Ids of a text for whoever compresses it."""
        if self.memory.reader != "encoder":
            return self.prompter.text(text)
        return tuple(self.encoder_tokenizer(text, truncation=True, max_length=self.max_tokens + 2)["input_ids"])

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read; the rest of a longer one is cut off."""
        return min(self.memory.max_text_tokens, 510) if self.memory.reader == "encoder" else self.memory.max_text_tokens

    def kept(self, text: str) -> int:
        """Characters of a text that are read: all, or those before the cut at ``max_tokens``."""
        tokenizer, most, marks = self.prompter.tokenizer, self.max_tokens, 0
        if self.memory.reader == "encoder":
            tokenizer = self.encoder_tokenizer
            marks = tokenizer.num_special_tokens_to_add()  # its first and its last token, as a rule, are no text
            most += 2 - marks
        ids = self.read(text)
        if len(ids) < most + marks:
            return len(text)
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        if len(whole["input_ids"]) <= most:
            return len(text)
        if not tokenizer.is_fast:  # knows no places
            return min(len(text), len(tokenizer.decode(list(ids), skip_special_tokens=True)))
        return int(whole["offset_mapping"][most - 1][1])

    def item(self, example: Example, teacher: Tensor | None = None) -> Item:
        """Tokenise a sentence with its training questions."""
        words = self.prompter.text(example.text)
        text = words if self.memory.reader != "encoder" else self.read(example.text)
        return Item(text, words, self.prompter.branches(example), teacher, self.marks(example, len(text)))

    def hide(self, item: Item, hidden: NDArray[np.bool_]) -> Item:
        """The sentence with some of its tokens unreadable; what is asked stays as it is.

        Args:
            item: the sentence.
            hidden: which tokens of its text, (T,); an encoder's special tokens stay.
        """
        tokenizer, special = self.prompter.tokenizer, frozenset[int]()
        blank = tokenizer.eos_token_id
        if self.memory.reader == "encoder":
            tokenizer = self.encoder_tokenizer
            blank = tokenizer.unk_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
            special = frozenset(tokenizer.all_special_ids)
        pairs = zip(item.text, hidden.tolist(), strict=True)
        return replace(item, text=tuple(blank if gone and t not in special else t for t, gone in pairs))

    def marks(self, example: Example, length: int) -> tuple[tuple[int, int], ...]:
        """The token in the middle of each aspect that has a place in the text, and the number of its polarity.

        Args:
            example: the sentence.
            length: tokens of its text as the compressor reads it.
        """
        encodes = self.memory.reader == "encoder"
        tokenizer = self.encoder_tokenizer if encodes else self.prompter.tokenizer
        if not tokenizer.is_fast:  # knows no places
            return ()
        coded, found = tokenizer(example.text, add_special_tokens=encodes, verbose=False), []
        for aspect in example.aspects:
            if aspect.start is None or aspect.end is None or aspect.polarity is None:
                continue
            token = coded.char_to_token((aspect.start + aspect.end - 1) // 2)
            if token is not None and token < length:
                found.append((int(token), POLARITIES.index(aspect.polarity)))
        return tuple(found)

    def slots(self, text: Sequence[int]) -> int:
        """Memory vectors that are computed for a text."""
        if self.memory.reader == "none":
            return 0
        if self.memory.ratio is None:
            return self.memory.tokens
        return min(self.memory.tokens, max(1, math.ceil(len(text) / self.memory.ratio)))

    def texts(self, texts: Sequence[tuple[int, ...]]) -> Packed | None:
        """Texts to compress; None where nothing is compressed."""
        if self.memory.reader == "none":
            return None
        own = self.memory.reader == "decoder"
        trees = [Tree((*text, *(-1 - i for i in range(self.slots(text)))) if own else text) for text in texts]
        return pack(trees, self.row_tokens)

    def questions(
        self, texts: Sequence[tuple[int, ...]], branches: Sequence[Sequence[Branch]], size: int | None = None
    ) -> Packed:
        """Questions on the memory of texts, or on the texts themselves where nothing is compressed.

        Args:
            texts: what the compressor reads, in the order of the memory.
            branches: the questions of each text.
            size: memory vectors to show; None for all.
        """
        trees, start = [], 0
        for text, asked in zip(texts, branches, strict=True):
            computed = self.slots(text)
            # A light reader computes all its queries; a ratio shows some of them.
            stride = self.memory.tokens if self.memory.reader == "encoder" else computed
            shown = computed if size is None else min(size, computed)
            trunk = text if self.memory.reader == "none" else tuple(-1 - start - i for i in range(shown))
            trees.append(Tree(trunk, tuple(asked)))
            start += stride
        return pack(trees, self.row_tokens)

    def training(self, items: Sequence[Item], chosen: Sequence[Sequence[Task]], size: int | None = None) -> Batch:
        """A training batch.

        Args:
            items: the sentences; each is compressed once, whatever is asked about it.
            chosen: the tasks asked of each.
            size: memory vectors to show; None for all.
        """
        texts = [item.text for item in items]
        asked = [
            [branch for task in TASKS if task in tasks for branch in item.branches[task]]
            for item, tasks in zip(items, chosen, strict=True)
        ]
        taught = [item.teacher for item in items if item.teacher is not None]
        teacher = torch.cat(taught) if len(taught) == len(items) and taught else None
        marks = [(number, *mark) for number, item in enumerate(items) for mark in item.marks]
        marked = torch.tensor(marks, dtype=torch.long).view(-1, 3)
        return Batch(self.texts(texts), self.questions(texts, asked, size), len(items), teacher, marked)


def task_tokens(items: Sequence[Item], chosen: Sequence[Sequence[Task]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens to predict in each task, (len(TASKS),), without packing anything."""
    counts = np.zeros(len(TASKS), np.int64)
    for item, tasks in zip(items, chosen, strict=True):
        for task in tasks:
            counts[TASKS.index(task)] += sum(len(answer) for b in item.branches[task] for answer in b.answers)
    return counts
