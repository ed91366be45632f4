"""A new model for a configuration and the sentences it will be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clara_absa.configs.base_config import ClaraConfig
from clara_absa.configs.schema import Example
from clara_absa.data_utils.batches import Batcher
from clara_absa.data_utils.prompts import Prompter
from clara_absa.model.adapters import Target
from clara_absa.model.clara import FastClaraModel
from clara_absa.model.folder import assemble, load_causal, load_encoder_parts


@dataclass(frozen=True)
class Built:
    """A model with what makes its input.

    Attributes:
        model: not trained yet.
        batcher: of its tokenizers.
        targets: what its adapter changes.
    """

    model: FastClaraModel
    batcher: Batcher
    targets: list[Target]


def build(config: ClaraConfig, examples: Sequence[Example], quantise: bool = False) -> Built:
    """Make the model of a configuration.

    Args:
        config: of the run; the backbone "tiny" is made here, with a vocabulary of the examples, or, behind a light
            encoder, with that encoder's vocabulary and word embeddings.
        examples: the training sentences.
        quantise: load a public backbone in 4 bits.
    """
    from clara_absa.sample.backbone import backbone_on_encoder, make_backbone, match_words, train_tokenizer

    seed, tiny = config.train.seed, config.tiny
    encoder = encoder_tokenizer = None
    if config.memory.reader == "encoder":
        encoder, encoder_tokenizer = load_encoder_parts(config.memory.encoder)
    if config.backbone != "tiny":
        backbone, tokenizer = load_causal(config.backbone, quantise=quantise)
        if quantise:
            from peft import prepare_model_for_kbit_training

            prepare: Any = prepare_model_for_kbit_training  # without types
            backbone = prepare(backbone, use_gradient_checkpointing=False)
    elif encoder is not None:
        tokenizer = encoder_tokenizer
        backbone = backbone_on_encoder(tokenizer, encoder, tiny.layers, seed, tiny.dropout)
    else:
        tokenizer = train_tokenizer(examples, tiny.vocabulary)
        backbone = make_backbone(tokenizer, tiny.width, tiny.layers, tiny.heads, seed, tiny.dropout)
    if config.memory.start == "matched" and config.lora.rank == 0 and encoder is None:
        match_words(backbone, seed, sign=1.0 if config.memory.reader == "none" else -1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, targets = assemble(backbone, config.memory, config.lora, encoder)
    if config.train.checkpointing:
        model.checkpointing(True)
    return Built(model, make_batcher(tokenizer, config, encoder_tokenizer), targets)


def make_batcher(tokenizer: Any, config: ClaraConfig, encoder_tokenizer: Any = None) -> Batcher:
    """The batcher of a model's tokenizers."""
    prompter = Prompter(tokenizer, config.memory.max_text_tokens)
    return Batcher(prompter, config.memory, config.train.row_tokens, encoder_tokenizer)
