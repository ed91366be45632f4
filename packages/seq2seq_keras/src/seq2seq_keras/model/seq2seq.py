"""The encoder-decoder. Training, decoding and export call the same three methods; nothing is rebuilt for inference."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from seq2seq_keras.config import ModelConfig
from seq2seq_keras.model import Tensor
from seq2seq_keras.model.attention import BahdanauAttention


class Memory(NamedTuple):
    """What the decoder reads of one batch of texts.

    Attributes:
        outputs: encoder outputs, (B, S, U); zero at padding.
        keys: W2 · outputs, (B, S, A).
        mask: True where there is a token, (B, S).
    """

    outputs: Tensor
    keys: Tensor
    mask: Tensor


class State(NamedTuple):
    """What the decoder carries from word to word: h and c, (B, U), and the attention so far, (B, S)."""

    h: Tensor
    c: Tensor
    covered: Tensor


class Decoded(NamedTuple):
    """What the decoder says, T = 1 for one step.

    Attributes:
        logits: over the vocabulary, (B, T, V).
        attention: over the source, (B, T, S).
        gate: logit of writing rather than copying, (B, T); None without a pointer.
        overlap: attention on what was read already, (B, T): the coverage loss; None without coverage.
    """

    logits: Tensor
    attention: Tensor
    gate: Tensor
    overlap: Tensor


@keras.saving.register_keras_serializable(package="seq2seq_keras")
class Seq2Seq(keras.Model):  # type: ignore[misc]  # Keras has no types
    """An LSTM encoder-decoder with additive attention, and a pointer as an option.

    Args:
        vocabulary_size: V.
        config: sizes and options.
        covering: use the coverage weight, which the second training phase learns.

    Source: the seed's architecture; See et al. 2017 for pointer and coverage; Press and Wolf 2017 for tied outputs.
    """

    def __init__(self, vocabulary_size: int, config: ModelConfig | None = None, covering: bool = False) -> None:
        super().__init__(name="seq2seq")
        config = config or ModelConfig()
        if covering and not config.coverage:
            raise ValueError("covering needs a model with coverage")
        self.vocabulary_size, self.settings, self.covering = vocabulary_size, config, covering
        width = config.units
        self.source_embedding = keras.layers.Embedding(vocabulary_size, config.embedding_dim, name="source_embedding")
        self.target_embedding = (
            self.source_embedding
            if config.share_embeddings
            else keras.layers.Embedding(vocabulary_size, config.embedding_dim, name="target_embedding")
        )
        self.encoder = [self._encoder_layer(i + 1) for i in range(config.encoder_layers)]
        self.decoder_lstm = keras.layers.LSTM(
            width, return_sequences=True, return_state=True, dropout=config.dropout, name="decoder_lstm"
        )
        self.attention = BahdanauAttention(width, config.attention == "bahdanau", config.coverage, name="attention")
        if config.tied_output:
            self.bottleneck = keras.layers.Dense(config.embedding_dim, activation="tanh", name="bottleneck")
            self.output_bias = self.add_weight(shape=(vocabulary_size,), initializer="zeros", name="output_bias")
        else:
            self.projection = keras.layers.Dense(vocabulary_size, name="projection")
        if config.pointer:
            self.pointer_gate = keras.layers.Dense(1, name="pointer_gate")
        # The weights exist from the start: attention's two halves are called apart, and tied logits need the embedding.
        self.attention.build((None, None, width), (None, None, width))
        self((ops.ones((1, 2), dtype="int32"), ops.ones((1, 2), dtype="int32")))

    def _encoder_layer(self, number: int) -> Any:
        config = self.settings
        width = config.units // 2 if config.bidirectional else config.units
        layer = keras.layers.LSTM(
            width, return_sequences=True, return_state=True, dropout=config.dropout, name=f"encoder_lstm{number}"
        )
        return keras.layers.Bidirectional(layer, name=f"encoder_both{number}") if config.bidirectional else layer

    def encode(self, source: Tensor, training: bool = False) -> tuple[Memory, State]:
        """Read a batch of texts: (B, S) ids → what the decoder reads, and the state it begins with."""
        mask = ops.not_equal(source, 0) if self.settings.mask else ops.ones_like(source, dtype="bool")
        x = self.source_embedding(source)  # (B, S, E)
        h = c = None
        for layer in self.encoder:
            x, *states = layer(x, mask=mask if self.settings.mask else None, training=training)  # (B, S, U)
            if self.settings.bidirectional:
                h, c = ops.concatenate(states[0::2], -1), ops.concatenate(states[1::2], -1)
            else:
                h, c = states
        x = x * ops.cast(mask, x.dtype)[:, :, None]
        covered = ops.zeros_like(x[:, :, 0])
        return Memory(x, self.attention.keys(x), mask), State(h, c, covered)

    def step(self, ids: Tensor, state: State, memory: Memory) -> tuple[Decoded, State]:
        """One word: (B,) ids of the last words → what comes next, and the state after it."""
        embedded = self.target_embedding(ids)  # (B, E)
        h, (_, c) = self.decoder_lstm.cell(embedded, [state.h, state.c], training=False)
        covered = state.covered if self.covering else None
        context, weights = self.attention.attend(h[:, None, :], memory.keys, memory.outputs, memory.mask, covered)
        decoded = self._decoded(embedded[:, None, :], h[:, None, :], context, weights, None)
        return decoded, State(h, c, state.covered + weights[:, 0, :])

    def decode_teacher_forced(self, target_in: Tensor, state: State, memory: Memory, training: bool = False) -> Decoded:
        """All words of known summaries at once: (B, T) ids, beginning with ``sostok``."""
        embedded = self.target_embedding(target_in)  # (B, T, E)
        hidden, _, _ = self.decoder_lstm(embedded, initial_state=[state.h, state.c], training=training)  # (B, T, U)
        if self.covering:
            context, weights, overlap = self._attend_covering(hidden, memory)
        else:
            context, weights = self.attention.attend(hidden, memory.keys, memory.outputs, memory.mask)
            overlap = None
        return self._decoded(embedded, hidden, context, weights, overlap)

    def _attend_covering(self, hidden: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """With coverage each word's attention depends on the earlier ones': a loop over T."""

        def attend(before: tuple[Tensor, ...], query: Tensor) -> tuple[Tensor, ...]:
            covered = before[0]
            context, weights = self.attention.attend(
                query[:, None, :], memory.keys, memory.outputs, memory.mask, covered
            )
            weights = weights[:, 0, :]
            overlap = ops.sum(ops.minimum(weights, covered), axis=-1)
            return covered + weights, context[:, 0, :], weights, overlap

        nothing = ops.zeros_like(memory.outputs[:, :, 0])  # (B, S)
        start = (nothing, ops.zeros_like(hidden[:, 0, :]), nothing, ops.zeros_like(hidden[:, 0, 0]))
        _, context, weights, overlap = tf.scan(attend, ops.transpose(hidden, (1, 0, 2)), start)
        return ops.transpose(context, (1, 0, 2)), ops.transpose(weights, (1, 0, 2)), ops.transpose(overlap)

    def _decoded(self, embedded: Tensor, hidden: Tensor, context: Tensor, weights: Tensor, overlap: Tensor) -> Decoded:
        joined = ops.concatenate([hidden, context], -1)  # (B, T, 2U)
        if self.settings.tied_output:
            table = ops.transpose(ops.convert_to_tensor(self.target_embedding.embeddings))
            logits = ops.matmul(self.bottleneck(joined), table) + self.output_bias
        else:
            logits = self.projection(joined)
        gate = None
        if self.settings.pointer:
            gate = self.pointer_gate(ops.concatenate([joined, embedded], -1))[:, :, 0]
        return Decoded(logits, weights, gate, overlap)

    def call(self, inputs: tuple[Tensor, Tensor], training: bool = False) -> Tensor:
        """Logits of known summaries: ((B, S), (B, T)) ids → (B, T, V)."""
        source, target_in = inputs
        memory, state = self.encode(source, training)
        return self.decode_teacher_forced(target_in, state, memory, training).logits

    def without_dropout(self) -> Seq2Seq:
        """A copy for inference: Keras draws numbers for dropout even where it is off, which loops and exports feel."""
        if not self.settings.dropout:
            return self
        made = Seq2Seq(self.vocabulary_size, replace(self.settings, dropout=0.0), self.covering)
        for ours, theirs in zip(made.weights, self.weights, strict=True):
            ours.assign(theirs)
        return made

    def get_config(self) -> dict[str, Any]:
        """What ``from_config`` takes; plain values."""
        return {
            "vocabulary_size": self.vocabulary_size,
            "settings": asdict(self.settings),
            "covering": self.covering,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Seq2Seq:
        """Build from what ``get_config`` gave."""
        return cls(config["vocabulary_size"], ModelConfig(**config["settings"]), config["covering"])
