"""A model as a folder, and back: JSON and safetensors only.

``clara.json`` says what it is, ``memory.safetensors`` holds the memory tokens (and the light compressor), ``adapter/``
the LoRA adapters as peft writes them, ``backbone/`` the whole backbone where it was trained or made here, and
``tokenizer/`` its tokenizer. A public backbone is named, not copied.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clara_absa.configs.base_config import ClaraConfig, LoraSettings, MemoryConfig
from clara_absa.model.adapters import add_adapters
from clara_absa.model.clara import FastClaraModel
from clara_absa.model.light import LightReader
from latentlab_shared.errors import NeedsNetwork, UserError, shell_word
from latentlab_shared.files import atomic_path, read_json, to_json, write_json, write_text

FORMAT = 1


def load_causal(name: str, precision: str = "auto", quantise: bool = False) -> tuple[Any, Any]:
    """A causal model of transformers and its tokenizer, from a hub id or a folder; no code of theirs is run.

    Args:
        name: a hub id or a folder.
        precision: ``auto`` for the checkpoint's own, or ``float32`` …
        quantise: load in 4 bits (QLoRA); needs a GPU and the extra ``qlora``.

    Raises:
        NeedsNetwork: if it is not here and the hub cannot be reached.
        UserError: if it is no causal model with ``model`` and ``lm_head`` parts.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    if (Path(name).is_absolute() or name.startswith(".")) and not Path(name).is_dir():
        raise UserError("there is no such folder", name, "Give a hub id or a folder with a causal model")
    more: dict[str, Any] = {}
    if quantise:
        from transformers import BitsAndBytesConfig

        settings: Any = BitsAndBytesConfig
        more["quantization_config"] = settings(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.bfloat16,  # FSDP shards storage of the model's own type
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        backbone: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=precision, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False, **more
        )
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        if Path(name).is_dir():
            raise UserError(f"this is no causal model that can be read ({line})", name) from error
        fix = "Download it once with a network, or give a folder; without one use --profile sample"
        raise NeedsNetwork(f"the backbone cannot be loaded ({line})", name, fix) from error
    if not hasattr(getattr(backbone, "model", None), "layers") or backbone.get_output_embeddings() is None:
        raise UserError("this model is not of the Llama, Phi-3 or Qwen kind", name, "It needs model.layers and lm_head")
    return backbone, tokenizer


