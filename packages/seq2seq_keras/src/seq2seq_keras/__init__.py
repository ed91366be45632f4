"""One-sentence summaries from scratch: an LSTM encoder-decoder with Bahdanau attention and a pointer, in Keras 3.

The names below are imported when they are first used, so that ``seq2seq-keras --help`` does not wait for TensorFlow.
"""

import os
from typing import TYPE_CHECKING

from latentlab_shared.lazy import lazy_names

# Set before Keras and TensorFlow are imported: the layers are written for this backend, and its notes are no errors.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if TYPE_CHECKING:
    from seq2seq_keras.config import DataConfig, DecodeConfig, ModelConfig, Settings, TrainConfig
    from seq2seq_keras.data import Example, Vocabulary, calculate_text_f1, create_pseudo_summary, read_examples
    from seq2seq_keras.inference import Summarizer, Summary
    from seq2seq_keras.model.attention import BahdanauAttention
    from seq2seq_keras.model.seq2seq import Seq2Seq
    from seq2seq_keras.training import fit

_HOMES = {
    "config": ("DataConfig", "DecodeConfig", "ModelConfig", "Settings", "TrainConfig"),
    "data": ("Example", "Vocabulary", "calculate_text_f1", "create_pseudo_summary", "read_examples"),
    "inference": ("Summarizer", "Summary"),
    "model.attention": ("BahdanauAttention",),
    "model.seq2seq": ("Seq2Seq",),
    "training": ("fit",),
}

__all__ = [
    "BahdanauAttention",
    "DataConfig",
    "DecodeConfig",
    "Example",
    "ModelConfig",
    "Seq2Seq",
    "Settings",
    "Summarizer",
    "Summary",
    "TrainConfig",
    "Vocabulary",
    "calculate_text_f1",
    "create_pseudo_summary",
    "fit",
    "read_examples",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
