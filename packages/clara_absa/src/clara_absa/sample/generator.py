"""Restaurant-like sentences from a seed: two to four aspects of different polarity, so that the context is needed.

The same aspect term and the same words of opinion occur with every polarity's sentences; which opinion belongs to which
aspect is said by the sentence alone. A look-up of the term knows nothing: terms are drawn independently of polarities.
"""

from __future__ import annotations

import random

from clara_absa.configs.schema import POLARITIES, Aspect, Example, Polarity

TERMS = (
    "food", "pizza", "pasta", "soup", "salad", "dessert", "coffee", "wine", "menu", "service", "waiter",
    "waitress", "staff", "manager", "bartender", "hostess", "decor", "music", "lighting", "table", "terrace",
    "kitchen", "price", "bill", "portion", "bread", "steak", "sushi", "curry", "burger", "cocktail",
    "breakfast", "lunch", "dinner", "brunch", "location", "parking", "bathroom", "view", "wine list",
    "lamb chops", "dining room", "happy hour", "tasting menu", "grilled fish", "house red",
)  # fmt: skip
_OPINIONS: dict[Polarity, tuple[str, ...]] = {
    "positive": ("great", "lovely", "excellent", "delightful", "superb", "wonderful", "perfect", "charming"),
    "negative": ("awful", "terrible", "disappointing", "dreadful", "poor", "horrible", "bland", "rude"),
    "neutral": ("as usual", "what we expected", "average", "on the left", "as described", "the same as before"),
}
_CLAUSES: dict[Polarity, tuple[str, ...]] = {
    "positive": ("the {a} was {o}", "we loved the {a}", "the {a} deserves praise", "I can recommend the {a}"),
    "negative": ("the {a} was {o}", "we sent the {a} back", "the {a} let us down", "nobody liked the {a}"),
    "neutral": ("the {a} was {o}", "we asked about the {a}", "there is a {a}", "they moved the {a}"),
}
_JOINS = (", but ", ", while ", "; ", ", and ", ", although ")
_OPENINGS = ("", "", "Last night ", "To be fair, ", "On Sunday ", "As for us, ")
SIZES = {"train": 2000, "val": 150, "test": 150}


def generate(count: int, seed: int = 0) -> list[Example]:
    """Sentences with two to four aspects, at least two polarities in each.

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
    text = "The pasta was superb, but the waiter was rude and there is a terrace."
    aspects: list[tuple[str, Polarity]] = [("pasta", "positive"), ("waiter", "negative"), ("terrace", "neutral")]
    return Example("demo", text, tuple(Aspect(t, p, text.index(t), text.index(t) + len(t)) for t, p in aspects))


def _sentence(rng: random.Random, id: str) -> Example:
    number = rng.choice((2, 2, 3, 3, 4))
    while True:
        polarities = [rng.choice(POLARITIES) for _ in range(number)]
        if len(set(polarities)) > 1:
            break
    text, aspects = rng.choice(_OPENINGS), list[Aspect]()
    for index, (term, polarity) in enumerate(zip(rng.sample(TERMS, number), polarities, strict=True)):
        if index:
            text += rng.choice(_JOINS)
        before, after = rng.choice(_CLAUSES[polarity]).split("{a}")
        before = before if text else before[0].upper() + before[1:]
        start = len(text) + len(before)
        text += before + term + after.replace("{o}", rng.choice(_OPINIONS[polarity]))
        aspects.append(Aspect(term, polarity, start, start + len(term)))
    return Example(id, text + ".", tuple(aspects))
