"""NRMS as tensors: no files, no printing."""
