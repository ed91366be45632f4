"""The embedded default: generated sentences and a small backbone."""
