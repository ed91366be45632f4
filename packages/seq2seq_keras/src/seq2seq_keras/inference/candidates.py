"""What may come next: every word of the vocabulary and, with a pointer, every word of the source."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from seq2seq_keras.data.vocabulary import EOS, NEVER_WRITTEN, UNK
from seq2seq_keras.model import Tensor
from seq2seq_keras.model.seq2seq import Decoded

IMPOSSIBLE = -1e9
_TINY = 1e-20


class Candidates(NamedTuple):
    """What stays the same for all steps of a batch; C = V without a pointer, V + S with one.

    Column j < V is the vocabulary's word j; column V + s is the word at place s of the source. A word that stands in
    the source has one live column, that of its first place, so that no word is counted twice.

    Attributes:
        bias: 0 for live columns, very low for others and for what is never written, (B, C); (1, V) without a pointer.
        places: (B, S) extended ids of the source.
        same: 1 where two places of the source hold the same word, (B, S, S); None without a pointer.
    """

    bias: Tensor
    places: Tensor
    same: Tensor


def prepare(source_ext: Tensor, vocabulary_size: int, pointer: bool) -> Candidates:
    """The candidates of a batch of texts, (B, S) extended ids."""
    never = tf.one_hot(tf.constant(NEVER_WRITTEN), vocabulary_size, on_value=IMPOSSIBLE, off_value=0.0)
    bias = tf.reduce_sum(never, 0)[None, :]  # (1, V)
    if not pointer:
        return Candidates(bias, source_ext, None)
    equal = tf.equal(source_ext[:, :, None], source_ext[:, None, :])  # (B, S, S)
    place = tf.range(tf.shape(source_ext)[1])
    earlier = place[None, :] < place[:, None]
    first = tf.logical_not(tf.reduce_any(equal & earlier[None], -1))  # (B, S)
    written = tf.logical_and(first, source_ext > max(NEVER_WRITTEN))
    places = tf.where(written, 0.0, IMPOSSIBLE)
    # Words of the source live in their place's column; what is outside the vocabulary marks a column cut off again.
    marked = mark(tf.minimum(source_ext, vocabulary_size), vocabulary_size)
    in_source = marked & (tf.range(vocabulary_size)[None, :] > max(NEVER_WRITTEN))
    bias = tf.where(in_source, IMPOSSIBLE, bias)
    return Candidates(tf.concat([bias, places], 1), source_ext, tf.cast(equal, tf.float32))


def word_ids(column: Tensor, candidates: Candidates, vocabulary_size: int) -> Tensor:
    """Extended ids of columns, (B,)."""
    if candidates.same is None:
        return column
    place = tf.maximum(column - vocabulary_size, 0)
    return tf.where(column < vocabulary_size, column, tf.gather(candidates.places, place, batch_dims=1))


def mark(ids: Tensor, size: int) -> Tensor:
    """Which of ``size`` columns are named by ``ids`` (B, K); ids of ``size`` are ignored. Returns (B, size) bool."""
    batch, count = tf.shape(ids)[0], tf.shape(ids)[1]
    rows = tf.tile(tf.range(batch)[:, None], [1, count])
    where = tf.stack([tf.reshape(rows, [-1]), tf.reshape(ids, [-1])], -1)
    hits = tf.scatter_nd(where, tf.ones([batch * count]), tf.stack([batch, size + 1]))
    return hits[:, :size] > 0


def log_probabilities(decoded: Decoded, candidates: Candidates, vocabulary_size: int) -> Tensor:
    """Log p of each candidate, (B, C), after one step; what may not come is very low."""
    source_ext = candidates.places
    logits = decoded.logits[:, 0, :]
    write = tf.nn.log_softmax(logits)
    if decoded.gate is None:
        return write + candidates.bias
    gate = decoded.gate  # (B, 1)
    written = write + tf.math.log_sigmoid(gate)
    total = tf.matmul(candidates.same, decoded.attention[:, 0, :, None])[:, :, 0]  # (B, S): all places of the word
    known = tf.where(source_ext < vocabulary_size, source_ext, UNK)
    own = tf.gather(written, known, batch_dims=1)
    own = tf.where(source_ext < vocabulary_size, tf.exp(own), 0.0)
    copied = tf.math.log(own + tf.sigmoid(-gate) * total + _TINY)
    return tf.concat([written, copied], 1) + candidates.bias


def repeated(ids: Tensor, step: Tensor, ngram: int) -> Tensor:
    """The words that would make an n-gram come again.

    Args:
        ids: (B, T) the words so far, ``step`` of them.
        step: how many.
        ngram: n; at least 1.

    Returns:
        (B, T) ids; places that forbid nothing hold -1.
    """
    length = tf.shape(ids)[1]
    if ngram == 1:
        return tf.where(tf.range(length)[None, :] < step, ids, -1)
    # The last n - 1 words, compared with every earlier run of n - 1 words.
    match = tf.ones_like(ids, tf.bool)
    for offset in range(ngram - 1):
        last = tf.gather(ids, tf.maximum(step - (ngram - 1) + offset, 0), axis=1)[:, None]
        match = match & tf.equal(tf.roll(ids, -offset, 1), last)
    follower = tf.roll(ids, -(ngram - 1), 1)
    inside = tf.range(length)[None, :] + (ngram - 1) < step
    return tf.where(match & inside, follower, -1)


def forbid(log_p: Tensor, ids: Tensor, candidates: Candidates, vocabulary_size: int) -> Tensor:
    """Make words impossible: (B, K) extended ids, -1 for none."""
    in_vocabulary = tf.where((ids >= 0) & (ids < vocabulary_size), ids, vocabulary_size)
    hit = mark(in_vocabulary, vocabulary_size)
    if candidates.same is not None:
        again = tf.reduce_any(tf.equal(candidates.places[:, :, None], ids[:, None, :]), -1)
        hit = tf.concat([hit, again], 1)
    return tf.where(hit, log_p + IMPOSSIBLE, log_p)


def forbid_end(log_p: Tensor, early: Tensor) -> Tensor:
    """Make ``EOS`` impossible where ``early``, a scalar bool: the summary is too short yet."""
    column = tf.one_hot(EOS, tf.shape(log_p)[1], on_value=IMPOSSIBLE, off_value=0.0)
    return log_p + tf.where(early, 1.0, 0.0) * column[None, :]
