"""Keyed facts from a seed: places that do not exist, and numbers that can be known from the documents only.

Every question asks for one number of one place. The other documents tell the same kinds of numbers of other places, so
an answer and its citation are right only if the right document was read.
"""

from __future__ import annotations

import random

from refrag.data.questions import QuestionExample
from refrag.model.documents import Doc

_FIRST = ("Ar", "Bel", "Cor", "Dun", "El", "Fen", "Gal", "Hal", "Jor", "Kel")
_LAST = ("bury", "dale", "ford", "gate", "holm", "mouth", "stow", "wick")
PLACES = tuple(first + last for first in _FIRST for last in _LAST)
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


def generate(count: int, seed: int, docs: int = 3, facts: int = 1) -> list[QuestionExample]:
    """Questions, each with documents of its own.

    Args:
        count: of questions.
        seed: of every choice; the same arguments give the same questions.
        docs: documents per question, one of which holds the answer.
        facts: numbers that each document tells.
    """
    return [group[0] for group in generate_groups(count, seed, 1, docs, facts)]


def generate_groups(
    count: int, seed: int, each: int, docs: int = 3, facts: int = 1
) -> list[tuple[QuestionExample, ...]]:
    """Sets of documents with several questions each; otherwise as ``generate``.

    Args:
        count: of sets.
        seed: of every choice.
        each: questions of a set, about different facts.
        docs: documents of a set.
        facts: numbers that each document tells.
    """
    draw = random.Random(f"facts {seed}")
    return [_group(draw, each, docs, facts) for _ in range(count)]


def _group(draw: random.Random, each: int, docs: int, facts: int) -> tuple[QuestionExample, ...]:
    places = draw.sample(PLACES, docs)
    ids = draw.sample([str(n) for n in range(1, 10)], docs)
    made: list[Doc] = []
    told: list[tuple[int, str, str]] = []  # document, key, value
    for n, place in enumerate(places):
        values = {key: str(draw.randrange(1000, 10_000)) for key in draw.sample(KEYS, facts)}
        sentences = [_statement(key, place, value) for key, value in values.items()]
        sentences.insert(draw.randrange(facts + 1), draw.choice(_REMARKS))
        made.append(Doc(ids[n], " ".join(sentences)))
        told += [(n, key, value) for key, value in values.items()]
    return tuple(_question(made, places, *fact) for fact in draw.sample(told, each))


def _question(docs: list[Doc], places: list[str], n: int, key: str, value: str) -> QuestionExample:
    doc, statement = docs[n], _statement(key, places[n], value)
    start = doc.text.index(statement)
    answer = f"{statement[:-1]} [{doc.id}]."
    question = f"What is the {key} of {places[n]}?"
    return QuestionExample(question, tuple(docs), answer, value, doc.id, start, start + len(statement))


def _statement(key: str, place: str, value: str) -> str:
    return f"The {key} of {place} is {value}."
