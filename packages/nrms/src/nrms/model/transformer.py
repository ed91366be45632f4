"""A pretrained network as news encoder: the mean of its last layer, and a linear map to D."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SCALE = 20.0  # of cosines in a softmax, as sentence encoders are trained with
# What frozen networks gave, by weights and by title: folds, seeds and evaluation in one process share it.
_POOLED: dict[str, dict[bytes, Tensor]] = {}


class TransformerNewsEncoder(nn.Module):
    """Titles to news vectors by a transformer.

    Args:
        backbone: gives ``last_hidden_state``.
        dim: D.
        freeze: do not train the backbone; its pooled output is then kept for every title it has seen.
        dropout: of the pooled output.

    Source: Wu et al. 2021, "Empowering News Recommendation with Pre-trained Language Models" (mean pooling);
        Reimers and Gurevych 2019, "Sentence-BERT" (vectors of length one).
    """

    def __init__(self, backbone: nn.Module, dim: int, freeze: bool, dropout: float) -> None:
        super().__init__()
        self.backbone, self.freeze = backbone, freeze
        config: Any = backbone.config
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(int(config.hidden_size), dim)
        if freeze:
            backbone.requires_grad_(False)
        self._seen: dict[bytes, Tensor] | None = None

    def train(self, mode: bool = True) -> TransformerNewsEncoder:
        """Set training mode; a frozen backbone never drops out."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """News vectors (N, D) of token ids (N, T), each one above the tokenizer's own; zeros without a token."""
        vectors: Tensor = self.project(self.dropout(self.features(tokens, lengths)))
        return vectors * (lengths > 0)[:, None]

    def start_as_mean(self) -> None:
        """Make dot products of news vectors the cosines of the pooled outputs, scaled, as far as the widths allow."""
        nn.init.zeros_(self.project.bias)
        nn.init.orthogonal_(self.project.weight, gain=_SCALE**0.5)

    def features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """What the linear map is given, (N, hidden), of length one; zeros without a token."""
        return self._frozen(tokens, lengths) if self.freeze else self._pool(tokens, lengths)

    def _pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # (N, T)
        # A title without tokens reads its padding, so that no softmax is over nothing; its vector is not used.
        attend = mask | (lengths == 0)[:, None]
        ids = (tokens.long() - 1).clamp(min=0)
        hidden: Tensor = self.backbone(input_ids=ids, attention_mask=attend.long()).last_hidden_state
        weights = mask.to(hidden.dtype)
        return F.normalize((weights[:, None] @ hidden).squeeze(1), dim=1)

    def _frozen(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._pool(tokens, lengths)
        if self._seen is None:  # now, because weights are loaded after the network is made
            self._seen = _POOLED.setdefault(_weights_hash(self.backbone), {})
        counts = lengths.tolist()
        keys = [row[:count].tobytes() for row, count in zip(tokens.int().cpu().numpy(), counts, strict=True)]
        seen = self._seen
        new = {key: row for row, key in enumerate(keys) if key not in seen}
        if new:
            rows = torch.tensor(list(new.values()), device=tokens.device)
            width = max(1, int(lengths[rows].max()))
            with torch.no_grad():
                vectors = self._pool(tokens[rows, :width], lengths[rows]).float().cpu()
            seen.update(zip(new, vectors.clone(), strict=True))
        return torch.stack([seen[key] for key in keys]).to(tokens.device)


def _weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_backbone(folder: str) -> nn.Module:
    """A Hugging Face network from a local folder; safetensors only, no remote code."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    network: nn.Module = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return network


def backbone_from_config(values: dict[str, Any]) -> nn.Module:
    """An untrained network of a saved configuration."""
    from transformers import AutoConfig, AutoModel

    models: Any = AutoModel
    network: nn.Module = models.from_config(AutoConfig.for_model(**values))
    return network
