"""Offline preparation and training."""
