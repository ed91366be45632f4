"""Keyed facts from a seed: places that do not exist, and numbers that can be known from the documents only.

Every question asks for one number of one place. The other documents tell the same kinds of numbers of other places, so
an answer and its citation are right only if the right document was read.
"""

from __future__ import annotations

import random

from refrag.data.questions import QuestionExample
from refrag.model.documents import Doc

_FIRST = (
    "Ar", "Bel", "Cor", "Dun", "El", "Fen", "Gal", "Hal", "Is", "Jor", "Kel", "Lun",
    "Mor", "Nor", "Os", "Pel", "Quar", "Ros", "Sel", "Tor", "Ul", "Vel", "Wes", "Yar",
)  # fmt: skip
_LAST = (
    "bury", "dale", "fell", "ford", "gate", "holm", "keld", "lith", "mora",
    "mouth", "neth", "oria", "port", "rick", "stow", "tarn", "thorpe", "wick",
)  # fmt: skip
KEYS = (
    "harbour code", "gate number", "choir size", "tower height", "road number", "bell weight", "mill count",
    "founding year",
)  # fmt: skip
_REMARKS = (
    "Its people are known for their patience.",
    "The market is held by the river.",
    "Few travellers stay for the winter.",
    "The old bridge was painted green.",
    "Visitors praise the bread.",
    "Fog is common in spring.",
)


def generate(count: int, seed: int, docs: int = 3, facts: int = 2) -> list[QuestionExample]:
    """Questions with their documents.

    Args:
        count: of questions.
        seed: of every choice; the same arguments give the same questions.
        docs: documents per question, one of which holds the answer.
        facts: numbers that each document tells.
    """
    draw = random.Random(f"facts {seed}")
    return [_question(draw, docs, facts) for _ in range(count)]


def _question(draw: random.Random, docs: int, facts: int) -> QuestionExample:
    places = draw.sample([first + last for first in _FIRST for last in _LAST], docs)
    ids = draw.sample([str(n) for n in range(1, 10)], docs)
    gold = draw.randrange(docs)
    asked = draw.choice(KEYS)
    made = []
    statement = ""
    for n, (place, name) in enumerate(zip(places, ids, strict=True)):
        keys = draw.sample(KEYS, facts)
        if n == gold and asked not in keys:
            keys[draw.randrange(facts)] = asked
        values = {key: str(draw.randrange(10, 10_000)) for key in keys}
        sentences = [f"The {key} of {place} is {value}." for key, value in values.items()]
        if n == gold:
            statement = f"The {asked} of {place} is {values[asked]}."
            value = values[asked]
        sentences.insert(draw.randrange(facts + 1), draw.choice(_REMARKS))
        made.append(Doc(name, " ".join(sentences)))
    text = made[gold].text
    start = text.index(statement)
    answer = f"{statement[:-1]} [{ids[gold]}]."
    question = f"What is the {asked} of {places[gold]}?"
    return QuestionExample(question, tuple(made), answer, value, ids[gold], start, start + len(statement))
