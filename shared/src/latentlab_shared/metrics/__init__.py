"""Metrics without torch or TensorFlow."""