def quiet() -> None:
    """No progress bars of the libraries and no word of each retry: stderr is for our own lines."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    silence: tuple[Any, Any] = (logging.disable_progress_bar, hub.set_verbosity_error)  # without types
    for call in silence:
        call()


def load_encoder_parts(name: str) -> tuple[Any, Any]:
    """A pretrained encoder and its tokenizer: ``minilm`` from its package (hash checked), a hub id or a folder."""
    from transformers import AutoModel, AutoTokenizer

    from latentlab_shared.encoders import TransformerEncoder, load_encoder

    quiet()
    found = load_encoder(name, device="cpu")
    if not isinstance(found, TransformerEncoder):
        raise UserError("this encoder has no transformer", "memory.encoder", "Use minilm, a hub id or a folder")
    folder = found.files.folder
    # Attention weights without dropout need not be held: the fused kernel computes them, a fifth faster in training.
    encoder: Any = AutoModel.from_pretrained(
        folder, use_safetensors=True, attn_implementation="sdpa", attention_probs_dropout_prob=0.0
    )
    encoder.pooler = None  # its one vector per text is not used, and would never get a gradient
    # Words stay what they are: an aspect that no training sentence names still means something.
    encoder.get_input_embeddings().weight.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    return encoder.float(), tokenizer


def assemble(
    backbone: Any, memory: MemoryConfig, lora: LoraSettings, encoder: Any = None
) -> tuple[FastClaraModel, list[Any]]:
    """A model from its parts, and what its adapter changes."""
    reader = None
    if memory.reader == "encoder":
        width = int(backbone.get_input_embeddings().weight.shape[1])
        fewer = bool(memory.sizes) or memory.ratio is not None  # than are computed may be shown
        reader = LightReader(encoder, memory.tokens, memory.depth, width, memory.start != "tokens", fewer)
    adapted, targets = add_adapters(backbone, lora)
    return FastClaraModel(adapted, memory, reader), targets


def own_parameters(model: FastClaraModel) -> dict[str, torch.Tensor]:
    """What is neither backbone nor adapter: memory tokens, scale, light compressor."""
    return {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if not k.startswith("backbone.")}


def save_model(
    model: FastClaraModel, tokenizer: Any, config: ClaraConfig, folder: Path, encoder_tokenizer: Any
) -> None:
    """Write a model into a folder; see this module's text for the files.

    Raises:
        UserError: if the folder cannot be written.
    """
    from safetensors.torch import save_file

    quiet()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "memory.safetensors") as temporary:
        save_file(own_parameters(model), temporary)
    whole = config.lora.rank == 0 or config.backbone == "tiny"
    if config.lora.rank:
        adapted: Any = model.backbone
        adapted.save_pretrained(folder / "adapter", safe_serialization=True)
    if whole:
        causal = model._causal
        if config.lora.rank:
            causal = _without_adapters(causal)
        causal.save_pretrained(folder / "backbone", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    if encoder_tokenizer is not None:
        encoder_tokenizer.save_pretrained(folder / "encoder_tokenizer")
        reader: Any = model.reader
        write_json(folder / "encoder.json", reader.encoder.config.to_dict())
    if not (folder / "README.md").exists():  # `train` writes one that says more
        write_text(folder / "README.md", _card(config))
    held = {"format": FORMAT, "config": config.to_dict(), "backbone": "backbone" if whole else config.backbone}
    write_json(folder / "clara.json", held)  # last: a folder with it is whole


def _card(config: ClaraConfig) -> str:
    return (
        f"# Aspect sentiment from memory tokens\n\nA model of `clara_absa`: {config.memory.tokens} memory vectors, "
        f"backbone `{config.backbone}`, reader `{config.memory.reader}`.\n\n"
        "```python\nfrom clara_absa import AspectSentiment\n\n"
        'AspectSentiment.from_pretrained("this folder").predict(text, aspects=["food"])\n```\n\n'
        f"Trained with:\n\n```json\n{to_json(config.to_dict())}\n```\n"
    )


def _without_adapters(causal: Any) -> Any:
    """A copy of a causal model that holds the weights below the adapters."""
    from copy import deepcopy

    bare = type(causal)(deepcopy(causal.config))
    state = {
        name.replace(".base_layer.", "."): value for name, value in causal.state_dict().items() if "lora_" not in name
    }
    bare.load_state_dict(state)
    return bare


def find_model(folder: Path) -> Path:
    """The folder of the model itself: that of a run folder, or a saved model's own.

    Raises:
        UserError: if there is none.
    """
    folder = Path(folder).expanduser()
    found = folder / "model" if (folder / "model").is_dir() else folder
    if not (found / "clara.json").is_file():
        fix = "Give a run folder of `clara-absa train`, or a saved model"
        if (folder / "backbone").is_dir():
            fix = f"This backbone has to learn to answer: clara-absa train --backbone {shell_word(folder / 'backbone')}"
        elif (folder / "checkpoints" / "last.safetensors").is_file() and _is_own(folder / "config.json"):
            fix = f"Its training did not end; go on with clara-absa train --resume {shell_word(folder)}"
        raise UserError("there is no model here (clara.json is missing)", found, fix)
    return found


def _is_own(config: Path) -> bool:
    """Whether a run's configuration is of `clara-absa train`: other packages' runs have checkpoints, too."""
    if not config.is_file():
        return False
    held = read_json(config)
    return isinstance(held, dict) and "clara" in held


def load_model(folder: Path, quantise: bool = False) -> tuple[FastClaraModel, Any, ClaraConfig, Any]:
    """Read a run folder's model, or what ``save_model`` wrote.

    Returns:
        Model, tokenizer, configuration, and the tokenizer of the light encoder (or None).

    Raises:
        UserError: if the folder holds no model, or one that is damaged or of a later format.
        NeedsNetwork: if the backbone has to come from a hub that cannot be reached.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    quiet()
    folder = find_model(folder)
    held = read_json(folder / "clara.json")
    if held.get("format") != FORMAT:
        raise UserError(f"format {held.get('format')} is unknown", folder / "clara.json", "Update the package")
    config = ClaraConfig.from_dict(held["config"])
    try:
        if held["backbone"] == "backbone":
            from transformers import AutoModelForCausalLM

            backbone = AutoModelForCausalLM.from_pretrained(folder / "backbone", attn_implementation="sdpa")
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        else:
            backbone, _ = load_causal(held["backbone"], quantise=quantise)
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        encoder = encoder_tokenizer = None
        if config.memory.reader == "encoder":
            described = AutoConfig.for_model(**read_json(folder / "encoder.json"))
            kind: Any = AutoModel
            encoder = kind.from_config(described, attn_implementation="sdpa", add_pooling_layer=False)
            encoder_tokenizer = AutoTokenizer.from_pretrained(folder / "encoder_tokenizer")
        model, _ = assemble(backbone, config.memory, replace(config.lora, rank=0), encoder)
        own = load_file(folder / "memory.safetensors")
        missing, unexpected = model.load_state_dict(own, strict=False)
        missing = [name for name in missing if not name.startswith("backbone.")]
        if missing or unexpected:
            raise UserError(f"{(missing + unexpected)[0]} is missing or unknown", folder / "memory.safetensors")
        if config.lora.rank:
            model.backbone = _with_adapters(backbone, folder / "adapter", config.lora)
            model._roles = [m for m in model.backbone.modules() if "compress" in getattr(m, "lora_A", {})]
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise UserError(f"the model is damaged ({' '.join(str(error).split())[:160]})", folder) from error
    return model.eval(), tokenizer, config, encoder_tokenizer


def _with_adapters(backbone: nn.Module, folder: Path, lora: LoraSettings) -> Any:
    from peft import PeftModel

    if lora.roles == "shared":
        return PeftModel.from_pretrained(backbone, folder)
    model = PeftModel.from_pretrained(backbone, folder / "compress", adapter_name="compress")
    model.load_adapter(folder / "answer", adapter_name="answer")
    return model
