"""The one object a user holds: a model with its vocabulary and settings, and the verb ``summarize``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from latentlab_shared.config import from_dict
from latentlab_shared.errors import UserError
from latentlab_shared.files import read_json, write_json
from seq2seq_keras.config import DecodeConfig, Settings
from seq2seq_keras.data.encode import Source, encode_source, pad
from seq2seq_keras.data.text import clean, make_splitter
from seq2seq_keras.data.types import Ids
from seq2seq_keras.data.vocabulary import Vocabulary
from seq2seq_keras.inference.beam import search_beam
from seq2seq_keras.inference.greedy import Found, search_greedy
from seq2seq_keras.inference.seed_models import SeedDecoder
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.model.weights import load_variables, named_weights, save_variables

_BATCH = 64
_NO_HYPOTHESIS = -1e8


@dataclass(frozen=True)
class Summary:
    """A summary and how it came about.

    Attributes:
        text: the words.
        score: log-probability (with a beam, divided by its length penalty).
        words: of the summary.
        source: the tokens that were read.
        attention: (words, source tokens), rows sum to 1.
        copied: probability with which each word was copied rather than written; empty without a pointer.
        alternatives: the other texts of ``n_best``, best first.
    """

    text: str
    score: float
    words: tuple[str, ...]
    source: tuple[str, ...]
    attention: NDArray[np.float32]
    copied: tuple[float, ...]
    alternatives: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the attention."""
        return {k: v for k, v in asdict(self).items() if k != "attention"}


