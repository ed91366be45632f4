"""Beam search for a batch in one compiled loop."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from seq2seq_keras.config import DecodeConfig
from seq2seq_keras.data.vocabulary import EOS, PAD, SOS, UNK
from seq2seq_keras.inference.candidates import (
    IMPOSSIBLE,
    forbid,
    forbid_end,
    log_probabilities,
    prepare,
    repeated,
    word_ids,
)
from seq2seq_keras.inference.greedy import Found
from seq2seq_keras.model import Tensor
from seq2seq_keras.model.seq2seq import Memory, Seq2Seq, State


def length_penalty(length: Tensor, alpha: float) -> Tensor:
    """((5 + length) / 6) ** alpha, by which log-probabilities are divided. Source: Wu et al. 2016, equation 14."""
    return tf.pow((5.0 + tf.cast(length, tf.float32)) / 6.0, alpha)


def search_beam(model: Seq2Seq, source: Tensor, source_ext: Tensor, length: int, config: DecodeConfig) -> Found:
    """The ``config.beam`` best hypotheses kept at each step.

    A hypothesis that has ended is frozen: it goes on with padding at no cost and keeps its place while its score is
    among the best. Hypotheses differ from one another, because each step's continuations do.

    Args:
        model: the network.
        source: (B, S) ids.
        source_ext: (B, S) extended ids.
        length: T, words at most, the end included.
        config: width, penalty and rules.

    Returns:
        The ``config.n_best`` best of each text. A hypothesis that does not exist (fewer continuations than ``beam``)
        has a score below -1e8.
    """
    size, width = model.vocabulary_size, config.beam
    memory, state = model.encode(source)
    memory = Memory(*(tf.repeat(part, width, 0) for part in memory))
    state = State(*(tf.repeat(part, width, 0) for part in state))
    ext = tf.repeat(source_ext, width, 0)  # (B·W, S)
    candidates = prepare(ext, size, model.settings.pointer)
    batch, places = tf.shape(source)[0], tf.range(length)
    rows = tf.range(batch)[:, None] * width

    def go_on(step: Tensor, last: Tensor, done: Tensor, *_: Any) -> Tensor:
        return (step < length) & tf.logical_not(tf.reduce_all(done))

    def advance(
        step: Tensor,
        last: Tensor,
        done: Tensor,
        state: State,
        ids: Tensor,
        log_p: Tensor,
        words: Tensor,
        attention: Tensor,
        copied: Tensor,
    ) -> Any:
        decoded, state = model.step(last, state, memory)
        step_log_p = log_probabilities(decoded, candidates, size)
        if config.min_length:
            step_log_p = forbid_end(step_log_p, step < config.min_length)
        if config.no_repeat_ngram:
            step_log_p = forbid(step_log_p, repeated(ids, step, config.no_repeat_ngram), candidates, size)
        parent, column, log_p = _choose(step_log_p, log_p, words, done, config, batch)
        flat = tf.reshape(rows + parent, [-1])  # (B·W,) the rows the hypotheses go on from
        frozen = tf.gather(done, flat)
        # Hypotheses of one text share its candidates, so that the row a column came from does not matter.
        chosen = tf.where(frozen, PAD, word_ids(tf.reshape(column, [-1]), candidates, size))
        here = (places == step)[None, :]
        live = tf.where(frozen, 0.0, 1.0)
        ids = tf.where(here, chosen[:, None], tf.gather(ids, flat))
        weights = tf.gather(decoded.attention, flat) * live[:, None, None]
        attention = tf.where(here[:, :, None], weights, tf.gather(attention, flat))
        if model.settings.pointer:
            from_source = tf.cast(tf.reshape(column, [-1]) >= size, tf.float32)  # others hold no word of the source
            share = tf.gather(tf.sigmoid(-decoded.gate), flat) * (live * from_source)[:, None]
            copied = tf.where(here, share, tf.gather(copied, flat))
        words = tf.gather(words, flat) + tf.cast(live, tf.int32)
        state = State(*(tf.gather(part, flat) for part in state))
        known = tf.where(chosen < size, chosen, UNK)
        return step + 1, known, frozen | (chosen == EOS), state, ids, log_p, words, attention, copied

    count = batch * width
    only_first = tf.one_hot(0, width, on_value=0.0, off_value=IMPOSSIBLE * 2)
    start = (
        tf.constant(0),
        tf.fill([count], SOS),
        tf.zeros([count], tf.bool),
        state,
        tf.zeros(tf.stack([count, length]), tf.int32),
        tf.tile(only_first, [batch]),  # all begin alike: one of them is enough
        tf.zeros([count], tf.int32),
        tf.zeros(tf.stack([count, length, tf.shape(source)[1]])),
        tf.zeros(tf.stack([count, length])),
    )
    _, _, _, _, ids, log_p, words, attention, copied = tf.while_loop(go_on, advance, start)
    score = log_p / length_penalty(words, config.length_penalty)
    score = tf.where(log_p < IMPOSSIBLE / 2, IMPOSSIBLE, score)  # whatever a long one's is divided by
    score = tf.reshape(score, [batch, width])
    best, order = tf.math.top_k(score, config.n_best)

    def pick(part: Tensor) -> Tensor:
        shaped = tf.reshape(part, tf.concat([[batch, width], tf.shape(part)[1:]], 0))
        return tf.gather(shaped, order, batch_dims=1)

    return Found(pick(ids), best, pick(attention), pick(copied))


def _choose(
    step_log_p: Tensor, log_p: Tensor, words: Tensor, done: Tensor, config: DecodeConfig, batch: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each text's hypotheses: parents and columns (B, W), and their log p (B·W,)."""
    width = config.beam
    # First the best of each hypothesis, then the best of those: fewer numbers to rank.
    top, column = tf.math.top_k(step_log_p, width)  # (B·W, W)
    freeze = tf.one_hot(0, width, on_value=0.0, off_value=IMPOSSIBLE * 2)[None, :]
    top = tf.where(done[:, None], freeze, top)  # an ended hypothesis has one continuation, which is free
    total = log_p[:, None] + top
    after = words + tf.where(done, 0, 1)
    ranked = total / length_penalty(after, config.length_penalty)[:, None]
    _, place = tf.math.top_k(tf.reshape(ranked, tf.stack([batch, width * width])), width)
    parent = place // width
    chosen = tf.gather(tf.reshape(column, tf.stack([batch, width * width])), place, batch_dims=1)
    kept = tf.gather(tf.reshape(total, tf.stack([batch, width * width])), place, batch_dims=1)
    return parent, chosen, tf.reshape(kept, [-1])
