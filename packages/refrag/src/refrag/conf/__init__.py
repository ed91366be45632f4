"""Configuration groups of ``run.py``: read by Hydra as ``pkg://refrag.conf``."""
