"""Retrieval-augmented generation from compressed context.

The names below are imported when they are first used, so that ``refrag --help`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from latentlab_shared.lazy import lazy_names

if TYPE_CHECKING:
    from refrag.inference.generator import Answer, RefragGenerator
    from refrag.model.config_refrag import RefragConfig
    from refrag.model.documents import Doc, RefragParseError, escape
    from refrag.model.gate import Budget
    from refrag.model.modeling_refrag import RefragModel
    from refrag.model.tokenization_refrag import RefragTokenizer
    from refrag.model.tokenizer.alignment import Alignment, Anchor, align

_HOMES = {
    "inference.generator": ("Answer", "RefragGenerator"),
    "model.config_refrag": ("RefragConfig",),
    "model.documents": ("Doc", "RefragParseError", "escape"),
    "model.gate": ("Budget",),
    "model.modeling_refrag": ("RefragModel",),
    "model.tokenization_refrag": ("RefragTokenizer",),
    "model.tokenizer.alignment": ("Alignment", "Anchor", "align"),
}

__all__ = [
    "Alignment",
    "Anchor",
    "Answer",
    "Budget",
    "Doc",
    "RefragConfig",
    "RefragGenerator",
    "RefragModel",
    "RefragParseError",
    "RefragTokenizer",
    "align",
    "escape",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
