"""The one object a user holds: a model with its vocabulary and settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentlab_shared.files import write_json
from seq2seq_keras.config import Settings
from seq2seq_keras.data.vocabulary import Vocabulary
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.model.weights import named_weights, save_variables


@dataclass(frozen=True)
class Summary:
    """A summary."""

    text: str


class Summarizer:
    """A model with its vocabulary and settings."""

    def __init__(self, model: Seq2Seq, vocabulary: Vocabulary, settings: Settings) -> None:
        self.model, self.vocabulary, self.settings = model, vocabulary, settings

    def save(self, folder: Path) -> None:
        """Write config.json, vocabulary.txt and model.safetensors."""
        folder = Path(folder)
        save_variables(named_weights(self.model), folder / "model.safetensors")
        self.vocabulary.save(folder / "vocabulary.txt")
        write_json(folder / "config.json", {"settings": self.settings, "covering": self.model.covering})
