"""LoRA adapters whose targets are checked against the modules that exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from clara_absa.configs.base_config import LoraSettings
from latentlab_shared.errors import UserError

SEED_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What the seed asks for. Phi-3 has one fused ``qkv_proj``, so there only ``o_proj`` is adapted, without a word."""


@dataclass(frozen=True)
class Target:
    """Linear modules of one name.

    Attributes:
        name: last part of their path, such as ``qkv_proj``.
        modules: how many there are.
        parameters: what a LoRA of the given rank adds to all of them.
    """

    name: str
    modules: int
    parameters: int


def find_targets(backbone: nn.Module, settings: LoraSettings) -> list[Target]:
    """The linear modules of the layers that an adapter will change.

    Args:
        backbone: a causal model of transformers.
        settings: with the names wanted; none for all there are.

    Raises:
        UserError: if a name matches no module.
    """
    found: dict[str, list[nn.Linear]] = {}
    for path, module in backbone.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{path}":
            found.setdefault(path.rpartition(".")[2], []).append(module)
    missing = [name for name in settings.targets if name not in found]
    if missing:
        raise UserError(
            f"no linear module is called {', '.join(missing)}", "lora.targets", f"This backbone has: {', '.join(found)}"
        )
    return [
        Target(name, len(modules), settings.rank * sum(m.in_features + m.out_features for m in modules))
        for name, modules in found.items()
        if not settings.targets or name in settings.targets
    ]


def add_adapters(backbone: Any, settings: LoraSettings) -> tuple[Any, list[Target]]:
    """Freeze a backbone and add its adapter: one, or one for each role.

    Returns:
        The model to use, and what was adapted; the backbone itself and nothing for rank 0.
    """
    if settings.rank == 0:
        return backbone, []
    targets = find_targets(backbone, settings)  # before peft, which takes long to import

    from peft import LoraConfig, get_peft_model

    describe: Any = LoraConfig  # its alpha is typed as a whole number
    made = describe(
        r=settings.rank,
        lora_alpha=settings.alpha,  # peft divides it by r
        lora_dropout=settings.dropout,
        target_modules=[target.name for target in targets],
        task_type="CAUSAL_LM",
    )
    if settings.roles == "shared":
        return get_peft_model(backbone, made), targets
    model = get_peft_model(backbone, made, adapter_name="compress")
    model.add_adapter("answer", made)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # peft freezes the adapter that is not active
            parameter.requires_grad_(True)
    return model, targets
