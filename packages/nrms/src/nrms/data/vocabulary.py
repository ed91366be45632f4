"""Titles → token ids. Id 0 pads, id 1 is the unknown word; a Hugging Face tokenizer's own ids are moved up by one."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from latentlab_shared.errors import NeedsExtra, UserError
from latentlab_shared.files import read_json, write_json

PAD, UNKNOWN = 0, 1
VOCABULARY_FILE = "vocabulary.json"
_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


class Vocabulary(Protocol):
    """What turns text into token ids."""

    def __len__(self) -> int:
        """V, one more than the largest id."""

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Token ids of each text, at most ``length``; none for a blank text."""

    def state(self) -> dict[str, Any]:
        """What `load_vocabulary` needs, as JSON values."""


def split_words(text: str) -> list[str]:
    """Words and single signs, lower-cased: numbers, other scripts and emoji are words too."""
    return _WORD.findall(text.lower())


class WordVocabulary:
    """Whole words.

    Args:
        words: in the order of their ids, from 2.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        self._id = {word: index for index, word in enumerate(self.words, start=UNKNOWN + 1)}
        if len(self._id) != len(self.words):
            raise ValueError("a word stands in the vocabulary twice")

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 1) -> WordVocabulary:
        """The words that occur at least ``min_count`` times, the most frequent first."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_words(text))
        kept = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
        return cls(kept)

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Token ids of each text, at most ``length``."""
        get = self._id.get
        return [[get(word, UNKNOWN) for word in split_words(text)[:length]] for text in texts]

    def state(self) -> dict[str, Any]:
        """The words."""
        return {"kind": "words", "words": list(self.words)}


class TokenizerVocabulary:
    """A Hugging Face tokenizer, with its special tokens.

    Args:
        definition: the content of its ``tokenizer.json``.
        special: whether to add [CLS] and the like, which a transformer wants and word vectors do not.
    """

    def __init__(self, definition: str, special: bool) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise NeedsExtra("tokenizers", "encoders") from None
        try:
            self._tokenizer = Tokenizer.from_str(definition)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"not a tokenizer ({error})", "tokenizer.json") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.definition, self.special = definition, special

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True)) + 1

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Token ids of each text, at most ``length``; a blank text has none, not even special ones."""
        self._tokenizer.enable_truncation(length)
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=self.special)
        return [[i + 1 for i in e.ids] if text.strip() else [] for text, e in zip(texts, encoded, strict=True)]

    def state(self) -> dict[str, Any]:
        """The tokenizer's definition."""
        return {"kind": "tokenizer", "special": self.special, "definition": self.definition}


def save_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write ``vocabulary.json``."""
    write_json(folder / VOCABULARY_FILE, vocabulary.state())


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read ``vocabulary.json``.

    Raises:
        UserError: if it is missing or damaged.
    """
    path = folder / VOCABULARY_FILE
    state = read_json(path)
    try:
        if state["kind"] == "words":
            return WordVocabulary(state["words"])
        if state["kind"] == "tokenizer":
            return TokenizerVocabulary(state["definition"], state["special"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a vocabulary ({error!r})", path) from None
    raise UserError("not a vocabulary of a known kind", path)


def vocabulary_hash(vocabulary: Vocabulary) -> str:
    """SHA-256 of what decides the token ids."""
    return hashlib.sha256(json.dumps(vocabulary.state(), sort_keys=True).encode()).hexdigest()
