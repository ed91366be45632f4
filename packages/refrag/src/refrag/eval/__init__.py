"""Baselines and measures."""
