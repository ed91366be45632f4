"""What the benchmarks of time and memory read with: an encoder and a decoder of any size, random weights, documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refrag.model.documents import Doc
    from refrag.model.modeling_refrag import RefragModel
    from refrag.model.tokenization_refrag import RefragTokenizer

QUESTION = "What is the mill count of Selford?"


@dataclass(frozen=True)
class Sizes:
    """Of the models and the documents; by default a decoder of 58 million parameters.

    Attributes:
        context: decoder tokens of all documents.
        width: of the decoder.
        layers: of the decoder.
        encoder_width: of the encoder.
        encoder_layers: of the encoder.
        seed: of the weights and the text.
    """

    context: int = 4096
    width: int = 512
    layers: int = 8
    encoder_width: int = 256
    encoder_layers: int = 4
    seed: int = 0


def random_models(sizes: Sizes) -> tuple[RefragModel, RefragTokenizer]:
    """The benchmark's encoder and decoder, with random weights, and one tokenizer for both."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from refrag.model.config_refrag import RefragConfig
    from refrag.model.modeling_refrag import RefragModel
    from refrag.model.tokenization_refrag import RefragTokenizer
    from refrag.sample.facts import generate
    from refrag.sample.tiny import decoder_tokenizer

    words = decoder_tokenizer([doc.text for example in generate(300, sizes.seed) for doc in example.docs])
    describe: Any = LlamaConfig  # typed without the options of every model
    decoder = describe(
        vocab_size=32_000,
        hidden_size=sizes.width,
        intermediate_size=-(-8 * sizes.width // 3 // 32) * 32,  # as Llama has it: 58 million parameters at 8 x 512
        num_hidden_layers=sizes.layers,
        num_attention_heads=max(1, sizes.width // 64),
        num_key_value_heads=max(1, sizes.width // 64),
        max_position_embeddings=2 * sizes.context + 1024,
        tie_word_embeddings=False,
    )
    describe = BertConfig
    encoder = describe(
        vocab_size=len(words),
        hidden_size=sizes.encoder_width,
        intermediate_size=4 * sizes.encoder_width,
        num_hidden_layers=sizes.encoder_layers,
        num_attention_heads=max(1, sizes.encoder_width // 32),
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.seed)
        config = RefragConfig("random", "random", pooling="mean", projector="mlp")
        model = RefragModel(config, BertModel(encoder, add_pooling_layer=False), LlamaForCausalLM(decoder)).eval()
    return model, RefragTokenizer(words, words, whole_numbers=False)  # chunks of exactly k tokens


def documents(tokenizer: RefragTokenizer, context: int, seed: int, count: int = 1) -> list[Doc]:
    """Documents of ``context`` tokens in all."""
    from refrag.model.documents import Doc
    from refrag.sample.facts import generate

    text = " ".join(doc.text for example in generate(context // 16 + 8, seed) for doc in example.docs)
    chunks = tokenizer.chunks(text, context // count)[:count]
    return [Doc(str(n + 1), text[chunk.start : chunk.end].strip()) for n, chunk in enumerate(chunks)]
