"""A seeded newspaper with readers: MIND-format logs that a model can learn from, made in a second, nothing downloaded.

Articles belong to a topic and one of its themes, which their words carry. Readers favour two topics, and change them
now and then. What they are shown is recent and popular; what they click is what they favour, with some popularity and
chance. So titles tell much more than popularity does. A tenth of the readers appear in the dev part only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.config import to_dict
from latentlab_shared.files import atomic_path, write_json
from nrms.config import ModelConfig, NrmsConfig, TrainConfig
from nrms.data.mind import BEHAVIORS_FILE, NEWS_FILE, behaviors_row, news_row
from nrms.data.types import Impression, News
from nrms.sample.words import COMMON, THEMES, make_names

_START = datetime(2026, 1, 5)
_SHOWN_DAYS = 4.0  # articles older than this are no longer shown
_NAMES_PER_THEME = 30


@dataclass(frozen=True)
class SampleConfig:
    """Sizes of a generated log.

    Attributes:
        articles: of the whole period.
        users: readers; a tenth of them appear in the dev part only.
        train: impressions of the train part.
        dev: impressions of the dev part, later than all of the train part.
        candidates: articles shown per impression, on average.
        days: the period.
        taste: how much a favoured topic counts in a click, in logits.
        popularity: how much an article's popularity counts.
        drift: chance that a reader changes favourites at an impression.
        seed: of every random number.
    """

    articles: int = 3000
    users: int = 600
    train: int = 4000
    dev: int = 1000
    candidates: int = 20
    days: int = 28
    taste: float = 12.0
    popularity: float = 0.7
    drift: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("articles", "users", "train", "dev", "days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.candidates < 4:
            raise ValueError("candidates must be at least 4")


@dataclass
class _Reader:
    """A reader's liking, one number per theme, and what the reader has clicked so far."""

    name: str
    taste: NDArray[np.float64]
    history: list[int] = field(default_factory=list)


def sample_config(seed: int = 0) -> NrmsConfig:
    """Sizes and rates that learn the sample in about a minute on one core."""
    model = ModelConfig(heads=4, head_dim=16, word_dim=64, query_dim=64, title_length=20)
    train = TrainConfig(epochs=6, batch_size=64, learning_rate=5e-3, patience=0, seed=seed)
    return NrmsConfig(model=model, train=train)


def write_sample(folder: Path, config: SampleConfig | None = None) -> dict[str, Any]:
    """Write ``train`` and ``dev`` folders with ``news.tsv`` and ``behaviors.tsv``; returns the account of them.

    The catalogue of ``train`` ends where its log ends; that of ``dev`` holds all articles.
    """
    config = config or SampleConfig()
    news, impressions = generate(config)
    parts = {"train": impressions[: config.train], "dev": impressions[config.train :]}
    end = parts["train"][-1].time
    for part, log in parts.items():
        known = news if part == "dev" else [n for n in news if n.published is not None and n.published <= end]
        for name, lines in ((NEWS_FILE, map(news_row, known)), (BEHAVIORS_FILE, map(behaviors_row, log))):
            with atomic_path(folder / part / name) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    account = {"sample": to_dict(config), "impressions": {part: len(log) for part, log in parts.items()}}
    write_json(folder / "prepared.json", account)
    return account


