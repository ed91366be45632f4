"""Scores, baselines, reports."""

from seq2seq_keras.evaluation.evaluate import Evaluation, evaluate, references_of, score_baselines, seed_protocol

__all__ = ["Evaluation", "evaluate", "references_of", "score_baselines", "seed_protocol"]
