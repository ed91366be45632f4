"""Maximal marginal relevance: good articles that do not all say the same."""

from __future__ import annotations

import numpy as np

from nrms.data.types import Floats


def diversify(vectors: Floats, scores: Floats, k: int, diversity: float) -> list[int]:
    """Pick k articles one by one, each time the best of (1 - d) · relevance - d · similarity to what is picked.

    Args:
        vectors: of the articles to choose from, (N, D).
        scores: theirs, (N,); relevance is the score, moved and scaled to [0, 1].
        k: how many to pick.
        diversity: d, in [0, 1]: 0 keeps the order of the scores.

    Returns:
        Places of the picked articles, in the order of picking; of equal values the earlier place first.

    Source: Carbonell and Goldstein 1998; similarity is the cosine.
    """
    span = float(np.ptp(scores)) if len(scores) else 0.0
    relevance = (scores - scores.min(initial=np.inf)) / span if span > 0 else np.ones_like(scores)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    nearest = np.zeros(len(scores), np.float32)  # similarity of each to the most similar of the picked
    value = (1 - diversity) * relevance
    picked: list[int] = []
    left = np.ones(len(scores), np.bool_)
    for _ in range(min(k, len(scores))):
        best = int(np.argmax(np.where(left, value - diversity * nearest, -np.inf)))
        picked.append(best)
        left[best] = False
        similarity = unit @ unit[best]
        nearest = np.maximum(nearest, similarity) if len(picked) > 1 else similarity
    return picked
