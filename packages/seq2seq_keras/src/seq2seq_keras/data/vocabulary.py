"""Words and their ids, one list for source and target: copying needs both sides to speak of the same words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from latentlab_shared.errors import UserError
from latentlab_shared.files import write_text
from seq2seq_keras.data.text import BOUNDARY

PAD, UNK, SOS, EOS, END = range(5)
SPECIAL = ("<pad>", "<unk>", "sostok", "eostok", BOUNDARY)
# What a summary may not hold; EOS ends it.
NEVER_WRITTEN = (PAD, UNK, SOS, END)


class Vocabulary:
    """Ids of words: five special ones, then words by frequency.

    Args:
        words: the words after the special ones, each once.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = (*SPECIAL, *words)
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError("a word stands twice in the vocabulary")

    @classmethod
    def build(cls, texts: Iterable[Iterable[str]], size: int, min_count: int = 1) -> Vocabulary:
        """The ``size - 5`` most frequent words that come at least ``min_count`` times; the first seen among equals."""
        counts: Counter[str] = Counter()
        for tokens in texts:
            counts.update(tokens)
        for special in SPECIAL:
            counts.pop(special, None)
        ranked = counts.most_common(max(0, size - len(SPECIAL)))
        return cls([word for word, count in ranked if count >= min_count])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids; unknown words are ``UNK``."""
        return [self._ids.get(token, UNK) for token in tokens]

    def extend(self, tokens: Iterable[str]) -> tuple[list[int], list[str]]:
        """Ids of a source text in which unknown words get V, V + 1, …, and those words in order."""
        unknown: dict[str, int] = {}
        ids = [
            self._ids[token] if token in self._ids else unknown.setdefault(token, len(self) + len(unknown))
            for token in tokens
        ]
        return ids, list(unknown)

    def encode_target(self, tokens: Iterable[str], unknown: Sequence[str]) -> list[int]:
        """Ids of a summary; a word unknown here but in the source's ``unknown`` gets its extended id."""
        places = {word: len(self) + number for number, word in enumerate(unknown)}
        return [self._ids[token] if token in self._ids else places.get(token, UNK) for token in tokens]

    def decode(self, ids: Iterable[int], unknown: Sequence[str] = ()) -> list[str]:
        """Words of extended ids, up to ``EOS``, without padding and start."""
        found = []
        for number in ids:
            if number == EOS:
                break
            if number not in (PAD, SOS):
                found.append(self.words[number] if number < len(self) else unknown[number - len(self)])
        return found

    def save(self, path: Path) -> None:
        """Write one word per line."""
        write_text(path, "\n".join(self.words[len(SPECIAL) :]) + "\n")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what ``save`` wrote.

        Raises:
            UserError: for a missing or damaged file.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            return cls([line for line in lines if line])
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UserError(f"the vocabulary cannot be read ({error})", path) from error
