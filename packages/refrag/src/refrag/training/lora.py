"""Low-rank adapters for a decoder, by peft: they learn, it does not; at the end they become part of it."""

from __future__ import annotations

from typing import Any

import torch

from latentlab_shared.errors import NeedsExtra


def add_lora(decoder: Any, rank: int, seed: int) -> None:
    """Put an adapter beside every linear layer but the last, in place; only they learn.

    Args:
        decoder: a causal language model.
        rank: of the adapters; they are scaled by 2.
        seed: of their weights.

    Raises:
        NeedsExtra: without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise NeedsExtra("peft", "lora", "latentlab-refrag") from None
    head = decoder.get_output_embeddings()
    linear = (torch.nn.Linear, *([_conv1d()] if _conv1d() is not None else []))
    names = [name for name, m in decoder.named_modules() if isinstance(m, linear) and m is not head]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=names)
    decoder.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, decoder)


def merge_lora(decoder: Any) -> None:
    """Add the adapters to the layers they stand beside, and put these back."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [(n, m) for n, m in decoder.named_modules() if isinstance(m, BaseTunerLayer)]:
        layer.merge()
        home, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(home), last, layer.get_base_layer())


def _conv1d() -> Any:
    """GPT-2's own kind of linear layer."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D
