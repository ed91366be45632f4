"""Generated data of the sizes and distributions of MIND: nothing in it can be learned, all of it takes time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from latentlab_shared.files import atomic_path, read_json, write_json
from nrms.config import ModelConfig
from nrms.data.mind import BEHAVIORS_FILE, NEWS_FILE, behaviors_row, news_row
from nrms.data.types import Floats, Impression, News
from nrms.data.vocabulary import WordVocabulary
from nrms.model.folder import LoadedModel, load_model_dir, save_model
from nrms.model.nrms import NRMS

_START = datetime(2026, 1, 5)


@dataclass(frozen=True)
class Size:
    """Sizes of a generated log; the defaults are MIND-demo's.

    Attributes:
        news: articles.
        train: impressions to train on.
        dev: impressions to evaluate.
        words: different words.
        users: different readers.
    """

    news: int = 26_740
    train: int = 22_034
    dev: int = 7_538
    words: int = 23_404
    users: int = 5_000


MIND_LARGE = Size(news=101_527, train=2_232_748, dev=1_000, words=50_000, users=711_222)
_CHUNK = 20_000  # impressions drawn at a time


def titles(count: int, words: int, rng: np.random.Generator) -> list[str]:
    """Titles of 3 to 29 words, 11.8 on average, whose words are drawn by Zipf's law."""
    lengths = np.clip(np.round(rng.normal(11.8, 3.6, count)), 3, 29).astype(int)
    chance = 1 / np.arange(1, words + 1)
    drawn = rng.choice(words, int(lengths.sum()), p=chance / chance.sum())
    ends = np.cumsum(lengths)
    return [" ".join(f"w{w}" for w in drawn[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def write_log(folder: Path, size: Size, seed: int = 0) -> None:
    """Write ``train`` and ``dev`` in MIND's form, with its lengths of histories and impressions.

    History: 2 % empty, median 18, mean 32. Impression: median 24, mean 38, and one or two clicks.
    """
    rng = np.random.default_rng(seed)
    news = [News(f"N{i}", title, "news", "all") for i, title in enumerate(titles(size.news, size.words, rng))]
    popular = rng.pareto(1.2, size.news) + 0.05
    chance: Floats = (popular / popular.sum()).astype(np.float64)
    for part, count in (("train", size.train), ("dev", size.dev)):
        with atomic_path(folder / part / NEWS_FILE) as temporary:
            temporary.write_text("".join(f"{news_row(n)}\n" for n in news), encoding="utf-8")
        with atomic_path(folder / part / BEHAVIORS_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
            for start in range(0, count, _CHUNK):
                for shown in _impressions(start, min(count, start + _CHUNK), size, chance, rng):
                    file.write(f"{behaviors_row(shown)}\n")


def make_log(folder: Path, size: Size) -> None:
    """`write_log`, unless the folder has that log already."""
    done = folder / "size.json"
    if not done.is_file() or read_json(done) != asdict(size):
        write_log(folder, size)
        write_json(done, asdict(size))


def _impressions(start: int, end: int, size: Size, chance: Floats, rng: np.random.Generator) -> Iterator[Impression]:
    count = end - start
    histories = np.clip(np.round(rng.lognormal(np.log(18), 1.07, count)), 1, 400).astype(int)
    histories[rng.random(count) < 0.021] = 0
    shown = np.clip(np.round(rng.lognormal(np.log(24), 0.95, count)), 2, 280).astype(int)
    clicks = np.minimum(1 + rng.poisson(0.5, count), shown - 1)
    drawn = [f"N{i}" for i in rng.choice(size.news, int(histories.sum() + shown.sum()), p=chance).tolist()]
    at = 0
    for row in range(count):
        middle, stop = at + histories[row], at + histories[row] + shown[row]
        labels = np.zeros(shown[row], int)
        labels[rng.choice(shown[row], clicks[row], replace=False)] = 1
        number = start + row
        yield Impression(
            str(number + 1),
            f"U{number % size.users}",
            _START + timedelta(seconds=number),
            tuple(drawn[at:middle]),
            tuple(drawn[middle:stop]),
            tuple(labels.tolist()),
        )
        at = stop


def paper_model(folder: Path, words: int = 20_000, seed: int = 0) -> LoadedModel:
    """A model of the paper's sizes, 16 heads of 16, with random weights: as fast as a trained one."""
    torch.manual_seed(seed)
    vocabulary = WordVocabulary(f"w{i}" for i in range(words))
    save_model(folder, NRMS(ModelConfig(), len(vocabulary)), vocabulary)
    return load_model_dir(folder)


def catalogue_vectors(model: LoadedModel, count: int, distinct: int = 100_000, seed: int = 0) -> NDArray[np.float16]:
    """Vectors (count, D) of generated titles; beyond ``distinct`` they are repeated with a little noise."""
    rng = np.random.default_rng(seed)
    real = model.encode_titles(titles(min(count, distinct), 20_000, rng)).numpy()
    made = np.empty((count, real.shape[1]), np.float16)
    made[: len(real)] = real
    spread = 0.3 * float(real.std())
    for start in range(len(real), count, len(real)):
        rows = made[start : start + len(real)]
        noise = rng.standard_normal(rows.shape, dtype=np.float32)
        rows[:] = real[: len(rows)] + spread * noise
    return made
