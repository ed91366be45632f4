"""Every number and every type of the system."""

from clara_absa.configs.base_config import ClaraConfig, LoraSettings, LossConfig, MemoryConfig, TinyConfig, TrainConfig
from clara_absa.configs.schema import POLARITIES, Aspect, AspectSentimentResult, Example, Polarity, Task

__all__ = [
    "POLARITIES",
    "Aspect",
    "AspectSentimentResult",
    "ClaraConfig",
    "Example",
    "LoraSettings",
    "LossConfig",
    "MemoryConfig",
    "Polarity",
    "Task",
    "TinyConfig",
    "TrainConfig",
]
