"""From encoded pairs to a trained model."""

from seq2seq_keras.training.fit import Trainer, fit

__all__ = ["Trainer", "fit"]
