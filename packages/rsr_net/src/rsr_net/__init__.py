"""Summarization as iterative refinement of a sentence embedding.

The names below are imported when they are first used, so that ``rsr-net --help`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from latentlab_shared.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
