"""A model on disk: ``model.safetensors``, ``config.json``, ``vocabulary.json``, and the id that the three decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab_shared.config import from_dict, to_dict
from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path, disk_errors, read_json, write_json
from nrms.config import ModelConfig
from nrms.data.tokens import tokenise
from nrms.data.types import News
from nrms.data.vocabulary import Vocabulary, load_vocabulary, save_vocabulary, vocabulary_hash
from nrms.model.device import own_device
from nrms.model.nrms import NRMS
from nrms.model.seed import read_checkpoint

WEIGHTS_FILE, CONFIG_FILE, BACKBONE_FILE = "model.safetensors", "config.json", "backbone.json"
FORMAT = 1


@dataclass(frozen=True)
class LoadedModel:
    """A model with what it needs to read text.

    Attributes:
        model: the network.
        vocabulary: whose ids it reads.
        model_id: SHA-256 of weights, configuration and vocabulary; vectors of different ids cannot be compared.
    """

    model: NRMS
    vocabulary: Vocabulary
    model_id: str

    @property
    def config(self) -> ModelConfig:
        """The sizes."""
        return self.model.config

    @torch.inference_mode()
    def encode_articles(self, news: Sequence[News], batch_size: int = 512) -> Tensor:
        """News vectors of articles, (N, D) float32 on the CPU; zeros for one without a token."""
        self.model.eval()
        tokens, lengths = tokenise(news, self.vocabulary, self.config)
        device, parts = self.model.device, [torch.zeros(0, self.config.dim)]
        for at in range(0, len(news), batch_size):
            part, counts = (torch.from_numpy(np.ascontiguousarray(a[at : at + batch_size])) for a in (tokens, lengths))
            parts.append(self.model.encode_news(part.to(device), counts.to(device)).float().cpu())
        return torch.cat(parts)

    def encode_titles(self, titles: Sequence[str], batch_size: int = 512) -> Tensor:
        """News vectors of titles, (N, D)."""
        return self.encode_articles([News("", title) for title in titles], batch_size)


def save_model(folder: Path, model: NRMS, vocabulary: Vocabulary) -> str:
    """Write a model folder; returns the model id.

    Raises:
        UserError: without permission to write.
    """
    from safetensors.torch import save_file

    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    save_vocabulary(folder, vocabulary)
    backbone: Any = getattr(model.news_encoder, "backbone", None)
    if backbone is not None:
        write_json(folder / BACKBONE_FILE, backbone.config.to_dict())
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "vocabulary_size": len(vocabulary), **to_dict(model.config)})
    return _model_id(weights, model.config, vocabulary)


def load_model_dir(folder: Path, device: str = "cpu") -> LoadedModel:
    """Load a model folder, or the best checkpoint of a run folder, ready to be used.

    Args:
        folder: the folder; or a ``.pt`` file of the seed's form, beside ``config.json`` and ``vocabulary.json``.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        UserError: if a file is missing, damaged, or does not fit the others.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder, place = Path(folder), own_device(device)
    home = folder.parent if folder.suffix == ".pt" else _model_home(folder)
    vocabulary = load_vocabulary(home)
    values: dict[str, Any] = read_json(home / CONFIG_FILE)
    where = home / CONFIG_FILE
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise UserError("not the configuration of an NRMS model of this version", where)
    if values.pop("vocabulary_size", None) != len(vocabulary):
        raise UserError("the vocabulary is not the one the model was saved with", home, "Save the model again")
    config = from_dict(ModelConfig, values, where)
    try:
        weights = read_checkpoint(folder) if folder.suffix == ".pt" else load_file(home / WEIGHTS_FILE)
    except FileNotFoundError:
        raise UserError("there is no such file", home / WEIGHTS_FILE, "Give the folder that `train` wrote") from None
    except SafetensorError as error:
        raise UserError(f"the weights cannot be read ({error})", home / WEIGHTS_FILE) from None
    if broken := next((name for name, value in weights.items() if not value.isfinite().all()), None):
        raise UserError(f"{broken} holds values that are not numbers", home / WEIGHTS_FILE, "Train again")
    model = _untrained(config, vocabulary, home)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the configuration ({error})", home / WEIGHTS_FILE) from None
    return LoadedModel(model.to(place).eval(), vocabulary, _model_id(weights, config, vocabulary))


def _untrained(config: ModelConfig, vocabulary: Vocabulary, home: Path) -> NRMS:
    """The network of a saved configuration."""
    if config.encoder == "words":
        return NRMS(config, len(vocabulary))
    from nrms.model.transformer import TransformerNewsEncoder, backbone_from_config

    backbone = backbone_from_config(read_json(home / BACKBONE_FILE))
    return NRMS(
        config,
        len(vocabulary),
        news_encoder=TransformerNewsEncoder(backbone, config.dim, config.freeze, config.dropout),
    )


def _model_home(folder: Path) -> Path:
    """The folder with the weights: the given one, or a run's best or last checkpoint."""
    if not folder.is_dir():
        raise UserError("there is no such model folder", folder, "Give the folder that `train` wrote")
    for home in (folder, folder / "checkpoints" / "best", folder / "checkpoints" / "last"):
        if (home / WEIGHTS_FILE).is_file():
            return home
    raise UserError(f"holds no model ({WEIGHTS_FILE} is missing)", folder, "Give the folder that `train` wrote")


def _model_id(weights: dict[str, Tensor], config: ModelConfig, vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256(vocabulary_hash(vocabulary).encode())
    digest.update(json.dumps(to_dict(config), sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
