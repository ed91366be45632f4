"""What the tests of store, recommender and server are made from."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import torch

from nrms.config import ModelConfig
from nrms.data.types import News
from nrms.data.vocabulary import WordVocabulary
from nrms.model.folder import LoadedModel, load_model_dir, save_model
from nrms.model.nrms import NRMS

WORDS = [f"w{i}" for i in range(60)]
TOPICS = ("sports", "music", "money")


def make_model(folder: Path, seed: int = 0, dim: int = 16) -> LoadedModel:
    """A small model with random weights, large enough that scores differ."""
    torch.manual_seed(seed)
    vocabulary = WordVocabulary(WORDS)
    config = ModelConfig(heads=2, head_dim=dim // 2, word_dim=12, query_dim=8, title_length=12, history_length=6)
    model = NRMS(config, len(vocabulary))
    with torch.no_grad():
        model.news_encoder.embedding.weight.mul_(20)
    save_model(folder, model, vocabulary)
    return load_model_dir(folder)


def make_news(count: int, seed: int = 0, start: int = 0) -> list[News]:
    """Articles with random titles, published one minute apart."""
    rng = np.random.default_rng(seed)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        News(
            f"N{i}",
            " ".join(rng.choice(WORDS, rng.integers(2, 9))),
            TOPICS[i % len(TOPICS)],
            published=begin + timedelta(minutes=i),
        )
        for i in range(start, start + count)
    ]


def fresh_postgres(server: str) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
