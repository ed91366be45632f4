"""Readers: file → Example → ArticleVectors → Batch."""

from rsr_net.data.embed import embed_examples
from rsr_net.data.readers import BadRows, read_examples
from rsr_net.data.types import ArticleVectors, Batch, Example

__all__ = ["ArticleVectors", "BadRows", "Batch", "Example", "embed_examples", "read_examples"]
