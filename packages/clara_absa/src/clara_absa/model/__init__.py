"""The idea as tensors: compress, answer, one gradient through both."""

from clara_absa.model.clara import FastClaraModel, LossSums

__all__ = ["FastClaraModel", "LossSums"]
