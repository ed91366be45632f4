"""Checkpoints of llama2.c (the TinyStories models) as a Llama and a tokenizer of transformers'.

The file holds seven int32 (dim, hidden, layers, heads, kv heads, vocabulary, positions), then float32: embeddings, then
each kind of weight for all layers together. A negative vocabulary says that the output layer has weights of its own.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentlab_shared.errors import UserError

_HEADER = 7
_UNKNOWN, _BEGIN, _END = 0, 1, 2


def load_llama2c(checkpoint: Path, tokenizer: Path) -> tuple[Any, Any]:
    """A Llama, in evaluation mode, and its tokenizer.

    Args:
        checkpoint: such as ``stories260K.bin``.
        tokenizer: such as ``tok512.bin``.

    Raises:
        UserError: if a file is missing or not of these formats.
    """
    sizes, values = _read(checkpoint)
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = sizes
    config: Any = LlamaConfig  # typed without the options of every model
    model: Any = LlamaForCausalLM(
        config(
            vocab_size=abs(vocabulary),
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=positions,
            rms_norm_eps=1e-5,
            tie_word_embeddings=vocabulary > 0,
            bos_token_id=_BEGIN,
            eos_token_id=_END,
        )
    )
    model.load_state_dict(_weights(sizes, values, checkpoint))
    return model.eval(), _tokenizer(tokenizer, abs(vocabulary))


def _read(path: Path) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    if not path.is_file():
        raise UserError("there is no such file", path, "Give a checkpoint of llama2.c")
    data = path.read_bytes()
    sizes = struct.unpack(f"<{_HEADER}i", data[: 4 * _HEADER]) if len(data) >= 4 * _HEADER else ()
    if not sizes or min(*sizes[:5], sizes[6]) < 1 or sizes[5] == 0 or sizes[0] % sizes[3] or len(data) % 4:
        raise UserError("this is no checkpoint of llama2.c", path)
    return sizes, np.frombuffer(data, "<f4", offset=4 * _HEADER)


def _weights(sizes: tuple[int, ...], values: NDArray[np.float32], path: Path) -> dict[str, Tensor]:
    """The file's weights by transformers' names."""
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = sizes
    kv = dim // heads * kv_heads
    at = 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        count = int(np.prod(shape))
        if at + count > len(values):
            raise UserError("the checkpoint is cut short", path)
        part = torch.from_numpy(values[at : at + count].copy()).reshape(shape)
        at += count
        return part

    embeddings = take(abs(vocabulary), dim)
    shapes = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv, dim),
        "self_attn.v_proj": (kv, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    found = {"model.embed_tokens.weight": embeddings}
    for name, shape in shapes.items():
        for layer, weight in enumerate(take(layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):
                weight = _halves(weight, heads if name.endswith("q_proj") else kv_heads)
            found[f"model.layers.{layer}.{name}.weight"] = weight
    found["model.norm.weight"] = take(dim)
    take(2, positions, dim // heads // 2)  # cosines and sines, which transformers computes
    found["lm_head.weight"] = embeddings if vocabulary > 0 else take(abs(vocabulary), dim)
    return found


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of rotated pairs, side by side in llama2.c, as transformers has them: first halves, then second halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokenizer(path: Path, size: int) -> Any:
    """SentencePiece BPE with byte fallback; pieces of higher score are merged first."""
    if not path.is_file():
        raise UserError("there is no such file", path, "Give the tokenizer of the checkpoint")
    data = path.read_bytes()
    pieces: list[tuple[str, float]] = []
    at = 4  # the longest piece, which nobody needs
    try:
        for _ in range(size):
            score, length = struct.unpack_from("<fi", data, at)
            text = data[at + 8 : at + 8 + length].decode()
            at += 8 + length
            pieces.append((text.replace(" ", "▁"), score))
    except (struct.error, UnicodeDecodeError) as error:
        raise UserError(f"this is no tokenizer of llama2.c with {size} pieces", path) from error
    if at != len(data):
        raise UserError(f"the tokenizer has more than the checkpoint's {size} pieces", path)
    for n, name in ((_UNKNOWN, "<unk>"), (_BEGIN, "<s>"), (_END, "</s>")):
        pieces[n] = (name, 0.0)
    ids = {piece: n for n, (piece, _) in enumerate(pieces)}
    merges = [
        (score, n, piece[:cut], piece[cut:])
        for n, (piece, score) in enumerate(pieces)
        if n > _END and piece not in _BYTES
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1]))
    inner = Tokenizer(
        models.BPE(ids, [(a, b) for _, _, a, b in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    return wrap(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
