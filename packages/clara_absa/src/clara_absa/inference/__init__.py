"""The object a user holds, and memories as files."""

from clara_absa.inference.memory import Memory
from clara_absa.inference.sentiment import AspectSentiment

__all__ = ["AspectSentiment", "Memory"]
