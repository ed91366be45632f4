"""Greedy search for a batch in one compiled loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from seq2seq_keras.config import DecodeConfig
from seq2seq_keras.data.vocabulary import EOS, PAD, SOS, UNK
from seq2seq_keras.inference.candidates import forbid, forbid_end, log_probabilities, prepare, repeated, word_ids
from seq2seq_keras.model import Tensor
from seq2seq_keras.model.seq2seq import Seq2Seq, State


class Found(NamedTuple):
    """Summaries of a batch, N for each text, the best first.

    Attributes:
        ids: extended ids, (B, N, T); ``EOS`` and then padding at the end.
        scores: log-probability, with the beam's length penalty if it has one, (B, N).
        attention: (B, N, T, S).
        copied: share of each word that was copied rather than written, (B, N, T); 0 without a pointer.
    """

    ids: Tensor
    scores: Tensor
    attention: Tensor
    copied: Tensor


def search_greedy(model: Seq2Seq, source: Tensor, source_ext: Tensor, length: int, config: DecodeConfig) -> Found:
    """The likeliest word at each step.

    Buffers are dense and nothing depends on a static batch size, so that the loop can be exported as it is.

    Args:
        model: the network.
        source: (B, S) ids.
        source_ext: (B, S) extended ids.
        length: T, words at most, the end included.
        config: n-gram rule and least length.
    """
    size, pointer = model.vocabulary_size, model.settings.pointer
    memory, state = model.encode(source)
    candidates = prepare(source_ext, size, pointer)
    batch, width = tf.shape(source)[0], tf.shape(source)[1]
    places = tf.range(length)

    def go_on(step: Tensor, last: Tensor, done: Tensor, *_: Any) -> Tensor:
        return (step < length) & tf.logical_not(tf.reduce_all(done))

    def advance(
        step: Tensor,
        last: Tensor,
        done: Tensor,
        state: State,
        ids: Tensor,
        score: Tensor,
        attention: Tensor,
        copied: Tensor,
    ) -> Any:
        decoded, state = model.step(last, state, memory)
        log_p = log_probabilities(decoded, candidates, size)
        if config.min_length:
            log_p = forbid_end(log_p, step < config.min_length)
        if config.no_repeat_ngram:
            log_p = forbid(log_p, repeated(ids, step, config.no_repeat_ngram), candidates, size)
        column = tf.argmax(log_p, -1, output_type=tf.int32)
        chosen = tf.where(done, PAD, word_ids(column, candidates, size))
        score += tf.where(done, 0.0, tf.gather(log_p, column, batch_dims=1))
        here = (places == step)[None, :]
        live = tf.where(done, 0.0, 1.0)[:, None]
        ids = tf.where(here, chosen[:, None], ids)
        attention = tf.where(here[:, :, None], decoded.attention * live[:, :, None], attention)
        if pointer:
            from_source = tf.cast(column >= size, tf.float32)[:, None]  # other columns hold no word of the source
            copied = tf.where(here, tf.sigmoid(-decoded.gate) * live * from_source, copied)
        known = tf.where(chosen < size, chosen, UNK)
        return step + 1, known, done | (chosen == EOS), state, ids, score, attention, copied

    start = (
        tf.constant(0),
        tf.fill([batch], SOS),
        tf.zeros([batch], tf.bool),
        state,
        tf.zeros(tf.stack([batch, length]), tf.int32),
        tf.zeros([batch]),
        tf.zeros(tf.stack([batch, length, width])),
        tf.zeros(tf.stack([batch, length])),
    )
    _, _, _, _, ids, score, attention, copied = tf.while_loop(go_on, advance, start)
    return Found(ids[:, None], score[:, None], attention[:, None], copied[:, None])