def generate(config: SampleConfig) -> tuple[list[News], list[Impression]]:
    """Articles by time of publication, and ``train + dev`` impressions by time."""
    rng = np.random.default_rng(config.seed)
    news, theme = _articles(config, rng)
    published = np.array([(n.published - _START) / timedelta(days=1) for n in news if n.published])
    popularity = rng.gumbel(size=len(news))  # a few articles are much more popular than the rest
    readers = [_Reader(f"U{i + 1}", _favourites(rng)) for i in range(config.users)]
    for reader in readers:
        _read_before(reader, theme, popularity, published, rng)
    total = config.train + config.dev
    times = np.sort(rng.uniform(min(_SHOWN_DAYS, config.days / 2), config.days, total))
    newcomers = max(1, config.users // 10)
    log = []
    for number, day in enumerate(times):
        known = config.users - newcomers if number < config.train else config.users
        reader = readers[rng.integers(known)]
        if rng.random() < config.drift:
            reader.taste = _favourites(rng)
        log.append(_impression(number, float(day), reader, news, theme, popularity, published, config, rng))
    return news, log


def _articles(config: SampleConfig, rng: np.random.Generator) -> tuple[list[News], NDArray[np.int64]]:
    names = make_names(len(THEMES) * _NAMES_PER_THEME, rng)
    theme = rng.integers(len(THEMES), size=config.articles)
    days = np.sort(rng.uniform(0, config.days, config.articles))
    news = []
    for number, (which, day) in enumerate(zip(theme, days, strict=True), start=1):
        category, subcategory, words = THEMES[which]
        own = names[which * _NAMES_PER_THEME : (which + 1) * _NAMES_PER_THEME]
        text = [" ".join(_sentence(words, own, rng, length)) for length in (int(rng.integers(6, 13)), 18)]
        published = _START + timedelta(seconds=int(day * 86400))
        news.append(News(f"N{number}", text[0].capitalize(), category, subcategory, text[1].capitalize(), published))
    return news, theme


def _sentence(words: tuple[str, ...], names: list[str], rng: np.random.Generator, length: int) -> list[str]:
    """Words of the theme, its people, and words that occur everywhere."""
    kinds = rng.choice(3, size=length, p=(0.5, 0.1, 0.4))
    pools: tuple[tuple[str, ...] | list[str], ...] = (words, names, COMMON)
    return [pools[kind][rng.integers(len(pools[kind]))] for kind in kinds]


def _favourites(rng: np.random.Generator) -> NDArray[np.float64]:
    """Two favoured topics, and within each topic a liking for one theme more than for another."""
    topics = sorted({topic for topic, _, _ in THEMES})
    chosen = [topics[i] for i in rng.choice(len(topics), size=2, replace=False)]
    return np.array([rng.uniform(0.7, 1.0) if topic in chosen else rng.uniform(0, 0.1) for topic, _, _ in THEMES])


def _read_before(
    reader: _Reader,
    theme: NDArray[np.int64],
    popularity: NDArray[np.float64],
    published: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Clicks from before the log: articles of the first days, mostly of favoured themes; one reader in 30 has none."""
    early = np.flatnonzero(published <= max(published[0], min(_SHOWN_DAYS, published[-1] / 2)))
    count = 0 if rng.random() < 1 / 30 else min(len(early), int(rng.geometric(1 / 12)))
    utility = 6 * reader.taste[theme[early]] + popularity[early] + rng.gumbel(size=len(early))
    chosen = early[np.argsort(-utility, kind="stable")[:count]]
    reader.history = [int(i) for i in np.sort(chosen)]


def _impression(
    number: int,
    day: float,
    reader: _Reader,
    news: list[News],
    theme: NDArray[np.int64],
    popularity: NDArray[np.float64],
    published: NDArray[np.float64],
    config: SampleConfig,
    rng: np.random.Generator,
) -> Impression:
    low, high = np.searchsorted(published, (day - _SHOWN_DAYS, day))
    recent = np.setdiff1d(np.arange(low, max(high, low + 2)), reader.history)
    if len(recent) < 2:  # the reader has read everything: an impression may then repeat
        recent = np.arange(max(0, high - config.candidates), max(high, 2))
    count = min(len(recent), max(2, int(rng.normal(config.candidates, config.candidates / 4))))
    # Popular articles are shown more often, so popularity alone says little about what is clicked among them.
    shown = recent[np.argsort(-(0.5 * popularity[recent] + rng.gumbel(size=len(recent))), kind="stable")[:count]]
    shown = rng.permutation(shown)
    utility = config.taste * reader.taste[theme[shown]] + config.popularity * popularity[shown]
    utility += rng.gumbel(size=count)
    clicks = 1 + int(count > 6 and rng.random() < 0.25)
    clicked = np.sort(np.argsort(-utility, kind="stable")[:clicks])
    history = tuple(news[i].id for i in reader.history)
    labels = np.zeros(count, np.int64)
    labels[clicked] = 1
    reader.history.extend(int(shown[i]) for i in clicked)
    return Impression(
        id=str(number + 1),
        user=reader.name,
        time=_START + timedelta(seconds=int(day * 86400)),
        history=history,
        candidates=tuple(news[i].id for i in shown),
        labels=tuple(labels.tolist()),
    )
