"""Small things that several tests build."""

import torch

from clara_absa.configs import ClaraConfig, LoraSettings, MemoryConfig
from clara_absa.data_utils.batches import Batcher
from clara_absa.data_utils.prompts import Prompter
from clara_absa.model import FastClaraModel
from clara_absa.sample.backbone import make_backbone, train_tokenizer
from clara_absa.sample.generator import generate

EXAMPLES = generate(12, seed=5)
TOKENIZER = train_tokenizer(EXAMPLES, 400)


def tiny(memory: MemoryConfig | None = None, lora: LoraSettings | None = None, *, layers: int = 2, seed: int = 0):
    """A model of width 16 with its batcher."""
    from clara_absa.model.adapters import add_adapters

    memory = memory or MemoryConfig(tokens=4)
    torch.manual_seed(seed)
    backbone = make_backbone(TOKENIZER, 16, layers, 2, seed)
    if lora is not None:
        backbone, _ = add_adapters(backbone, lora)
    model = FastClaraModel(backbone, memory)
    # Initial weights are so small that a leak would hardly show.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "memory_tokens" not in name:
                parameter.normal_(0, 0.2)
    return model.eval(), Batcher(Prompter(TOKENIZER), memory, row_tokens=128)


__all__ = ["EXAMPLES", "TOKENIZER", "ClaraConfig", "tiny"]
