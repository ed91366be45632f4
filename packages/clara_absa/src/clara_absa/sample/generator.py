"""Restaurant-like sentences from a seed: two or three aspects of different polarity, so that the context is needed.

Opinions fit their aspects, as in real reviews: a waiter is rude, a soup is bland. Which opinion a sentence holds, and
so an aspect's polarity, is said by the sentence alone. A look-up of the term knows nothing: terms are drawn
independently of polarities. The words of a neutral clause fit any aspect.
"""

from __future__ import annotations

import random

from clara_absa.configs.schema import POLARITIES, Aspect, Example, Polarity

# Terms of a kind, with what is said well and ill of it.
_KINDS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (("food", "pizza", "pasta", "soup"), ("delicious", "tasty", "fresh"), ("bland", "greasy", "undercooked")),
    (("service", "waiter", "staff", "hostess"), ("friendly", "attentive", "helpful"), ("rude", "slow", "careless")),
    (("price", "bill", "fee", "tab"), ("fair", "reasonable", "modest"), ("steep", "outrageous", "excessive")),
    (("terrace", "music", "decor", "view"), ("charming", "cozy", "lovely"), ("noisy", "shabby", "gloomy")),
)
_NEUTRAL = ("the {a} was as usual", "the {a} was as described", "we asked about the {a}", "there is a {a}")
_JOINS = (", but ", ", while ", "; ", ", and ", ", although ")
_OPENINGS = ("", "", "Last night ", "To be fair, ")
SIZES = {"train": 2000, "val": 150, "test": 150}


def generate(count: int, seed: int = 0) -> list[Example]:
    """Sentences with two or three aspects, at least two polarities in each.

    Args:
        count: sentences.
        seed: equal seeds give equal sentences.
    """
    rng = random.Random(f"clara-absa {seed}")
    return [_sentence(rng, f"sample:{seed}:{number}") for number in range(count)]


def sample_part(part: str, seed: int = 0, limit: int | None = None) -> list[Example]:
    """A part of the generated data set; the parts share no sentence's random numbers."""
    return generate(min(SIZES[part], limit or SIZES[part]), seed=3 * seed + list(SIZES).index(part))


def demo() -> Example:
    """The built-in example."""
    text = "The pasta was delicious, but the waiter was rude and there is a terrace."
    aspects: list[tuple[str, Polarity]] = [("pasta", "positive"), ("waiter", "negative"), ("terrace", "neutral")]
    return Example("demo", text, tuple(Aspect(t, p, text.index(t), text.index(t) + len(t)) for t, p in aspects))


def _sentence(rng: random.Random, id: str) -> Example:
    number = rng.choice((2, 2, 3))
    while True:
        polarities = [rng.choice(POLARITIES) for _ in range(number)]
        if len(set(polarities)) > 1:
            break
    text, aspects = rng.choice(_OPENINGS), list[Aspect]()
    for index, (kind, polarity) in enumerate(zip(rng.sample(_KINDS, number), polarities, strict=True)):
        terms, well, ill = kind
        term = rng.choice(terms)
        opinions = {"positive": well, "negative": ill}
        clause = rng.choice(_NEUTRAL) if polarity == "neutral" else "the {a} was " + rng.choice(opinions[polarity])
        if index:
            text += rng.choice(_JOINS)
        before, after = clause.split("{a}")
        before = before if text else before[0].upper() + before[1:]
        start = len(text) + len(before)
        text += before + term + after
        aspects.append(Aspect(term, polarity, start, start + len(term)))
    return Example(id, text + ".", tuple(aspects))
