"""The seed's two inference models and its per-token loop: slow, plain, and the reference for the compiled one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import numpy as np
from keras import ops

from seq2seq_keras.config import DecodeConfig
from seq2seq_keras.data.types import Ids
from seq2seq_keras.data.vocabulary import EOS, NEVER_WRITTEN, SOS, UNK
from seq2seq_keras.model.seq2seq import Memory, Seq2Seq, State


def make_encoder_model(model: Seq2Seq, source_length: int) -> Any:
    """``Model(encoder_inputs, [encoder_outputs, state_h, state_c])`` over the layers of ``model``, (B, S) ids in."""
    source = keras.Input((source_length,), dtype="int32", name="encoder_inputs")
    memory, state = model.encode(source)
    return keras.Model(source, [memory.outputs, state.h, state.c], name="encoder_model")


def make_decoder_model(model: Seq2Seq, source_length: int) -> Any:
    """The seed's decoder, over the layers of ``model``: one word and the states → probabilities and the next states.

    Inputs are ``[decoder_inputs (B, 1), decoder_hidden_state_input (B, S, U), decoder_state_input_h (B, U),
    decoder_state_input_c (B, U)]``, outputs ``[probabilities (B, 1, V), state_h2, state_c2]``, as the seed lists them.
    The encoder's mask travels in the outputs themselves, which are zero at padding.

    With a pointer there is one input more, ``source_ext`` (B, S), and the probabilities are over V + S words: those
    beyond the vocabulary are the source's unknown ones. With coverage the attention so far comes in and goes out last.
    """
    width = model.settings.units
    last = keras.Input((1,), dtype="int32", name="decoder_inputs")
    outputs = keras.Input((source_length, width), name="decoder_hidden_state_input")
    h = keras.Input((width,), name="decoder_state_input_h")
    c = keras.Input((width,), name="decoder_state_input_c")
    inputs = [last, outputs, h, c]
    mask = ops.any(ops.not_equal(outputs, 0.0), axis=-1)
    if not model.settings.mask:
        mask = ops.ones_like(mask)
    covered = ops.zeros_like(outputs[:, :, 0])
    if model.covering:
        covered = keras.Input((source_length,), name="decoder_covered_input")
    memory = Memory(outputs, model.attention.keys(outputs), mask)
    decoded, state = model.step(last[:, 0], State(h, c, covered), memory)
    written = ops.softmax(decoded.logits)
    if model.settings.pointer:
        ext = keras.Input((source_length,), dtype="int32", name="source_ext")
        inputs.append(ext)
        # Built in full, (B, S, V + S): what the compiled loop avoids, and therefore a check of it.
        extended = model.vocabulary_size + source_length
        gate = ops.sigmoid(decoded.gate)[:, :, None]
        places = ops.cast(ops.equal(ext[:, :, None], ops.arange(extended)[None, None, :]), "float32")
        copied = ops.matmul(decoded.attention, places)  # (B, 1, V + S)
        nothing = ops.zeros_like(ops.cast(ext, "float32"))[:, None, :]
        written = gate * ops.concatenate([written, nothing], -1) + (1.0 - gate) * copied
    found = [written, state.h, state.c]
    if model.covering:
        inputs.append(covered)
        found.append(state.covered)
    return keras.Model(inputs, found, name="decoder_model")


class SeedDecoder:
    """The seed's ``decode_sequence``: one ``predict`` call per word.

    It keeps the rules of the compiled loop (what is never written, least length, no n-gram twice), written out plainly.

    Args:
        model: the network.
        source_length: S; shorter texts are padded.
        length: words at most, the end included.
        config: the rules; ``beam`` is not read.
    """

    def __init__(self, model: Seq2Seq, source_length: int, length: int, config: DecodeConfig) -> None:
        self.model, self.source_length, self.length, self.config = model, source_length, length, config
        self.encoder_model = make_encoder_model(model, source_length)
        self.decoder_model = make_decoder_model(model, source_length)

    def decode_sequence(self, input_seq: Ids, source_ext: Ids | None = None) -> list[int]:
        """Extended ids of one summary, without ``eostok``.

        Args:
            input_seq: (1, at most S) ids.
            source_ext: of the same shape, extended ids; needed with a pointer.

        Raises:
            ValueError: with a pointer and no ``source_ext``.
        """
        if self.model.settings.pointer and source_ext is None:
            raise ValueError("a model with a pointer reads source_ext, too")
        input_seq = self._padded(input_seq)
        source_ext = None if source_ext is None else self._padded(source_ext)
        e_out, e_h, e_c = self.encoder_model.predict(input_seq, verbose=0)
        target_seq = np.array([[SOS]], np.int32)
        covered = np.zeros(input_seq.shape, np.float32)
        found: list[int] = []
        for step in range(self.length):
            inputs = [target_seq, e_out, e_h, e_c]
            inputs += [source_ext] if self.model.settings.pointer else []
            inputs += [covered] if self.model.covering else []
            output_tokens, e_h, e_c, *rest = self.decoder_model.predict(inputs, verbose=0)
            covered = rest[0] if rest else covered
            chosen = self._choose(output_tokens[0, -1], found, step)
            if chosen == EOS:
                break
            found.append(chosen)
            target_seq[0, 0] = chosen if chosen < self.model.vocabulary_size else UNK
        return found

    def _padded(self, ids: Ids) -> Ids:
        return np.pad(ids, ((0, 0), (0, self.source_length - ids.shape[1]))).astype(np.int32)

    def _choose(self, probabilities: Any, found: list[int], step: int) -> int:
        allowed = probabilities.copy()
        allowed[list(NEVER_WRITTEN)] = -1.0
        if step < self.config.min_length:
            allowed[EOS] = -1.0
        n = self.config.no_repeat_ngram
        if n:
            seen = Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))
            tail = tuple(found[len(found) - n + 1 :]) if n > 1 else ()
            if len(tail) == n - 1:
                allowed[[gram[-1] for gram in seen if gram[:-1] == tail]] = -1.0
        return int(np.argmax(allowed))
