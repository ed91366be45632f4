"""Bahdanau attention as a Keras layer: masked, serializable, with coverage as an option."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from seq2seq_keras.model import Tensor

_MASKED = -1e9
_TINY = 1e-20


@keras.saving.register_keras_serializable(package="seq2seq_keras")
class BahdanauAttention(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Additive attention: score = v · tanh(W1 query + W2 value), as Bahdanau et al. 2015, section 3.1.

    Padding gets exactly no attention. ``project=False`` leaves W1 and W2 out, which is what
    ``keras.layers.AdditiveAttention`` computes.

    Args:
        units: A, the width of the score's hidden layer.
        project: use W1 and W2 (no biases); without them query and value must be ``units`` wide.
        coverage: add a weight for the attention that each position has had so far (See et al. 2017, equation 11).
        name: of the layer.
    """

    def __init__(self, units: int, project: bool = True, coverage: bool = False, name: str | None = None) -> None:
        super().__init__(name=name)
        self.units, self.project, self.coverage = units, project, coverage
        self.supports_masking = True

    def build(self, query_shape: tuple[int | None, ...], value_shape: tuple[int | None, ...]) -> None:
        """Make W1, W2, v and the coverage weight, which begins at 0: coverage then changes nothing."""
        if self.project:
            self.w1 = self.add_weight(shape=(query_shape[-1], self.units), name="W1")
            self.w2 = self.add_weight(shape=(value_shape[-1], self.units), name="W2")
        elif query_shape[-1] != self.units or value_shape[-1] != self.units:
            raise ValueError(f"without W1 and W2, query and value must be {self.units} wide")
        self.v = self.add_weight(shape=(self.units,), initializer="glorot_uniform", name="v")
        if self.coverage:
            self.w_coverage = self.add_weight(shape=(self.units,), initializer="zeros", name="w_coverage")

    def keys(self, value: Tensor) -> Tensor:
        """W2 · value, (B, S, A): computed once per text, not once per step."""
        return ops.matmul(value, self.w2) if self.project else value

    def attend(self, query: Tensor, keys: Tensor, value: Tensor, mask: Tensor, covered: Tensor = None) -> Tensor:
        """Context and weights.

        Args:
            query: decoder states, (B, T, U).
            keys: from ``keys``, (B, S, A).
            value: encoder outputs, (B, S, U).
            mask: 1 where there is a token, (B, S).
            covered: attention so far, (B, S), for T = 1; None for none.

        Returns:
            Context (B, T, U) and attention weights (B, T, S).
        """
        projected = ops.matmul(query, self.w1) if self.project else query
        hidden = projected[:, :, None, :] + keys[:, None, :, :]  # (B, T, S, A)
        if covered is not None:
            hidden = hidden + ops.multiply(covered[:, None, :, None], self.w_coverage)
        score = ops.sum(ops.multiply(ops.tanh(hidden), self.v), axis=-1)  # (B, T, S)
        real = ops.cast(mask, score.dtype)[:, None, :]
        score = score + (1.0 - real) * _MASKED
        share = ops.exp(score - ops.max(score, axis=-1, keepdims=True)) * real
        weights = share / ops.maximum(ops.sum(share, axis=-1, keepdims=True), _TINY)
        return ops.matmul(weights, value), weights

    def call(self, query: Tensor, value: Tensor, mask: Any = None) -> tuple[Tensor, Tensor]:
        """Attend with every query: (B, T, U), (B, S, U) → context (B, T, U), weights (B, T, S).

        Args:
            query: (B, T, U).
            value: (B, S, U).
            mask: Keras' ``[query_mask, value_mask]``, or the value's mask; None for no padding.
        """
        value_mask = mask[1] if isinstance(mask, (list, tuple)) else mask
        if value_mask is None:
            value_mask = ops.ones(ops.shape(value)[:2], dtype="bool")
        return self.attend(query, self.keys(value), value, value_mask)  # type: ignore[no-any-return]

    def compute_mask(self, query: Tensor, value: Tensor = None, mask: Any = None) -> None:
        """The mask ends here."""
        return None

    def get_config(self) -> dict[str, Any]:
        """What ``from_config`` takes."""
        return {"units": self.units, "project": self.project, "coverage": self.coverage, "name": self.name}
