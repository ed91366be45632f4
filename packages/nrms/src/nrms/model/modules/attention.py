"""Self-attention and additive pooling over sequences of different lengths, of which no padding is computed.

A ragged batch is its rows one after another, shortest sequence first, so that sequences of one length stand together
and attend as one dense block. `AttentivePool.padded` is the same function over padded sequences with a mask: for GPUs,
where a few large kernels win, and for export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Groups = list[tuple[int, int]]


def length_groups(sorted_lengths: list[int]) -> Groups:
    """Runs of equal lengths as (sequences, length), empty sequences left out; the lengths must be ascending."""
    groups: Groups = []
    for length in sorted_lengths:
        if groups and groups[-1][1] == length:
            groups[-1] = (groups[-1][0] + 1, length)
        elif length:
            groups.append((1, length))
    return groups


def split(rows: Tensor, groups: Groups) -> tuple[Tensor, ...]:
    """The rows of each group; the gradient of a slice apiece would be a matrix of zeros as large as ``rows``."""
    parts: tuple[Tensor, ...] = torch.split(rows, [count * length for count, length in groups])
    return parts


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases or output projection, as in the paper.

    Args:
        width: of the input.
        heads: H.
        head_dim: of each head; the output has ``heads * head_dim`` columns.

    Source: Wu et al. 2019, equations 1 to 3; scores are scaled by 1/sqrt(head_dim) (Vaswani et al. 2017).
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        for part in self.qkv.weight.data.chunk(3):  # each of the three is a projection of its own
            nn.init.xavier_uniform_(part)

    def start_as_mean(self) -> None:
        """Make the values the input itself, as far as the widths allow, so that training starts near its mean."""
        values = self.qkv.weight.data.chunk(3)[2]
        nn.init.orthogonal_(values)  # dot products survive a change of width as well as they can
        if values.shape[0] == values.shape[1]:
            nn.init.eye_(values)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """Attend within each sequence of a ragged batch, (S, width) → (S, heads * head_dim)."""
        parts = zip(groups, split(self.qkv(x), groups), strict=True)
        return torch.cat([self._attend(rows.view(*shape, -1), None).flatten(0, 1) for shape, rows in parts])

    def padded(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend among the unmasked places of (N, L, width); ``mask`` (N, L) is True at tokens."""
        # A sequence without tokens attends to its padding instead of to nothing, which would be NaN.
        keys = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        return self._attend(self.qkv(x), keys)

    def looks(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What `padded` multiplies: attention (N, heads, L, L) and values (N, heads, L, head_dim)."""
        q, k, v = self._split(self.qkv(x))
        keys = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        scores = (q @ k.mT / self.head_dim**0.5).masked_fill(~keys, -torch.inf)
        return scores.softmax(-1), v

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (N, heads, L, head_dim) each, of their projections side by side."""
        split = qkv.reshape(*qkv.shape[:2], 3, self.heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _attend(self, qkv: Tensor, keys: Tensor | None) -> Tensor:
        q, k, v = self._split(qkv)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).flatten(2)


class AdditivePooling(nn.Module):
    """A weighted mean of each sequence; the weights are a softmax of q · tanh(W x + b).

    Source: Wu et al. 2019, equations 4 and 5; Bahdanau et al. 2015.
    """

    def __init__(self, width: int, query_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, query_dim)
        self.query = nn.Parameter(torch.empty(query_dim).uniform_(-0.1, 0.1))

    def scores(self, x: Tensor) -> Tensor:
        """What the softmax is taken of, one number per row of x."""
        return torch.tanh(self.project(x)) @ self.query

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """Pool each sequence of a ragged batch, (S, width) → (sequences that are not empty, width)."""
        pooled = []
        for (count, length), scores, rows in zip(groups, split(self.scores(x), groups), split(x, groups), strict=True):
            weights = scores.view(count, 1, length).softmax(-1)
            pooled.append((weights @ rows.view(count, length, -1)).squeeze(1))
        return torch.cat(pooled)

    def weights(self, x: Tensor, mask: Tensor) -> Tensor:
        """The weight of each place of (N, L, width), (N, L): 0 at padding, so all 0 for an empty sequence."""
        scores = self.scores(x).float()
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return weights * mask

    def padded(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool the unmasked places of (N, L, width) to (N, width); an empty sequence gives zeros."""
        return (self.weights(x, mask).to(x.dtype).unsqueeze(1) @ x).squeeze(1)


class AttentivePool(nn.Module):
    """Self-attention, dropout, additive pooling: words → news vector, and news vectors → user vector.

    Args:
        width: of the input.
        heads: attention heads.
        head_dim: width of each; D is their product.
        query_dim: of the pooling.
        dropout: of what self-attention gives.
    """

    def __init__(self, width: int, heads: int, head_dim: int, query_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, head_dim)
        self.dropout = nn.Dropout(dropout)
        self.pooling = AdditivePooling(heads * head_dim, query_dim)

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return self.attention.heads * self.attention.head_dim

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encode a ragged batch.

        Args:
            x: the rows of all sequences, shortest sequence first, (S, width).
            lengths: of the sequences, ascending, (N,), summing to S.

        Returns:
            One vector per sequence, (N, D); zeros for an empty one.
        """
        groups = length_groups(lengths.tolist())
        if not groups:
            return x.new_zeros(len(lengths), self.dim)
        pooled = self.pooling(self.dropout(self.attention(x, groups)), groups)
        empty = len(lengths) - len(pooled)
        return F.pad(pooled, (0, 0, empty, 0)) if empty else pooled

    def parts(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each place of (N, L, width) gives to its sequence's vector.

        The vector is a sum over places i and heads of pooling weight w_i times attention A_ij times value v_j, so it is
        a sum over the places j that are looked at, too.

        Returns:
            Shares: of all looks those that end at each place, the mean of the heads, (N, L), summing to 1; and each
            place's summand of the vector, (N, L, D). Both are 0 at padding.
        """
        attention, values = self.attention.looks(x, mask)
        context = (attention @ values).transpose(1, 2).flatten(2)  # (N, L, D)
        weights = self.pooling.weights(context, mask)  # (N, L)
        looked = (weights[:, None, None, :] @ attention).squeeze(2)  # (N, heads, L)
        summands = (looked[..., None] * values).transpose(1, 2).flatten(2)  # (N, L, D)
        return looked.mean(1), summands

    def padded(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode (N, L, width) with ``mask`` (N, L), True at tokens, to (N, D)."""
        return self.pooling.padded(self.dropout(self.attention.padded(x, mask)), mask)
