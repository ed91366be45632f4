"""A model as a folder, and back: JSON and safetensors only.

``refrag.json`` says what it is, ``encoder/`` and ``decoder/`` are models as transformers writes them (with their
tokenizers, where ``RefragGenerator`` wrote the folder), ``refrag.safetensors`` holds the parts between them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from latentlab_shared.config import from_dict, to_dict
from latentlab_shared.errors import NeedsNetwork, UserError
from latentlab_shared.files import atomic_path, disk_errors, read_json, write_json, write_text
from refrag.model.config_refrag import RefragConfig
from refrag.model.hub import hub_token, silence
from refrag.model.tokenizer.loading import llama2c_files, packaged

if TYPE_CHECKING:
    from refrag.model.modeling_refrag import RefragModel

FORMAT = 1
_FILE = "refrag.json"


def load_encoder(name: str | Path, pooler: bool = True) -> Any:
    """An encoder of transformers': ``minilm`` from its package (hash checked), a folder or a hub name.

    Args:
        name: of the model.
        pooler: keep the layer that some encoders put on the first state.

    Raises:
        UserError: if it cannot be read.
        NeedsNetwork: if it has to come from a hub that cannot be reached.
    """
    name = packaged(name)
    from transformers import MODEL_MAPPING, AutoConfig

    kinds: Any = MODEL_MAPPING
    described = _loaded(AutoConfig, name)
    kind = kinds[type(described)]
    has_one = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return _loaded(kind, name, {"add_pooling_layer": pooler} if has_one else {})


def load_decoder(name: str | Path) -> Any:
    """A causal language model of transformers', from a folder (also one of llama2.c's files) or a hub name.

    Raises:
        UserError: if it cannot be read.
        NeedsNetwork: if it has to come from a hub that cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    if (files := llama2c_files(name)) is not None:
        from refrag.model.llama2c import load_llama2c

        return load_llama2c(*files)[0]
    return _loaded(AutoModelForCausalLM, name)


def _loaded(kind: Any, name: str | Path, options: Mapping[str, bool] = MappingProxyType({})) -> Any:
    silence()
    folder = Path(name).expanduser()
    if not folder.is_dir() and (isinstance(name, Path) or str(name).startswith((".", "/", "~"))):
        raise UserError("there is no such folder", name, "Give a folder with a model, or a hub name")
    try:
        if folder.is_dir():
            return kind.from_pretrained(folder, trust_remote_code=False, **options)
        return kind.from_pretrained(str(name), trust_remote_code=False, token=hub_token(), **options)
    except Exception as error:  # a damaged file makes transformers raise anything
        line = " ".join(str(error).split())[:160]
        if folder.is_dir():
            raise UserError(f"no model that can be read ({line})", name) from error
        if not isinstance(error, (OSError, ValueError)):
            raise
        raise NeedsNetwork(f"the model cannot be fetched ({line})", name, "Give a folder with its files") from error


def own_parts(model: RefragModel) -> dict[str, Tensor]:
    """What belongs to neither encoder nor decoder, by name."""
    return {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(("encoder.", "decoder."))
    }


def save_model(model: RefragModel, folder: Path) -> None:
    """Write a model into a folder; ``refrag.json`` comes last, so a folder with it is whole.

    Raises:
        UserError: if the folder cannot be written.
    """
    from safetensors.torch import save_file

    silence()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).unlink(missing_ok=True)
        model.encoder.save_pretrained(folder / "encoder")
        model.decoder.save_pretrained(folder / "decoder")
        with atomic_path(folder / "refrag.safetensors") as temporary:
            save_file(own_parts(model), temporary)
    write_text(folder / "README.md", _card(model))
    write_json(folder / _FILE, {"format": FORMAT, "config": to_dict(model.config)})


def read_model_config(folder: Path) -> RefragConfig:
    """What ``save_model`` wrote of a model's settings, without its weights.

    Raises:
        UserError: if there is no model in the folder, or one of a later format.
    """
    if not (folder / _FILE).is_file():
        raise UserError(f"there is no model here ({_FILE} is missing)", folder, "Give a run folder or a saved model")
    held = read_json(folder / _FILE)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise UserError("a format that is unknown", folder / _FILE, "Update the package")
    return from_dict(RefragConfig, held.get("config", {}), folder / _FILE)


def load_model(folder: Path) -> RefragModel:
    """Read what ``save_model`` wrote, in evaluation mode.

    Raises:
        UserError: if there is no model in the folder, or one that is damaged or of a later format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from refrag.model.modeling_refrag import RefragModel

    config = read_model_config(folder)
    try:
        encoder = load_encoder(folder / "encoder", config.pooling == "pooler")
        model = RefragModel(config, encoder, load_decoder(folder / "decoder"))
        own = load_file(folder / "refrag.safetensors")
        missing, unexpected = model.load_state_dict(own, strict=False)
        wrong = [*(name for name in missing if not name.startswith(("encoder.", "decoder."))), *unexpected]
        if wrong:
            raise UserError(f"{wrong[0]} is missing or unknown", folder / "refrag.safetensors")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"the model is damaged ({' '.join(str(error).split())[:160]})", folder) from error
    return model.eval()


def _card(model: RefragModel) -> str:
    config = model.config
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in to_dict(config).items())
    return (
        "---\nlibrary_name: refrag\n---\n\n# Answers from compressed context\n\n"
        f"Documents are read by `{config.encoder_name_or_path}`, {config.compression} tokens to a vector; a projector "
        f"carries the vectors into the space of `{config.decoder_name_or_path}`, which answers.\n\n"
        f"| setting | value |\n|---|---|\n{rows}\n\n"
        '```python\nfrom refrag import RefragModel\n\nmodel = RefragModel.from_pretrained("this folder")\n```\n'
    )
