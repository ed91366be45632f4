"""Aspect sentiment from a handful of memory tokens.

The names below are imported when they are first used, so that ``clara-absa --help`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from latentlab_shared.lazy import lazy_names

if TYPE_CHECKING:
    from clara_absa.configs import Aspect, AspectSentimentResult, ClaraConfig, Example
    from clara_absa.data_utils import read_file, read_part
    from clara_absa.evaluation.metrics import evaluate_metrics_pure_python
    from clara_absa.inference import AspectSentiment, Memory
    from clara_absa.logger import LocalLogger
    from clara_absa.model import FastClaraModel
    from clara_absa.training.fit import fit

_HOMES = {
    "configs": ("Aspect", "AspectSentimentResult", "ClaraConfig", "Example"),
    "data_utils": ("read_file", "read_part"),
    "evaluation.metrics": ("evaluate_metrics_pure_python",),
    "inference": ("AspectSentiment", "Memory"),
    "logger": ("LocalLogger",),
    "model": ("FastClaraModel",),
    "training.fit": ("fit",),
}

__all__ = [
    "Aspect",
    "AspectSentiment",
    "AspectSentimentResult",
    "ClaraConfig",
    "Example",
    "FastClaraModel",
    "LocalLogger",
    "Memory",
    "evaluate_metrics_pure_python",
    "fit",
    "read_file",
    "read_part",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
