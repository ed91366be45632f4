"""The seed's text pipeline, bit for bit: Keras' Tokenizer and pad_sequences with the defaults it relied on.

Kept to reproduce its references: full stops deleted before the model sees them, rare words dropped without a trace,
and labels of more than ``max_length`` tokens cut at their front, their ``sostok`` with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from seq2seq_keras.data.types import Ids

_FILTERS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
_TO_SPACE = str.maketrans(dict.fromkeys(_FILTERS, " "))


class SeedTokenizer:
    """What ``keras.preprocessing.text.Tokenizer(num_words)`` did, without an OOV token.

    Args:
        num_words: only the ``num_words - 1`` most frequent words have ids that are used; other words are dropped.
    """

    def __init__(self, num_words: int | None = None) -> None:
        self.num_words = num_words
        self.word_index: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def fit_on_texts(self, texts: Iterable[str]) -> None:
        """Count words; ids follow frequency, first seen first among equals, from 1."""
        for text in texts:
            self._counts.update(self._words(text))
        ranked = sorted(self._counts.items(), key=lambda item: item[1], reverse=True)  # stable, as Keras'
        self.word_index = {word: number for number, (word, _) in enumerate(ranked, 1)}

    def texts_to_sequences(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of the known words of each text."""
        limit = self.num_words or len(self.word_index) + 1
        found = ([self.word_index.get(word, limit) for word in self._words(text)] for text in texts)
        return [[i for i in ids if i < limit] for ids in found]

    @staticmethod
    def _words(text: str) -> list[str]:
        return [word for word in text.lower().translate(_TO_SPACE).split(" ") if word]


def pad_sequences(
    sequences: Sequence[Sequence[int]], maxlen: int, *, padding: str = "pre", truncating: str = "pre"
) -> Ids:
    """Keras' ``pad_sequences``: both defaults are "pre", so a long sequence loses its *first* tokens.

    Returns:
        (N, maxlen) ids, 0 where padded.
    """
    padded = np.zeros((len(sequences), maxlen), np.int32)
    for row, sequence in zip(padded, sequences, strict=True):
        if not sequence:
            continue
        kept = sequence[-maxlen:] if truncating == "pre" else sequence[:maxlen]
        if padding == "post":
            row[: len(kept)] = kept
        else:
            row[-len(kept) :] = kept
    return padded


def seed_references(
    train: Iterable[str], labels: Sequence[str], num_words: int = 10_001, maxlen: int = 20
) -> list[str]:
    """The references the seed scored against: labels as its tokenizer and padding left them.

    Args:
        train: labels of the training part, which the tokenizer is fitted on.
        labels: labels to reduce.
        num_words: of the target tokenizer.
        maxlen: the seed's 20.

    Returns:
        For each label the words that survived, without ``sostok`` and ``eostok``.
    """
    tokenizer = SeedTokenizer(num_words)
    tokenizer.fit_on_texts(f"sostok {text} eostok" for text in train)
    names = {number: word for word, number in tokenizer.word_index.items()}
    sequences = tokenizer.texts_to_sequences(f"sostok {text} eostok" for text in labels)
    rows = pad_sequences(sequences, maxlen, padding="post")
    return [" ".join(names[i] for i in row if i and names[i] not in ("sostok", "eostok")) for row in rows.tolist()]
