"""Tiny models over vocabularies of their own, made from configurations: no network, no downloads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refrag.model.config_refrag import RefragConfig
from refrag.model.folder import load_decoder, load_encoder
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import RefragTokenizer
from refrag.model.tokenizer.loading import load_tokenizer
from refrag.sample.copying import ROPE_THETA, start_copying

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
        [pairs(Regex(r" ?\d{1,2}"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    return wrap(tokenizer_object=inner, eos_token=END, pad_token=END)


def make_tiny(
    texts: Sequence[str], compression: int = 8, width: int = 64, layers: int = 3, seed: int = 0
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = _tiny_decoder(sides[1], width, layers)
        model = _joined("tiny", "tiny", compression, _tiny_encoder(sides[0], width // 2), decoder)
    return model, RefragTokenizer(*sides, compression, encoder_pad_token_id=0)


def assemble(
    encoder: str, decoder: str, texts: Sequence[str], compression: int = 8, seed: int = 0
) -> tuple[RefragModel, RefragTokenizer]:
    """A new model from parts of any origin, what is between them untrained.

    Args:
        encoder: "tiny" for one made here, half as wide as the decoder, with 2,000 word pieces; "twin" for one made
            here that reads the decoder's own tokens and begins with its embeddings; "minilm" from its package, a folder
            or a hub name.
        decoder: "tiny" for one made here, a folder or a hub name.
        texts: where vocabularies made here come from.
        compression: k.
        seed: of the weights that are made here.

    Raises:
        UserError: if a part cannot be read.
        NeedsNetwork: if it has to come from a hub that cannot be reached.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if decoder == "tiny":
            words = decoder_tokenizer(texts)
            writer = _tiny_decoder(words, 64, 3)
        else:
            words, writer = load_tokenizer(decoder), load_decoder(decoder)
        if encoder == "twin":
            model = _twin(words, writer, decoder, compression)
            return model, RefragTokenizer(words, words, compression, encoder_pad_token_id=words.pad_token_id or 0)
        if encoder == "tiny":
            pieces = encoder_tokenizer(texts, 2000)
            reader = _tiny_encoder(pieces, max(32, int(writer.get_input_embeddings().weight.shape[1]) // 2))
        else:
            pieces, reader = load_tokenizer(encoder), load_encoder(encoder, pooler=False)
        model = _joined(encoder, decoder, compression, reader, writer)
    pad = pieces.pad_token_id
    return model, RefragTokenizer(pieces, words, compression, encoder_pad_token_id=pad or 0)


def _joined(encoder: str, decoder: str, compression: int, reader: Any, writer: Any) -> RefragModel:
    config = RefragConfig(encoder, decoder, compression=compression, pooling="mean", projector="mlp")
    return RefragModel(config, reader, writer)


def _twin(words: Any, writer: Any, decoder: str, compression: int) -> RefragModel:
    """An encoder as wide as the decoder, whose rows begin as the mean of what the decoder reads as tokens.

    The decoder knows its own embeddings before any training, so a row's vector means something to it from the start.
    """
    table = writer.get_input_embeddings().weight
    width = int(table.shape[1])
    reader = _tiny_encoder(words, width, heads=next(n for n in (5, 4, 2, 1) if width % n == 0))
    config = RefragConfig("twin", decoder, compression=compression, pooling="mean", projector="linear")
    model = RefragModel(config, reader, writer)
    line: Any = model.projector
    with torch.no_grad():
        reader.get_input_embeddings().weight.copy_(table[: len(words)])
        reader.embeddings.token_type_embeddings.weight.zero_()
        places: Any = reader.embeddings.position_embeddings
        places.weight.mul_(0.3 * table.norm(dim=1).mean() / places.weight.norm(dim=1).mean())  # tokens before places
        size = table.norm(dim=1).mean() / math.sqrt(width)  # the encoder's states have the norm √width
        line.weight.copy_(size * torch.eye(width))
        line.bias.zero_()
    return model


def _tiny_encoder(tokenizer: Any, width: int, heads: int = 4) -> Any:
    describe: Any = BertConfig  # typed without the options of every model
    return BertModel(
        describe(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            max_position_embeddings=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        ),
        add_pooling_layer=False,
    )


def _tiny_decoder(tokenizer: Any, width: int, layers: int) -> Any:
    end = tokenizer.eos_token_id
    describe: Any = LlamaConfig
    decoder = LlamaForCausalLM(
        describe(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            attention_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    if layers > 1:
        start_copying(decoder)
    return decoder
