"""Summarization as iterative refinement of a sentence embedding."""
