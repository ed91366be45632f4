"""Tiny models over vocabularies of their own, made from configurations: no network, no downloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refrag.model.config_refrag import RefragConfig
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import RefragTokenizer

END = "<|end|>"


def encoder_tokenizer(texts: Sequence[str], size: int = 400) -> Any:
    """WordPiece, lower-cased, single digits."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    inner.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    return wrap(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def decoder_tokenizer(texts: Sequence[str], size: int = 768) -> Any:
    """Byte-level BPE; digits in pairs, so that a number is few tokens and few of them are the same."""
    inner = Tokenizer(models.BPE())
    pairs: Any = pre_tokenizers.Split
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pairs(Regex(r"\d{1,2}"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    return wrap(tokenizer_object=inner, eos_token=END, pad_token=END)


def make_tiny(
    texts: Sequence[str], compression: int = 8, width: int = 96, layers: int = 3, seed: int = 0
) -> tuple[RefragModel, RefragTokenizer]:
    """A BERT of two layers beside a Llama of ``layers``, with random weights.

    Args:
        texts: where the vocabularies come from.
        compression: k.
        width: D of the decoder; the encoder is half as wide.
        layers: of the decoder.
        seed: of the weights.
    """
    sides = encoder_tokenizer(texts), decoder_tokenizer(texts)
    narrow = width // 2
    end = sides[1].eos_token_id
    describe: Any = BertConfig  # typed without the options of every model
    encoder = describe(
        vocab_size=len(sides[0]),
        hidden_size=narrow,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * narrow,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    describe = LlamaConfig
    decoder = describe(
        vocab_size=len(sides[1]),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    config = RefragConfig("tiny", "tiny", compression=compression, pooling="mean", projector="mlp")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RefragModel(config, BertModel(encoder, add_pooling_layer=False), LlamaForCausalLM(decoder))
    return model, RefragTokenizer(*sides, compression, encoder_pad_token_id=0)
