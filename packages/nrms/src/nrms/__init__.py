"""News recommendation with multi-head self-attention (NRMS), from click log to served answers.

The names below are imported when they are first used, so that ``nrms --help`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from latentlab_shared.lazy import lazy_names

if TYPE_CHECKING:
    from nrms.config import ModelConfig, NrmsConfig, TrainConfig
    from nrms.data.types import Impression, News
    from nrms.inference import Answer, Catalogue, Recommender
    from nrms.model.nrms import NRMS
    from nrms.server.store import Store

_HOMES = {
    "config": ("ModelConfig", "NrmsConfig", "TrainConfig"),
    "data.types": ("Impression", "News"),
    "inference": ("Answer", "Catalogue", "Recommender"),
    "model.nrms": ("NRMS",),
    "server.store": ("Store",),
}

__all__ = [
    "NRMS",
    "Answer",
    "Catalogue",
    "Impression",
    "ModelConfig",
    "News",
    "NrmsConfig",
    "Recommender",
    "Store",
    "TrainConfig",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
