"""The two encoders: words → news vector, news vectors → user vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nrms.config import ModelConfig
from nrms.model.modules.attention import AdditivePooling, AttentivePool


def _wants_padded(tensor: Tensor) -> bool:
    """Whether to compute padding: a GPU is faster so, and an exported graph has no loop over lengths."""
    return tensor.device.type != "cpu" or torch.compiler.is_exporting()


class NewsEncoder(nn.Module):
    """An article's words to its vector: word vectors, self-attention, additive pooling.

    With more views than the title, each view has its own encoder and the views are pooled like words.

    Args:
        config: the sizes.
        vocabulary_size: V, rows of the word table; row 0 pads.
        word_vectors: pretrained rows, (V, word_dim); random ones without.

    Source: Wu et al. 2019, section 2.1; the views are those of NAML (Wu et al. 2019b).
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, word_vectors: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary_size, config.word_dim, padding_idx=0)
        with torch.no_grad():
            if word_vectors is None:
                self.embedding.weight.uniform_(-0.1, 0.1)
            else:
                self.embedding.weight.copy_(word_vectors)
            self.embedding.weight[0] = 0
        self.embedding.weight.requires_grad_(not config.freeze)
        self.dropout = nn.Dropout(config.dropout)
        sizes = (config.heads, config.head_dim, config.query_dim, config.dropout)
        self.views = nn.ModuleDict()
        for view in config.views:
            text = view != "category"
            self.views[view] = (
                AttentivePool(config.word_dim, *sizes) if text else nn.Linear(config.word_dim, config.dim)
            )
        self.pooling = AdditivePooling(config.dim, config.query_dim) if len(config.views) > 1 else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode articles.

        Args:
            tokens: token ids, the columns of all views side by side, (N, T).
            lengths: tokens of the title, (N,), or of each view, (N, views).

        Returns:
            News vectors, (N, D); zeros for an article without tokens.
        """
        lengths = lengths.view(len(lengths), -1)
        vectors, start = [], 0
        for index, (view, width) in enumerate(zip(self.config.views, self.config.widths, strict=True)):
            # Callers may give fewer title columns than the configuration has, where no title needs more.
            width = tokens.shape[1] if len(self.config.views) == 1 else width
            columns, counts = tokens[:, start : start + width], lengths[:, index]
            vectors.append(self._encode_view(self.views[view], columns, counts))
            start += width
        if self.pooling is None:
            return vectors[0]
        return self.pooling.padded(torch.stack(vectors, 1), lengths > 0)  # (N, views, D)

    def _encode_view(self, encoder: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mask = places < lengths[:, None]  # (N, T)
        if isinstance(encoder, nn.Linear):
            words = self.dropout(self.embedding(tokens)) * mask[..., None]
            mean = words.sum(1) / lengths.clamp(min=1)[:, None]
            return torch.tanh(encoder(mean))
        assert isinstance(encoder, AttentivePool)
        if _wants_padded(tokens):
            return encoder.padded(self.dropout(self.embedding(tokens)), mask)
        order = lengths.argsort(stable=True)
        words = self.dropout(self.embedding(tokens[order][mask[order]]))  # (S, word_dim)
        vectors: Tensor = encoder(words, lengths[order])
        return vectors[order.argsort()]


class UserEncoder(nn.Module):
    """The vectors of what a user read to the user's vector: self-attention, additive pooling.

    Args:
        config: the sizes.

    Source: Wu et al. 2019, section 2.2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pool = AttentivePool(config.dim, config.heads, config.head_dim, config.query_dim, config.dropout)
        self.prior = nn.Parameter(torch.zeros(config.dim)) if config.prior else None

    def forward(self, news_vectors: Tensor, mask: Tensor) -> Tensor:
        """Encode users.

        Args:
            news_vectors: of the articles read, (B, H, D).
            mask: True where an article is, (B, H); padding may stand anywhere.

        Returns:
            User vectors, (B, D); for an empty history zeros, or the prior where there is one.
        """
        users = self._pooled(news_vectors, mask)
        return users if self.prior is None else users + self.prior

    def _pooled(self, news_vectors: Tensor, mask: Tensor) -> Tensor:
        if _wants_padded(news_vectors):
            return self.pool.padded(news_vectors, mask)
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        # Gathered through row numbers: copying the sorted (B, H, D) first would move the padding too.
        b, h = mask[order].nonzero(as_tuple=True)
        vectors: Tensor = self.pool(news_vectors[order[b], h], lengths[order])
        return vectors[order.argsort()]

    def parts(self, news_vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each article read gives to the user vector (without the prior).

        Returns:
            The share of attention it gets, (B, H), summing to 1 or all 0 for an empty history; and its summand of the
            vector, (B, H, D).
        """
        return self.pool.parts(news_vectors, mask)
