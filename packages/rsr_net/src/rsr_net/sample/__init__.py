"""The embedded default: a seeded generator of learnable, news-like articles, and one article to read."""

from rsr_net.sample.generator import SIZES, demo, generate, write_stories

__all__ = ["SIZES", "demo", "generate", "write_stories"]
