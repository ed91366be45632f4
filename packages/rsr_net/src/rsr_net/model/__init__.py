"""The idea as tensors: no files, no printing."""
