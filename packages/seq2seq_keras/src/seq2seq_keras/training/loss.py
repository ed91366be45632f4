"""The loss: cross-entropy on logits, of writing and copying together where there is a pointer."""

from __future__ import annotations

from typing import NamedTuple

from keras import ops

from seq2seq_keras.model import Tensor
from seq2seq_keras.model.seq2seq import Decoded

_TINY = 1e-10


class Loss(NamedTuple):
    """Sums over a batch: negative log-likelihood, coverage loss, and the number of tokens they are over."""

    nll: Tensor
    overlap: Tensor
    tokens: Tensor


def token_nll(decoded: Decoded, target: Tensor, source_ext: Tensor, vocabulary_size: int) -> Tensor:
    """-log p of each target word, (B, T).

    With a pointer p(word) = g · softmax(logits)[word] + (1 - g) · the attention on the word's places in the source.
    Only the target's own probability is computed: no distribution over extended ids is ever built.

    Args:
        decoded: what the decoder said.
        target: (B, T) extended ids.
        source_ext: (B, S) extended ids.
        vocabulary_size: V.

    Source: See et al. 2017, equation 9.
    """
    known = ops.cast(target < vocabulary_size, decoded.logits.dtype)
    inside = ops.where(target < vocabulary_size, target, 0)
    chosen = ops.take_along_axis(decoded.logits, inside[:, :, None], axis=-1)[:, :, 0]
    write = chosen - ops.logsumexp(decoded.logits, axis=-1)
    if decoded.gate is None:
        return -write
    same = ops.cast(ops.equal(source_ext[:, None, :], target[:, :, None]), write.dtype)  # (B, T, S)
    copied = ops.sum(decoded.attention * same, axis=-1)
    gate = ops.sigmoid(decoded.gate)
    return -ops.log(gate * ops.exp(write) * known + (1.0 - gate) * copied + _TINY)


def batch_loss(
    decoded: Decoded, target: Tensor, source_ext: Tensor, vocabulary_size: int, mask_padding: bool = True
) -> Loss:
    """Sums of a batch; the seed counted padding (``mask_padding=False``)."""
    nll = token_nll(decoded, target, source_ext, vocabulary_size)
    real = ops.cast(target != 0, nll.dtype)
    counted = real if mask_padding else ops.ones_like(real)
    overlap = ops.zeros((), nll.dtype) if decoded.overlap is None else ops.sum(decoded.overlap * real)
    return Loss(ops.sum(nll * counted), overlap, ops.sum(counted))
