"""A light compressor: a pretrained bidirectional encoder, read by k memory queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clara_absa.data_utils.packing import Packed
from clara_absa.model.pooling import stretches


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

    def pass_through(self) -> None:
        """Begin with nothing added: queries leave as they came."""
        last = self.feed[-1]
        assert isinstance(last, nn.Linear)
        for linear in (self.out, last):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

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
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (S, h, ., c / h)

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
        pooled: each query begins with the mean state of its stretch of the text, and the mean word embedding of the
            stretch is passed on beside what is read, at first with the opposite sign: see `backbone_on_encoder`.
        nested: stretches from coarse to fine, see `stretches`.
    """

    def __init__(
        self, encoder: Any, tokens: int, depth: int, width: int, pooled: bool = False, nested: bool = False
    ) -> None:
        super().__init__()
        self.encoder, self.pooled, self.nested = encoder, pooled, nested
        size = int(encoder.config.hidden_size)
        self.queries = nn.Parameter(torch.randn(tokens, size) * 0.5)
        heads = int(encoder.config.num_attention_heads)
        layers = [ReadingLayer(size, heads) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.norm, self.project = nn.LayerNorm(size), nn.Linear(size, width)
        if pooled:
            self.skip = nn.Linear(size, width, bias=False)
            nn.init.eye_(self.skip.weight)
            with torch.no_grad():
                self.skip.weight.neg_()  # a word of a question is not to take itself for the memory
            nn.init.eye_(self.project.weight)
            for layer in layers:  # what the encoder found reaches the memory at once
                layer.pass_through()

    def forward(self, texts: Packed) -> tuple[Tensor, Tensor]:
        """Memory of packed texts, tree by tree, (S * k, d), and the words passed on beside it, (S * k, d), or 0.

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
        read, words = self.queries.expand(len(count), -1, -1), states.new_zeros(())
        if self.pooled:
            read = read + self._means(text, count)
            table = self.encoder.get_input_embeddings()
            spelled = torch.zeros_like(text)
            spelled[real] = table(texts.ids.flatten()[place]).to(text.dtype)
            words = self.skip(self._means(spelled, count)).flatten(0, 1)
        for layer in self.layers:
            read = layer(read, text, real)
        return self.project(self.norm(read)).flatten(0, 1), words

    def _means(self, text: Tensor, length: Tensor) -> Tensor:
        """Mean of each query's stretch of its text, (S, k, c)."""
        texts, tokens = len(text), len(self.queries)
        number = torch.arange(tokens, device=text.device).repeat(texts)
        low, high = stretches(number, torch.full_like(number, tokens), length.repeat_interleave(tokens), self.nested)
        sums = F.pad(text.float().cumsum(1), (0, 0, 1, 0))  # (S, T + 1, c)
        row = torch.arange(texts, device=text.device).repeat_interleave(tokens)
        means = (sums[row, high] - sums[row, low]) / (high - low)[:, None]
        return means.to(text.dtype).view(texts, tokens, -1)
