"""From a trained model to words."""

from seq2seq_keras.inference.summarizer import Summarizer, Summary

__all__ = ["Summarizer", "Summary"]
