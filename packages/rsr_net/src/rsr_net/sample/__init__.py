"""The embedded default: a seeded generator of learnable, news-like articles, and one article to read."""

from rsr_net.sample.generator import demo, generate, sample_split, write_stories

__all__ = ["demo", "generate", "sample_split", "write_stories"]
