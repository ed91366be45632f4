"""Decoders that begin as copiers: what they do before and after a few steps."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from refrag.sample.copying import ROPE_THETA, start_copying

VOCABULARY = 300


def made(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "attention_bias": True, "tie_word_embeddings": True}
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **options}, rope_parameters=rope))


def repeated(draw):
    """Random tokens, some others, and the first again: only copying can foretell the end."""
    first, other = (torch.randint(VOCABULARY, (16, n), generator=draw) for n in (16, 5))
    return torch.cat([first, other, first], 1)


def loss_of(decoder, ids):
    logits = decoder(input_ids=ids).logits[:, 21:-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 22:].flatten()), (
        logits.argmax(-1) == ids[:, 22:]
    ).float().mean()


def test_the_first_head_looks_one_position_back():
    decoder = made(attn_implementation="eager")
    start_copying(decoder)
    ids = torch.randint(VOCABULARY, (2, 12))
    with torch.no_grad():
        looked = decoder(input_ids=ids, output_attentions=True).attentions[0]  # (B, H, T, T)
    back = torch.diagonal(looked, -1, -2, -1)
    assert float(back[..., 1:].min()) > 0.8


def test_copying_is_learned_in_a_few_steps_and_not_without():
    """After sixty steps on tokens that never come again, a start as usual is still at the level of chance."""
    right = {}
    for name in ("copying", "usual"):
        decoder, draw = made(), torch.Generator().manual_seed(1)
        if name == "copying":
            start_copying(decoder)
        optimiser = torch.optim.AdamW(decoder.parameters(), lr=4e-3, betas=(0.9, 0.98))
        for _ in range(60):
            loss, _ = loss_of(decoder, repeated(draw))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            right[name] = float(loss_of(decoder, repeated(draw))[1])
    assert right["copying"] > 0.7 and right["usual"] < 0.2


@pytest.mark.parametrize("options", [{"num_hidden_layers": 1}, {"attention_bias": False}, {"num_key_value_heads": 1}])
def test_other_shapes_are_refused(options):
    with pytest.raises(ValueError, match="this needs"):
        start_copying(made(**options))
