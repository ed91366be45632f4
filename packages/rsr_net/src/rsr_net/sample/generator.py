"""Learnable, news-like articles from a seed: what the package trains on when it is given nothing.

Each article tells one story and mentions another. The human summary keeps the news of the first, in other words; the
news stands anywhere, so the first three sentences are seldom the best ones. A linear map of the whole article cannot
tell the two stories apart, but a second look at its sentences can.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Any

from latentlab_shared.files import write_text
from rsr_net.data.stories import SPLITS
from rsr_net.data.types import Example

SIZES = (400, 100, 100)  # articles of SPLITS


@dataclass(frozen=True)
class _Topic:
    leads: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    fills: tuple[str, ...]
    quotes: tuple[str, ...]


@dataclass(frozen=True)
class _Material:
    """What ``topics.txt`` holds."""

    names: dict[str, tuple[str, ...]]
    topics: dict[str, _Topic]
    anything: tuple[str, ...]  # colour that fits every topic


@cache
def _material() -> _Material:
    names: dict[str, tuple[str, ...]] = {}
    found: dict[str, dict[str, list[Any]]] = {}
    current: dict[str, list[Any]] = {}
    for line in files("rsr_net.sample").joinpath("topics.txt").read_text(encoding="utf-8").splitlines():
        kind, _, text = line.partition(" ")
        if kind == "names":
            slot, _, listed = text.partition(" ")
            names[slot] = tuple(listed.split(", "))
        elif kind == "topic":
            found[text] = current = {"lead": [], "key": [], "fill": [], "quote": []}
        elif kind == "key":
            article, _, highlight = text.partition(" => ")
            current["key"].append((article, highlight))
        elif kind in ("lead", "fill", "quote"):
            current[kind].append(text)
    anything = tuple(found.pop("any")["fill"])
    topics = {name: _Topic(*map(tuple, lines.values())) for name, lines in found.items()}
    return _Material(names, topics, anything)


class _Names(dict[str, str]):
    """Values of the slots of one story: drawn when first asked for, different from those drawn before."""

    def __init__(self, rng: random.Random, taken: set[str]) -> None:
        super().__init__()
        self._rng, self._taken = rng, taken

    def __missing__(self, slot: str) -> str:
        # A few tries only: a list of seven days may be used up.
        for _ in range(8):
            value = self._draw(slot.rstrip("23456789"))
            if value not in self._taken:
                break
        self._taken.add(value)
        self[slot] = value
        return value

    def _draw(self, kind: str) -> str:
        rng, names = self._rng, _material().names
        if kind == "person":
            return f"{rng.choice(names['first'])} {rng.choice(names['last'])}"
        if kind in names:
            return rng.choice(names[kind])
        numbers = {
            "few": lambda: str(rng.randint(3, 12)),
            "count": lambda: str(rng.randint(20, 480)),
            "thousand": lambda: f"{rng.randint(2, 90)},000",
            "percent": lambda: str(rng.randint(13, 79)),
            "money": lambda: f"{rng.randint(2, 95)} million euros",
            "small": lambda: f"{rng.randint(2, 9) * 50} euros",
            "score": lambda: f"{rng.randint(1, 2)}-0" if rng.random() < 0.5 else f"{rng.randint(2, 4)}-1",
        }
        return numbers[kind]()


def _fill(text: str, names: _Names) -> str:
    return "".join(literal + (names[slot] if slot else "") for literal, slot, _, _ in Formatter().parse(text))


def _article(rng: random.Random) -> tuple[list[str], list[str]]:
    """One article and its summary, as sentences."""
    material = _material()
    topic, aside = (material.topics[name] for name in rng.sample(sorted(material.topics), 2))
    taken: set[str] = set()
    names, other_names = _Names(rng, taken), _Names(rng, taken)

    # The first key names the event itself, so that the summary always has it.
    first, *rest = topic.keys
    news = [first, *rng.sample(rest, rng.randint(1, 2))]
    colour = rng.sample(topic.fills, rng.randint(3, 5)) + rng.sample(material.anything, rng.randint(1, 3))
    quotes = rng.sample(topic.quotes, rng.randint(1, 2))
    body = [_fill(text, names) for text, _ in news]
    summary = [_fill(text, names) for _, text in news]

    others = [_fill(text, names) for text in colour + quotes]
    rng.shuffle(others)
    slots = sorted(rng.sample(range(len(others) + 1), len(body)))
    if rng.random() < 0.3:  # the inverted pyramid of the news trade: the event comes first
        slots[0] = 0
    sentences = list(others)
    for place, sentence in reversed(list(zip(slots, body, strict=True))):
        sentences.insert(place, sentence)
    if slots[0] > 0:
        sentences.insert(0, _fill(rng.choice(topic.leads), names))

    # The other story: news too, but of something else, and in one piece.
    mention = [_fill(text, other_names) for text, _ in rng.sample(aside.keys, rng.randint(1, 2))]
    mention += [_fill(text, other_names) for text in rng.sample(aside.fills, rng.randint(1, 2))]
    at = rng.randint(2, len(sentences))
    return sentences[:at] + mention + sentences[at:], summary


def generate(count: int = 400, seed: int = 0) -> list[Example]:
    """Write ``count`` articles with summaries of two or three sentences.

    The same seed gives the same articles on every machine; a longer list begins with the shorter one.

    Args:
        count: how many.
        seed: of everything.
    """
    examples = []
    for number in range(count):
        rng = random.Random(f"rsr-net sample {seed} {number}")
        sentences, summary = _article(rng)
        identifier = hashlib.sha1(f"sample/{seed}/{number}".encode()).hexdigest()
        examples.append(Example(identifier, tuple(sentences), tuple(f"{line}." for line in summary)))
    return examples


def sample_split(split: str, seed: int = 0) -> list[Example]:
    """One part of the built-in data: 400 articles to train on, 100 to choose by, 100 to report on.

    Args:
        split: "train", "valid" or "test".
        seed: of the articles.
    """
    at = SPLITS.index(split)
    start = sum(SIZES[:at])
    return generate(start + SIZES[at], seed)[start:]


def demo() -> Example:
    """One article to read and to try things on, written by hand."""
    article, summary = files("rsr_net.sample").joinpath("demo.txt").read_text(encoding="utf-8").split("\n\n")
    return Example("demo", tuple(article.splitlines()), tuple(summary.splitlines()))


def write_stories(folder: Path, count: int = 400, seed: int = 0) -> list[Path]:
    """Write the articles as ``.story`` files, the form in which CNN/DailyMail is published.

    Args:
        folder: made when it does not exist.
        count: how many articles.
        seed: of the articles.

    Returns:
        The files, one per article, named by id.
    """
    paths = []
    for example in generate(count, seed):
        blocks = [*example.sentences, *(f"@highlight\n\n{line.rstrip('.')}" for line in example.highlights)]
        paths.append(folder / f"{example.id}.story")
        write_text(paths[-1], "\n\n".join(blocks) + "\n")
    return paths
