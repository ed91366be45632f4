"""Text encoders: from a list of texts to one vector each, with a fingerprint that says what decided the numbers.

``load_encoder`` takes a hub id, a local folder, ``minilm`` (packaged weights), ``tiny`` (no files at all),
``tiny-bart`` (random, for shapes) or a folder saved by ``LsaEncoder``. torch and transformers are imported only when a
network is loaded.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from latentlab_shared._hub import ModelFiles, find_model, sentence_transformer_settings
from latentlab_shared._lexical import (
    CODE_VERSION,
    LsaEncoder,
    TinyEncoder,
    Vectors,
    check_texts,
    unit_rows,
)
from latentlab_shared.devices import choose_device
from latentlab_shared.embeddings import Fingerprint
from latentlab_shared.errors import NeedsExtra, RunFailed, UserError

if TYPE_CHECKING:
    import torch

__all__ = ["LsaEncoder", "TextEncoder", "TinyEncoder", "TransformerEncoder", "load_encoder"]

Pooling = Literal["mean", "first", "max"]
Window = Literal["mean", "truncate", "error"]

_log = logging.getLogger(__name__)

# Texts tokenised and sorted together: long enough for even batches, short enough for any memory.
_CHUNK = 2048
# Their position 0 stands behind the padding index, so two of the embedding's rows are no positions.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl", "data2vec-text")


class TextEncoder(Protocol):
    """What every encoder offers."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides the numbers; two encoders with one fingerprint give the same vectors."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, (N, D) float32, in their order; a blank text has the zero vector."""


def load_encoder(
    name: str | Path,
    *,
    device: str = "auto",
    max_length: int | None = None,
    pooling: Pooling = "mean",
    layer: int = -1,
    window: Window = "mean",
    overlap: int | None = None,
    batch_tokens: int | None = None,
    int8: bool = False,
    normalise: bool | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> TextEncoder:
    """Load an encoder by name.

    Args:
        name: a hub id, a folder with a transformers model or an `LsaEncoder`, ``minilm``, ``tiny`` or ``tiny-bart``.
            Of an encoder-decoder (BART, T5) the encoder half is used. No remote code runs, and only safetensors load.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``. On CUDA the network runs in bfloat16.
        max_length: tokens per window with special tokens; None for what the model was made for.
        pooling: over real tokens, special ones included: their mean, the first token, or the elementwise maximum.
        layer: hidden layer to pool: -1 the last, 0 the embeddings.
        window: texts over ``max_length``: ``mean`` reads them in overlapping windows and pools over all their tokens
            (``first``: the windows' vectors weighted by their tokens), ``truncate`` cuts them and logs how many,
            ``error`` refuses them.
        overlap: tokens that neighbouring windows share as context; each token is pooled in one window only. None for
            32, or a quarter of a short window.
        batch_tokens: padded tokens per batch; None for 2,048 on a CPU and 32,768 elsewhere.
        int8: dynamic quantisation of the linear layers (CPU only): smaller and faster, slightly other vectors.
        normalise: give vectors the length one; None for what the model's folder says (sentence-transformers), else no.
        revision: branch, tag or commit of a hub id.
        local_files_only: never ask the hub; the environment variable HF_HUB_OFFLINE does the same.

    Raises:
        NeedsNetwork: the model is not here and the hub cannot be reached.
        NeedsExtra: torch, transformers or the packaged weights are not installed.
        UserError: an unknown name or device, an unusable folder, or an option that this encoder does not have.
    """
    for option, value, allowed in (("pooling", pooling, get_args(Pooling)), ("window", window, get_args(Window))):
        if value not in allowed:
            raise UserError(f"{value!r} is not one of {', '.join(allowed)}", option)
    is_lsa = name not in ("tiny", "tiny-bart", "minilm") and (Path(name).expanduser() / "lsa.json").is_file()
    if name == "tiny" or is_lsa:
        fixed = {"max_length": max_length is None, "pooling": pooling == "mean", "layer": layer == -1, "int8": not int8}
        fixed |= {"window": window == "mean", "normalise": normalise is None, "revision": revision is None}
        if not all(fixed.values()):
            option = next(option for option, unused in fixed.items() if not unused)
            raise UserError("this encoder has no such option", option, "Leave it out, or choose a transformer")
        return LsaEncoder.load(Path(name).expanduser()) if is_lsa else TinyEncoder()
    settings = _Settings(max_length, pooling, layer, window, overlap, batch_tokens, int8, normalise)
    if name == "tiny-bart":
        return _tiny_bart(settings, _choose_device(device, int8))
    files = find_model(name, revision, local_files_only)
    chosen = _choose_device(device, int8)
    network, tokenizer = _load_network(files, chosen)
    limit, normalised = sentence_transformer_settings(files.folder)
    return TransformerEncoder(network, tokenizer, files, settings, chosen, made_for=limit, made_normalised=normalised)


@dataclass(frozen=True)
class _Settings:
    """The options of `load_encoder` that a network has."""

    max_length: int | None
    pooling: Pooling
    layer: int
    window: Window
    overlap: int | None
    batch_tokens: int | None
    int8: bool
    normalise: bool | None


@dataclass(frozen=True)
class _Piece:
    """One window of one text: its token ids, and the part of them that is pooled here."""

    owner: int
    ids: list[int]
    first: int
    last: int


class TransformerEncoder:
    """A transformer's hidden states, pooled over real tokens; made by `load_encoder`.

    Args:
        network: an encoder that gives ``last_hidden_state`` and, on request, ``hidden_states``.
        tokenizer: its transformers tokenizer.
        files: where they came from.
        settings: see `load_encoder`.
        device: where to run.
        made_for: tokens the model was trained on, if its folder says so.
        made_normalised: whether the model's own vectors have length one.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        tokenizer: Any,
        files: ModelFiles,
        settings: _Settings,
        device: str,
        made_for: int | None = None,
        made_normalised: bool = False,
    ) -> None:
        import torch

        config: Any = network.config
        self.files, self.settings, self.device = files, settings, device
        self.dim = int(config.hidden_size)
        self.normalise = made_normalised if settings.normalise is None else settings.normalise
        self._tokenizer = tokenizer
        self._prefix, self._suffix = _special_tokens(tokenizer)
        self._pad = int(next((p for p in (config.pad_token_id, tokenizer.pad_token_id) if p is not None), 0))
        self.max_length = self._checked_length(config, made_for)
        self._room = self.max_length - len(self._prefix) - len(self._suffix)
        self.overlap = min(32, self._room // 4) if settings.overlap is None else settings.overlap
        if not 0 <= self.overlap < self._room:
            raise UserError(
                f"windows of {self._room} tokens must be longer than their overlap", f"overlap={self.overlap}"
            )
        self.batch_tokens = (
            (2048 if device == "cpu" else 32_768) if settings.batch_tokens is None else settings.batch_tokens
        )
        if self.batch_tokens < 1:
            raise UserError("a batch needs at least one token", f"batch_tokens={self.batch_tokens}")
        layers = int(config.num_hidden_layers)
        if not -layers - 1 <= settings.layer <= layers:
            raise UserError(f"the model has layers 0 to {layers} (or -1 for the last)", f"layer={settings.layer}")
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self._dtype = "int8" if settings.int8 else str(dtype).removeprefix("torch.")
        network = network.to(device=device, dtype=dtype).eval()
        self._network = _quantised(network) if settings.int8 else network

    def _checked_length(self, config: Any, made_for: int | None) -> int:
        """Tokens per window: what was asked for if the model can do it, otherwise what the model was made for."""
        rows = getattr(config, "max_position_embeddings", None)
        positions = (rows - self._pad - 1 if config.model_type in _OFFSET_POSITIONS else rows) if rows else None
        # Tokenizers without a limit say 1e30.
        told = self._tokenizer.model_max_length if self._tokenizer.model_max_length < 1_000_000 else None
        known = [n for n in (positions, told, made_for) if n]
        length = self.settings.max_length or (min(known) if known else 512)
        where, special = f"max_length={length}", len(self._prefix) + len(self._suffix)
        if positions and length > positions:
            raise UserError(f"the model reads at most {positions} tokens", where, "Longer texts are read in windows")
        if length <= special:
            raise UserError(f"no room for text beside {special} special tokens", where)
        return int(length)

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides the numbers; the batch size and a GPU's own rounding do not count."""
        s = self.settings
        return Fingerprint(
            encoder=self.files.name,
            weights_sha256=self.files.weights_sha256,
            revision=self.files.revision,
            tokenizer_sha256=self.files.tokenizer_sha256,
            max_length=self.max_length,
            window=f"{s.window}-overlap-{self.overlap}" if s.window == "mean" else s.window,
            pooling=s.pooling,
            layer=s.layer,
            normalisation="l2" if self.normalise else "none",
            dtype=self._dtype,
            code_version=CODE_VERSION,
        )

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, (N, D) float32, in their order; a blank text has the zero vector.

        Lone surrogates, which no tokenizer takes, are read as "?".

        Raises:
            UserError: ``window="error"`` and a text is longer than ``max_length``.
            RunFailed: the network gave a value that is no number.
            TypeError: ``texts`` is one string, or holds something else than strings.
        """
        texts = check_texts(texts)
        chunks = [self._encode_chunk(texts[at : at + _CHUNK], at) for at in range(0, len(texts), _CHUNK)]
        vectors = np.concatenate(chunks) if chunks else np.zeros((0, self.dim), dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise RunFailed("the network gave values that are not numbers", f"text {bad[0]}", "Check the weights")
        return unit_rows(vectors) if self.normalise else vectors

    def _encode_chunk(self, texts: list[str], offset: int) -> Vectors:
        """Pool every window of some texts into their vectors, (N, D), before normalisation."""
        pieces = self._pieces(texts, offset)
        pieces.sort(key=lambda piece: len(piece.ids))
        maximum = self.settings.pooling == "max"
        pooled = np.full((len(texts), self.dim), -np.inf if maximum else 0.0)
        weights = np.zeros((len(texts), 1))
        for batch in _batches(pieces, self.batch_tokens):
            vectors, counts = self._forward(batch)
            owners = np.array([piece.owner for piece in batch])
            np.add.at(weights, owners, counts)
            if maximum:
                np.maximum.at(pooled, owners, vectors)
            else:
                np.add.at(pooled, owners, vectors * counts)
        blank = weights[:, 0] == 0
        pooled[blank], weights[blank] = 0, 1
        return (pooled if maximum else pooled / weights).astype(np.float32)

    def _pieces(self, texts: list[str], offset: int) -> list[_Piece]:
        """Tokenise texts and cut them into windows; a blank text has none."""
        encoded = self._tokenizer(
            texts, add_special_tokens=False, padding=False, truncation=False, return_attention_mask=False, verbose=False
        )
        room, pieces, cut = self._room, [], 0
        for owner, ids in enumerate(encoded["input_ids"]):
            if not ids or not texts[owner].strip():
                continue
            if len(ids) > room and self.settings.window == "error":
                what, fix = f"{len(ids)} tokens, the limit is {room}", "Use window=mean, or shorten it"
                raise UserError(what, f"text {offset + owner}", fix)
            if self.settings.window == "truncate":
                cut += len(ids) > room
                ids = ids[:room]
            for start, end, first, last in plan_windows(len(ids), room, self.overlap):
                # Special tokens are pooled with every window, as they are with a short text.
                head, tail = len(self._prefix), len(self._suffix)
                left = 0 if first == start else head + first - start
                right = head + end - start + tail if last == end else head + last - start
                pieces.append(_Piece(owner, [*self._prefix, *ids[start:end], *self._suffix], left, right))
        if cut:
            _log.warning("%d of %d texts were cut to %d tokens (window=truncate)", cut, len(texts), self.max_length)
        return pieces

    def _forward(self, batch: list[_Piece]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pooled vectors (B, D) of windows, and the number of tokens (B, 1) in each."""
        import torch

        size = (len(batch), max(len(piece.ids) for piece in batch))
        ids, attend = torch.full(size, self._pad), torch.zeros(size, dtype=torch.long)  # (B, T)
        counted = torch.zeros(size, dtype=torch.bool)
        for row, piece in enumerate(batch):
            ids[row, : len(piece.ids)] = torch.tensor(piece.ids)
            attend[row, : len(piece.ids)] = 1
            counted[row, piece.first : piece.last] = True
        with torch.inference_mode():
            all_layers = self.settings.layer != -1
            out = self._network(
                input_ids=ids.to(self.device), attention_mask=attend.to(self.device), output_hidden_states=all_layers
            )
            hidden = out.hidden_states[self.settings.layer] if all_layers else out.last_hidden_state  # (B, T, D)
            vectors = _pool(hidden.float(), counted.to(self.device), self.settings.pooling)
        return vectors.cpu().numpy(), counted.sum(1, keepdim=True).float().numpy()


def _pool(hidden: torch.Tensor, counted: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool hidden states (B, T, D) over the tokens that ``counted`` (B, T) marks; padding never takes part."""
    if pooling == "first":
        return hidden[:, 0]
    mask = counted[:, :, None]
    if pooling == "max":
        return hidden.masked_fill(~mask, -float("inf")).amax(1)
    return hidden.masked_fill(~mask, 0).sum(1) / mask.sum(1)


def plan_windows(length: int, room: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Cut ``length`` tokens into windows of at most ``room`` that share at least ``overlap`` tokens.

    Returns:
        Per window (start, end, first, last): it reads tokens [start, end) and pools [first, last). Every token is
        pooled once, in the window where it stands farther from an edge. The last window reaches back to be full.
    """
    if length <= room:
        return [(0, length, 0, length)]
    starts = [*range(0, length - room, room - overlap), length - room]
    inner = [(later + start + room) // 2 for start, later in zip(starts, starts[1:], strict=False)]
    return [
        (start, start + room, first, last)
        for start, first, last in zip(starts, [0, *inner], [*inner, length], strict=True)
    ]


def _batches(pieces: list[_Piece], batch_tokens: int) -> Iterator[list[_Piece]]:
    """Group windows, sorted by length, so that rows times the longest stays within the budget (or is one row)."""
    batch: list[_Piece] = []
    for piece in pieces:
        if batch and (len(batch) + 1) * len(piece.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text, found by looking."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    raise UserError("the tokenizer does not put its special tokens around the text", type(tokenizer).__name__)


def _choose_device(device: str, int8: bool) -> str:
    """A device that is there; int8 runs on the CPU only."""
    chosen = choose_device(device, ("cpu",) if int8 else ("cuda", "mps", "cpu"))
    if int8 and chosen != "cpu":
        raise UserError("int8 runs on the CPU only", f"device={device}", "Use cpu, or leave int8 out")
    return chosen


def _load_network(files: ModelFiles, device: str) -> tuple[torch.nn.Module, Any]:
    """Read a network and its tokenizer from a folder; of an encoder-decoder the encoder half."""
    try:
        import torch
        import transformers
        from safetensors import SafetensorError
    except ImportError:
        raise NeedsExtra("transformers", "encoders") from None
    chatter: Any = transformers.logging
    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()  # the report of missing weights is read below, not printed
    chatter.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False
        )
        network, report = transformers.AutoModel.from_pretrained(
            files.folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"the model cannot be loaded ({str(error).splitlines()[0]})", files.folder) from error
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()
    # A pooling head and the decoder are not used here; any other absent weight would be random numbers.
    absent = sorted(key for key in report["missing_keys"] if not key.startswith(("pooler.", "decoder.")))
    if absent:
        raise UserError(f"{len(absent)} weights are missing, the first is {absent[0]}", files.folder)
    if len(tokenizer) > network.get_input_embeddings().num_embeddings:
        raise UserError("the tokenizer has more tokens than the model; they do not belong together", files.folder)
    return (network.get_encoder() if network.config.is_encoder_decoder else network), tokenizer


def _quantised(network: torch.nn.Module) -> torch.nn.Module:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this moves to another package
        quantised: torch.nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            network, {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        )
    return quantised


def _tiny_bart(settings: _Settings, device: str) -> TransformerEncoder:
    """A random one-layer BART encoder over bytes: the shapes and the padding of the real one, no meaning."""
    import torch

    try:
        from transformers import BartConfig, BartModel, ByT5Tokenizer
    except ImportError:
        raise NeedsExtra("transformers", "encoders") from None
    tokenizer = ByT5Tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, max_position_embeddings=128, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BartModel(config).get_encoder()
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().astype("<f4").tobytes())
    files = ModelFiles("tiny-bart", Path(), "1", digest.hexdigest(), "")
    return TransformerEncoder(network, tokenizer, files, settings, device)
