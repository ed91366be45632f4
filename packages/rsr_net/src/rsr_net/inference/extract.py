"""Which sentences stand for a vector."""

from __future__ import annotations

import numpy as np

from rsr_net.data.types import Floats


def select_sentences(y: Floats, sentences: Floats, *, max_sentences: int = 3) -> tuple[int, ...]:
    """Temporary greedy selection."""
    target = y / max(float(np.linalg.norm(y)), 1e-12)
    chosen: list[int] = []
    best = -1.0
    while len(chosen) < min(max_sentences, len(sentences)):
        sums = sentences + (sentences[chosen].sum(0) if chosen else 0.0)
        scores = (sums @ target) / np.maximum(np.linalg.norm(sums, axis=1), 1e-12)
        scores[chosen] = -2.0
        pick = int(scores.argmax())
        if chosen and scores[pick] <= best + 0.01:
            break
        best = float(scores[pick])
        chosen.append(pick)
    return tuple(sorted(chosen))