class Summarizer:
    """Makes one-sentence summaries.

    Args:
        model: a trained network; it is kept without its dropout.
        vocabulary: its words.
        settings: its data and decoding settings.
    """

    def __init__(self, model: Seq2Seq, vocabulary: Vocabulary, settings: Settings) -> None:
        if model.vocabulary_size != len(vocabulary):
            raise ValueError(f"the model has {model.vocabulary_size} words, the vocabulary {len(vocabulary)}")
        self.model, self.vocabulary, self.settings = model.without_dropout(), vocabulary, settings
        self._split = make_splitter(settings.data.splitter)
        self._compiled: dict[DecodeConfig, Any] = {}

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write config.json, vocabulary.txt and model.safetensors."""
        folder = Path(folder)
        save_variables(named_weights(self.model), folder / "model.safetensors")
        self.vocabulary.save(folder / "vocabulary.txt")
        write_json(folder / "config.json", {"settings": self.settings, "covering": self.model.covering})

    @classmethod
    def load(cls, folder: str | Path) -> Summarizer:
        """Load a saved model, or the one of a run folder.

        Raises:
            UserError: if there is none, or a file of it is damaged.
        """
        home = Path(folder)
        home = home / "model" if (home / "model").is_dir() else home
        if not (home / "config.json").is_file() or not (home / "vocabulary.txt").is_file():
            raise UserError("there is no trained model here", folder, "Train one first: seq2seq-keras train")
        held = read_json(home / "config.json")
        if not isinstance(held, dict) or not {"settings", "covering"} <= held.keys():
            raise UserError("this is not the configuration of a model", home / "config.json")
        settings = from_dict(Settings, held["settings"], home / "config.json")
        vocabulary = Vocabulary.load(home / "vocabulary.txt")
        try:
            model = Seq2Seq(len(vocabulary), settings.model, bool(held["covering"]))
        except ValueError as error:
            raise UserError(str(error), home / "config.json") from None
        load_variables(named_weights(model), home / "model.safetensors")
        return cls(model, vocabulary, settings)

    # -- words ---------------------------------------------------------------------------------------------------

    @overload
    def summarize(self, text: str, config: DecodeConfig | None = None) -> Summary: ...
    @overload
    def summarize(self, text: list[str], config: DecodeConfig | None = None) -> list[Summary]: ...

    def summarize(self, text: str | list[str], config: DecodeConfig | None = None) -> Summary | list[Summary]:
        """Summarize a text, or a list of texts in batches of 64.

        Args:
            text: one text or several.
            config: how to search; the model's own by default.

        Raises:
            UserError: for a text without words, or a search that cannot be: see ``length`` and ``search``.
            TypeError: for anything else than text.
        """
        if isinstance(text, str):
            return self.summarize([text], config)[0]
        if not isinstance(text, (list, tuple)) or not all(isinstance(one, str) for one in text):
            raise TypeError(f"text is a string or a list of strings, not {type(text).__name__}")
        sources = [self.encode(one, f"text {number}") for number, one in enumerate(text)]
        # Like lengths together: less padding to read. The order of the answers is that of the texts.
        order = sorted(range(len(sources)), key=lambda i: len(sources[i].ids))
        found: dict[int, Summary] = {}
        for at in range(0, len(order), _BATCH):
            chosen = order[at : at + _BATCH]
            for number, summary in zip(chosen, self._batch([sources[i] for i in chosen], config), strict=True):
                found[number] = summary
        return [found[i] for i in range(len(sources))]

    def encode(self, text: str, where: str = "text") -> Source:
        """A text as the model reads it.

        Raises:
            UserError: for a text without words.
        """
        source = encode_source(clean(text), self.vocabulary, self.settings.data, self._split)
        if not source.ids:
            raise UserError("there are no words to summarize", where, "Give a text of at least one word")
        return source

    def length(self, config: DecodeConfig) -> int:
        """T: words at most and the end.

        Raises:
            UserError: if fewer words are possible than ``min_length`` asks for.
        """
        most = config.max_length or self.settings.data.max_target - 2
        if config.min_length > most:
            fix = f"Ask for a min_length of at most {most}, or for a larger max_length"
            raise UserError(f"a summary of {config.min_length} words is not possible", "decode.min_length", fix)
        return most + 1

    def search(self, source: Ids, source_ext: Ids, config: DecodeConfig | None = None) -> Found:
        """Search in the compiled loop: (B, S) ids and extended ids → ids, scores and attention.

        Each configuration is compiled once.

        Raises:
            UserError: for more hypotheses than there are words.
        """
        config = config or self.settings.decode
        if config.beam > len(self.vocabulary):
            fix = f"Take at most {len(self.vocabulary)}"
            raise UserError(f"a beam of {config.beam} is wider than the vocabulary", "decode.beam", fix)
        if config not in self._compiled:
            self._compiled[config] = compile_search(self.model, self.length(config), config)
        return Found(*self._compiled[config](source, source_ext))

    def decode_sequence(self, input_seq: Ids, source_ext: Ids | None = None) -> list[int]:
        """The seed's loop, one ``predict`` per word: extended ids of the greedy summary of a (1, S) text."""
        # As in `_batch`: the last place is the end's, whether a summary ends or not.
        return self._seed_decoder.decode_sequence(input_seq, source_ext)[: self._seed_decoder.length - 1]

    @cached_property
    def _seed_decoder(self) -> SeedDecoder:
        config = replace(self.settings.decode, beam=1, n_best=1)
        return SeedDecoder(self.model, self.settings.data.max_source, self.length(config), config)

    def _batch(self, sources: list[Source], config: DecodeConfig | None) -> list[Summary]:
        found = self.search(pad([s.ids for s in sources]), pad([s.ext for s in sources]), config)
        ids, scores, attention, copied = (np.asarray(part) for part in found)
        ids = ids[:, :, : self.length(config or self.settings.decode) - 1]  # the last place is the end's
        return [self._summary(s, ids[i], scores[i], attention[i], copied[i]) for i, s in enumerate(sources)]

    def _summary(
        self,
        source: Source,
        ids: Ids,
        scores: NDArray[np.float32],
        attention: NDArray[np.float32],
        copied: NDArray[np.float32],
    ) -> Summary:
        texts = [self.vocabulary.decode(row.tolist(), source.unknown) for row in ids]
        words = texts[0]
        kept = [" ".join(t) for t, score in zip(texts, scores.tolist(), strict=True) if score > _NO_HYPOTHESIS]
        shares = tuple(copied[0, : len(words)].tolist()) if self.model.settings.pointer else ()
        return Summary(
            text=" ".join(words),
            score=float(scores[0]),
            words=tuple(words),
            source=tuple(source.tokens),
            attention=attention[0, : len(words), : len(source.tokens)],
            copied=shares,
            alternatives=tuple(kept[1:]),
        )


def compile_search(model: Seq2Seq, length: int, config: DecodeConfig) -> Any:
    """A ``tf.function`` from (B, S) ids and extended ids to what was found, for any B and S."""
    search = search_greedy if config.beam == 1 else search_beam
    ids = tf.TensorSpec((None, None), tf.int32)

    def run(source: Any, source_ext: Any) -> Any:
        return tuple(search(model, source, source_ext, length, config))

    return tf.function(run, input_signature=[ids, ids], autograph=False)


__all__ = ["Summarizer", "Summary", "compile_search"]
