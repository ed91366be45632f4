"""NRMS: news vectors, a user vector from what the user read, and their dot products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nrms.config import ModelConfig
from nrms.data.types import Batch
from nrms.model.modules.attention import SelfAttention
from nrms.model.modules.encoder import NewsEncoder, UserEncoder
from nrms.model.transformer import TransformerNewsEncoder


class NRMS(nn.Module):
    """Neural news recommendation with multi-head self-attention.

    Args:
        config: the sizes.
        vocabulary_size: V, rows of the word table; row 0 pads.
        word_vectors: pretrained rows, (V, word_dim); random ones without.
        news_encoder: another module of the same form in the news encoder's place.

    Source: the seed's `nrms.py`; Wu et al. 2019, "Neural News Recommendation with Multi-Head Self-Attention".
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        word_vectors: Tensor | None = None,
        news_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.news_encoder = news_encoder or NewsEncoder(config, vocabulary_size, word_vectors)
        self.user_encoder = UserEncoder(config)

    def start_as_mean(self) -> None:
        """Start near the mean of word vectors, and of news vectors: what pretrained vectors know is not lost at first.

        Without it both encoders start as random maps, and a user and the news of the user's taste share no direction.
        """
        for module in self.modules():
            if isinstance(module, (SelfAttention, TransformerNewsEncoder)):
                module.start_as_mean()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode_news(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """News vectors (N, D) of token ids (N, T) with ``lengths`` tokens each, (N,) or (N, views)."""
        vectors: Tensor = self.news_encoder(tokens, lengths)
        return vectors

    def encode_user(self, news_vectors: Tensor, mask: Tensor) -> Tensor:
        """User vectors (B, D) of the vectors of what they read, (B, H, D), True in ``mask`` (B, H) where one is."""
        vectors: Tensor = self.user_encoder(news_vectors, mask)
        return vectors

    def forward(self, batch: Batch) -> Tensor:
        """Scores of the candidates, (B, C): dot products of user and news vectors; -inf where no candidate is.

        Each distinct article of the batch is encoded once.
        """
        vectors = self.encode_news(batch.titles, batch.title_lengths)  # (U, D)
        users = self.encode_user(vectors[batch.history], batch.history_mask)  # (B, D)
        scores = (vectors[batch.candidates] @ users.unsqueeze(-1)).squeeze(-1)  # (B, C)
        return scores.masked_fill(~batch.candidate_mask, -torch.inf)
