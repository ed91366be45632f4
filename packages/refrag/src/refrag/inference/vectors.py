"""Vectors of rows, from the encoder once and from a cache on disk ever after."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlab_shared.embeddings import EmbeddingCache, Fingerprint
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import RefragTokenizer
from refrag.model.tokenizer.loading import tokenizer_identity

_CALL_ROWS = 1 << 14


class RowVectors:
    """Vectors of encoder rows, before the projector: a projector trained anew keeps them.

    Args:
        model: whose encoder reads rows.
        tokenizer: which made them.
        cache: a folder; None keeps nothing. A row is known by its encoder (the hash of its weights), its pooling and
            its tokens.
        dtype: how vectors are kept: ``float32`` to the bit, ``float16`` in half the bytes.

    Attributes:
        fresh: the rows that the encoder had to read in the last call.
    """

    def __init__(
        self, model: RefragModel, tokenizer: RefragTokenizer, cache: str | Path | None = None, dtype: str = "float32"
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.fresh: set[tuple[int, ...]] = set()
        self.cache = None if cache is None else EmbeddingCache(cache, self._fingerprint(), model.encoder_dim, dtype)

    def __call__(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of R rows, (R, E); all that are missing are read in one encoder call."""
        self.fresh = set()
        if not rows or self.cache is None:
            return self._encode([list(row) for row in rows])
        found = self.cache.get_or_compute(
            [list(row) for row in rows], self._encode, batch_size=_CALL_ROWS, progress=False
        )
        return torch.from_numpy(found).to(self.model.device)

    @torch.no_grad()
    def _encode(self, rows: Sequence[Any]) -> Tensor:
        ids, masks = self.tokenizer.pack(rows)
        self.fresh.update(tuple(row) for row in rows)
        return self.model.encode_rows(ids, masks)

    def _fingerprint(self) -> Fingerprint:
        config = self.model.config
        digest = hashlib.sha256()
        for name, value in sorted(self.model.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return Fingerprint(
            encoder=config.encoder_name_or_path,
            weights_sha256=digest.hexdigest(),
            tokenizer_sha256=tokenizer_identity(self.tokenizer.encoder_tokenizer),
            max_length=0,
            window=config.row_format,
            pooling=config.pooling,
        )
