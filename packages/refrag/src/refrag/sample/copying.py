"""A start for tiny decoders: attention that already looks where copying looks.

Answering from documents is copying: find where the last words stood before, and say what followed. A transformer learns
that late and at once, after thousands of steps; a tiny one on two minutes of a processor would not get there. So its
last two layers begin as the known mechanism (heads that look one position back, then heads that look for positions
whose predecessor is like the present token), and training goes on from there. Nothing about the task is put in: not the
documents, not the names, not the numbers.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads"; in the spirit of Trockman and Kolter 2023,
"Mimetic Initialization of Self-Attention Layers".
"""

from __future__ import annotations

import math
from typing import Any

import torch

ROPE_THETA = 1e6  # leaves most pairs of a small head nearly unturned over a prompt: they can compare content
_SLOW = 0.02  # radians per position, below which a pair counts as such
_SHARP = 6.0  # of the look at the position before: the next best gets a hundredth of its weight


@torch.no_grad()
def start_copying(decoder: Any) -> None:
    """Set the last two layers of a Llama in place; those before them begin at random, as usual.

    Args:
        decoder: with two layers or more, ``attention_bias``, as many key heads as heads, and ``ROPE_THETA``.

    Raises:
        ValueError: for a decoder of another shape.
    """
    config = decoder.config
    width, heads = config.hidden_size, config.num_attention_heads
    if config.num_hidden_layers < 2 or not config.attention_bias or config.num_key_value_heads != heads:
        raise ValueError("this needs two layers, attention_bias, and a key head for each head")
    half = width // heads // 2
    turn = ROPE_THETA ** (-torch.arange(half) / half)  # radians per position of each pair
    first, second = (layer.self_attn for layer in decoder.model.layers[-2:])
    decoder.get_input_embeddings().weight.normal_(0, 1 / math.sqrt(width))
    for attention in (first, second):
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            part.bias.zero_()
    # The first: a query that is the same everywhere, and keys turned back by one position: their product is largest
    # one position back. What stands there is kept beside the token itself, turned by a random rotation.
    first.q_proj.weight.mul_(0.1)
    first.k_proj.weight.mul_(0.1)
    first.q_proj.bias.copy_(_SHARP * torch.cat([torch.ones(half), torch.zeros(half)]).repeat(heads))
    first.k_proj.bias.copy_(_SHARP * torch.cat([turn.cos(), turn.sin()]).repeat(heads))
    beside = torch.linalg.qr(torch.randn(width, width))[0]
    first.v_proj.weight.copy_(torch.eye(width))
    first.o_proj.weight.copy_(beside / math.sqrt(width))
    # The second: the token itself asks, what stood before a position answers; on slowly turning pairs only.
    slow = [pair for pair in range(half) if turn[pair] < _SLOW]
    rows = [2 * half * head + pair + side for head in range(heads) for pair in slow for side in (0, half)]
    compared = torch.zeros(width, width)
    compared[rows] = torch.linalg.qr(torch.randn(width, width))[0][: len(rows)]
    second.q_proj.weight.copy_(compared)
    second.k_proj.weight.copy_(compared @ beside.T)
    second.v_proj.weight.copy_(torch.eye(width))
    second.o_proj.weight.copy_(torch.eye(width) / math.sqrt(width))
