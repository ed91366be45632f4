"""Small backbones made here: Phi-3 in its architecture, with a vocabulary of their own or a pretrained encoder's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clara_absa.configs.schema import POLARITIES, PROMPTS, Example, Task
from clara_absa.data_utils.prompts import extraction_answer
from latentlab_shared.errors import UserError

END = "<|endoftext|>"
_MATCH = 2**0.5  # gain of the first layer's queries and keys: a word's own vector gets a few times an average weight


def train_tokenizer(examples: Iterable[Example], size: int = 4000) -> Any:
    """A byte-level BPE of the examples' texts, the prompts and the answers; each polarity becomes one token.

    Args:
        examples: where the words come from.
        size: tokens at most.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def lines() -> Iterable[str]:
        for example in examples:
            yield example.text
            yield f"{PROMPTS[Task.EXTRACTION]} {extraction_answer(example.aspects)}"
            yield PROMPTS[Task.RECONSTRUCTION]
            for aspect in example.aspects:
                yield f"{PROMPTS[Task.REASONING].format(aspect=aspect.term)} {aspect.polarity}"
        for polarity in POLARITIES:  # also where the examples know one polarity only
            yield from [f"{polarity} {polarity}"] * 100

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    bpe.train_from_iterator(lines(), trainer)
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    return wrap(tokenizer_object=bpe, eos_token=END, pad_token=END)


def make_backbone(
    tokenizer: Any, width: int = 128, layers: int = 4, heads: int = 4, seed: int = 0, dropout: float = 0.0
) -> Any:
    """A Phi-3 of this size with random weights and tied embeddings.

    Args:
        tokenizer: decides the vocabulary.
        width: d.
        layers: of the model.
        heads: of the attention.
        seed: of the weights.
        dropout: of what each layer adds.
    """
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    end = tokenizer.eos_token_id
    describe: Any = Phi3Config  # typed without the options of every model
    config = describe(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        resid_pdrop=dropout,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Phi3ForCausalLM(config)
        with torch.no_grad():
            for name, weight in backbone.named_parameters():
                if weight.ndim == 2:
                    # 0.02, the library's, suits a width of thousands: here all attention would begin, and long stay,
                    # uniform. What is added to the residual stream is kept small, so that words pass through.
                    share = 0.2 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                    weight.normal_(0, share * weight.shape[1] ** -0.5)
    return backbone


def backbone_on_encoder(tokenizer: Any, encoder: Any, layers: int = 2, seed: int = 0, dropout: float = 0.0) -> Any:
    """A small decoder that shares the vocabulary and the word embeddings of a pretrained encoder.

    The embeddings stay as they are: an aspect that no training sentence names still means something. The first layer
    finds words from the beginning, see `match_words`; thousands of sentences are too few to learn this from nothing.

    Args:
        tokenizer: the encoder's.
        encoder: of BERT's family.
        layers: of the decoder.
        seed: of the other weights.
        dropout: of what each layer of the decoder adds.
    """
    import torch

    words = encoder.get_input_embeddings().weight
    heads = int(encoder.config.num_attention_heads)
    backbone = make_backbone(tokenizer, words.shape[1], layers, heads, seed, dropout)
    table = backbone.get_input_embeddings()
    with torch.no_grad():
        table.weight.copy_(words)
    match_words(backbone, seed)
    table.weight.requires_grad_(False)
    return backbone


def match_words(backbone: Any, seed: int = 0, sign: float = -1.0) -> None:
    """Let the first layer's keys begin as its queries, so that alike words attend to each other at once.

    Mimetic initialization (Trockman and Kolter, 2023). With the other sign the words of a question attend to the
    memory vectors that hold them, and not to themselves, because a memory holds its words with the opposite sign.

    Args:
        backbone: all of whose weights are trained.
        seed: of the queries.
        sign: of the keys.

    Raises:
        UserError: if its queries and keys are not of one shape.
    """
    import torch

    attention = backbone.model.layers[0].self_attn
    if hasattr(attention, "qkv_proj"):
        parts = attention.qkv_proj.weight.chunk(3)
        size = attention.qkv_proj.weight.shape[0]
    else:
        parts = (attention.q_proj.weight, attention.k_proj.weight)
        size = 3 * len(parts[0])
    queries, keys = parts[0], parts[1]
    heads = int(backbone.config.num_attention_heads)
    if queries.shape != keys.shape or size != 3 * heads * attention.head_dim:
        raise UserError("this backbone has fewer keys than queries", "memory.start", "Use memory.start=pooled")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for head in queries.chunk(heads):
            torch.nn.init.orthogonal_(head, gain=_MATCH)
        keys.copy_(sign * queries)
