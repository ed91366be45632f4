"""Summarization as iterative refinement of a sentence embedding.

The names below are imported when they are first used, so that ``rsr-net --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsr_net.config import ModelConfig, RsrConfig, TrainConfig
    from rsr_net.data import ArticleVectors, Batch, Example, embed_examples, read_examples
    from rsr_net.inference import Summarizer, Summary
    from rsr_net.model.recursion import RecursionModel, deep_recursion, latent_recursion
    from rsr_net.model.refiner import Refinement, Refiner
    from rsr_net.training import fit, train_refinement

_HOMES = {
    "config": ("ModelConfig", "RsrConfig", "TrainConfig"),
    "data": ("ArticleVectors", "Batch", "Example", "embed_examples", "read_examples"),
    "inference": ("Summarizer", "Summary"),
    "model.recursion": ("RecursionModel", "deep_recursion", "latent_recursion"),
    "model.refiner": ("Refinement", "Refiner"),
    "training": ("fit", "train_refinement"),
}

__all__ = [
    "ArticleVectors",
    "Batch",
    "Example",
    "ModelConfig",
    "RecursionModel",
    "Refinement",
    "Refiner",
    "RsrConfig",
    "Summarizer",
    "Summary",
    "TrainConfig",
    "deep_recursion",
    "embed_examples",
    "fit",
    "latent_recursion",
    "read_examples",
    "train_refinement",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"rsr_net.{home}"), name)
    raise AttributeError(f"module 'rsr_net' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
