"""A light compressor: a pretrained bidirectional encoder, read by k memory queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clara_absa.data_utils.packing import Packed


class ReadingLayer(nn.Module):
    """Memory queries read a text by attention, then each passes through a small network.

    Queries do not see each other, so the first of them are a memory of their own.

    Args:
        width: c, of queries and text states.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.query = nn.LayerNorm(width), nn.Linear(width, width)
        self.key_value, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, queries: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """Read.

        Args:
            queries: (S, k, c).
            text: states of the texts' tokens, (S, T, c).
            real: False for padding, (S, T).

        Returns:
            The queries after reading, (S, k, c).
        """

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (S, h, ., c / h)

        key, value = self.key_value(text).chunk(2, dim=-1)
        read = F.scaled_dot_product_attention(
            split(self.query(self.norm(queries))), split(key), split(value), attn_mask=real[:, None, None]
        )
        queries = queries + self.out(read.transpose(1, 2).flatten(2))
        return queries + self.feed(queries)  # type: ignore[no-any-return]


class LightReader(nn.Module):
    """Memory vectors for a decoder from a pretrained encoder such as MiniLM.

    Args:
        encoder: of BERT's family.
        tokens: k.
        depth: reading layers.
        width: d, of the decoder.
    """

    def __init__(self, encoder: Any, tokens: int, depth: int, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        size = int(encoder.config.hidden_size)
        self.queries = nn.Parameter(torch.randn(tokens, size) * 0.5)
        heads = int(encoder.config.num_attention_heads)
        self.layers = nn.ModuleList(ReadingLayer(size, heads) for _ in range(depth))
        self.norm, self.project = nn.LayerNorm(size), nn.Linear(size, width)

    def forward(self, texts: Packed) -> Tensor:
        """Memory of packed texts, tree by tree, (S * k, d).

        Args:
            texts: trunks of the encoder's tokens, its special ones included; a row's texts do not see each other.
        """
        tree = texts.tree
        mask = (tree[:, :, None] == tree[:, None, :])[:, None]  # (R, 1, L, L)
        states = self.encoder(
            input_ids=texts.ids, attention_mask=mask, position_ids=texts.positions
        ).last_hidden_state.flatten(0, 1)  # (R*L, c)
        flat = tree.flatten()
        count = torch.bincount(flat[flat >= 0])  # (S,)
        place = torch.nonzero(flat >= 0)[:, 0]
        place = place[torch.argsort(flat[place], stable=True)]  # tokens of text 0, then of text 1, …
        real = torch.arange(int(count.max()), device=flat.device)[None] < count[:, None]  # (S, T)
        text = states.new_zeros(*real.shape, states.shape[1])
        text[real] = states[place]
        read = self.queries.expand(len(count), -1, -1)
        for layer in self.layers:
            read = layer(read, text, real)
        return self.project(self.norm(read)).flatten(0, 1)  # type: ignore[no-any-return]
