"""Encoders and decoders of several families, tiny, with random weights."""

from functools import cache
from typing import Any

import torch
from refrag_tokenizers import tokenizer
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from refrag.model.config_refrag import RefragConfig
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import RefragTokenizer

ENCODERS = {"bert": "wordpiece", "roberta": "roberta"}
DECODERS = {"gpt2": "gpt2", "llama": "llama", "phi3": "llama", "qwen2": "gpt2"}


def make_encoder(family: str) -> Any:
    """BERT or RoBERTa of width 8 over its small tokenizer."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    size = len(tokenizer(ENCODERS[family]))
    if family == "bert":
        return BertModel(BertConfig(vocab_size=size, max_position_embeddings=64, **sizes), add_pooling_layer=False)
    config = RobertaConfig(vocab_size=size, max_position_embeddings=66, pad_token_id=1, **sizes)
    return RobertaModel(config, add_pooling_layer=False)


def make_decoder(family: str, room: int = 512) -> Any:
    """A causal model of width 8 over its small tokenizer."""
    words = tokenizer(DECODERS[family])
    common = {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": None}
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=room, **common))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": room, **common}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    if family == "phi3":
        return Phi3ForCausalLM(Phi3Config(original_max_position_embeddings=room, **sizes))
    return Qwen2ForCausalLM(Qwen2Config(**sizes))


@cache
def make_model(encoder: str = "bert", decoder: str = "llama", **options: Any) -> RefragModel:
    """A model of two families, with random weights that make its answers differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RefragConfig(encoder, decoder, **options)
        model = RefragModel(config, make_encoder(encoder), make_decoder(decoder)).eval()
        for parameter in model.decoder.parameters():
            parameter.data.mul_(8).add_(0.05 * torch.randn_like(parameter))
    return model


@cache
def make_tokenizer(encoder: str = "bert", decoder: str = "llama", **options: Any) -> RefragTokenizer:
    """The tokenizer of such a model."""
    sides = tokenizer(ENCODERS[encoder]), tokenizer(DECODERS[decoder])
    return RefragTokenizer(*sides, encoder_pad_token_id=sides[0].pad_token_id, **options)


def slots_of(objective: Any, passage: Any) -> Any:
    """What the decoder reads before a passage's target, (L, D), piece by piece."""
    pieces = [piece if isinstance(piece, tuple) else None for piece in passage.pieces]
    return objective.model.splice(pieces, objective.vectors([passage]))
