"""Readers: file → Example → ArticleVectors → Batch."""
