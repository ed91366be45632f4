"""A rival without vectors: a linear model of the words around an aspect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from clara_absa.configs.schema import Aspect, Example

_WORDS = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_HALF = 2  # words until a word counts half


def features(example: Example, aspect: Aspect) -> dict[str, float]:
    """Words and pairs of words on either side of an aspect, the nearer the more, and the aspect itself.

    A category, which has no place, has all words around it, each counting alike.
    """
    text, term = example.text.lower(), aspect.term.lower()
    found = {f"term {term}": 1.0, **{f"of {word}": 1.0 for word in _WORDS.findall(term)}}
    if aspect.start is None or aspect.end is None:
        return found | {f"near {word}": 1.0 for word in _WORDS.findall(text)}
    sides = {"left": _WORDS.findall(text[: aspect.start])[::-1], "right": _WORDS.findall(text[aspect.end :])}
    for side, words in sides.items():
        for place, word in enumerate(words):
            weight = 1 / (1 + place / _HALF)
            for name in (f"{side} {word}", f"near {word}", *([f"{side} {place} {word}"] if place < 3 else [])):
                found[name] = max(found.get(name, 0.0), weight)
            if 0 < place < 6:
                found.setdefault(f"{side} {words[place - 1]} {word}", weight)
    return found


class NearWords:
    """Multinomial logistic regression on `features`; convex, so that it has no seeds.

    Args:
        train: the sentences to learn from.
    """

    def __init__(self, train: Sequence[Example]) -> None:
        from sklearn.dummy import DummyClassifier
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.linear_model import LogisticRegression

        pairs = [(example, aspect) for example in train for aspect in example.aspects if aspect.polarity]
        labels = [str(aspect.polarity) for _, aspect in pairs]
        self._table: Any = DictVectorizer()
        rows = self._table.fit_transform([features(*pair) for pair in pairs])
        # One polarity alone cannot be told from others.
        self._model: Any = LogisticRegression(C=0.3, max_iter=500) if len(set(labels)) > 1 else DummyClassifier()
        self._model.fit(rows, labels)

    def predict(self, examples: Sequence[Example]) -> list[str]:
        """Polarities of all aspects, in order."""
        rows = [features(example, aspect) for example in examples for aspect in example.aspects if aspect.polarity]
        return [str(found) for found in self._model.predict(self._table.transform(rows))]
