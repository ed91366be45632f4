"""Tiny models and batches that the tests share."""

from dataclasses import replace

import numpy as np

from seq2seq_keras.config import ModelConfig

VOCABULARY = 30
TINY = ModelConfig(embedding_dim=6, units=8, encoder_layers=1, dropout=0.0)
SMALL = replace(TINY, bidirectional=True, share_embeddings=True, tied_output=True, pointer=True)
OPTIONS = {
    "seed": replace(TINY, encoder_layers=3),
    "keras_additive": replace(TINY, attention="keras_additive"),
    "no mask": replace(TINY, mask=False),
    "bidirectional": replace(TINY, bidirectional=True, encoder_layers=2),
    "shared": replace(TINY, share_embeddings=True),
    "tied": replace(TINY, tied_output=True),
    "pointer": replace(TINY, pointer=True),
    "coverage": replace(SMALL, coverage=True),
    "small": SMALL,
}


def sharpen(model, seed=0, scale=1.0):
    """Spread the weights, so that outputs are not near uniform and ties do not occur."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.normal(0, scale, variable.shape).astype("float32"))
    return model


def texts(count, width=7, seed=0, unknown=3):
    """(B, S) ids and extended ids of random texts of different lengths, some words unknown."""
    rng = np.random.default_rng(seed)
    ext = rng.integers(5, VOCABULARY + unknown, (count, width)).astype(np.int32)
    for row, length in zip(ext, rng.integers(1, width + 1, count), strict=True):
        row[length:] = 0
    return np.where(ext < VOCABULARY, ext, 1).astype(np.int32), ext
