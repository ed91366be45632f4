"""Scores, baselines, reports."""

from seq2seq_keras.evaluation.evaluate import Evaluation, evaluate, references_of, seed_protocol

__all__ = ["Evaluation", "evaluate", "references_of", "seed_protocol"]
