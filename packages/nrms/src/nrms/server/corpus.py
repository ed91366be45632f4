"""Articles and reads from files into a store, and a store made ready to serve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from latentlab_shared.errors import UserError, shell_word
from nrms.data.mind import BEHAVIORS_FILE, NEWS_FILE, read_behaviors, read_news
from nrms.data.rows import BadRows
from nrms.data.types import News
from nrms.inference.catalogue import Catalogue, to_ms
from nrms.inference.recommender import CATALOGUE, Recommender
from nrms.inference.search import ExactSearch
from nrms.model.folder import LoadedModel, load_model_dir
from nrms.server.article_recommender.calculate_embeddings import embed_pending
from nrms.server.store import NoDatabase, Read, Store, StoredModel

SAMPLE = "sample"
_CHUNK = 5000


def read_articles(source: str | Path, bad: BadRows | None = None) -> Iterator[News]:
    """The articles of ``sample``, of a ``news.tsv``, or of a folder with such files in it or in its parts.

    Raises:
        UserError: if there are none, or at the first malformed row unless ``bad`` skips them.
    """
    if str(source) == SAMPLE:
        from nrms.sample.generator import SampleConfig, generate

        yield from generate(SampleConfig())[0]
        return
    seen: set[str] = set()
    for file in _files(Path(source), NEWS_FILE):
        for news in read_news(file, bad):
            if news.id not in seen:
                seen.add(news.id)
                yield news


def read_events(source: Path, bad: BadRows | None = None) -> Iterator[Read]:
    """The clicks of a MIND log as reads, those of the histories dated before their impression.

    The log says of a reader and an article only that one read the other, so that is one event.
    """
    for file in _files(source, BEHAVIORS_FILE):
        for shown in read_behaviors(file, bad):
            at = to_ms(shown.time) or 0
            clicked = [c for c, label in zip(shown.candidates, shown.labels or (), strict=False) if label]
            for place, article in enumerate((*shown.history, *clicked)):
                seconds_before = max(0, len(shown.history) - place)
                moment = max(0, at - 1000 * seconds_before)
                yield Read(f"{shown.user}:{article}", shown.user, article, moment)


def _files(source: Path, name: str) -> list[Path]:
    if source.is_file():
        return [source]
    places = (source, source / "train", source / "dev", source / "test")
    found = [place / name for place in places if (place / name).is_file()]
    if not found:
        raise UserError(f"there is no {name} here", source, f"Give a {name}, or a folder with one")
    return found


def add_articles(store: Store, news: Iterable[News], advance: Callable[[int], Any] = lambda _: None) -> dict[str, int]:
    """Add articles in parts; the account of them."""
    account = {"inserted": 0, "updated": 0, "unchanged": 0}
    rest = iter(news)
    while part := list(islice(rest, _CHUNK)):
        for key, count in vars(store.articles.add(part)).items():
            account[key] += count
        advance(len(part))
    return account


def add_events(store: Store, reads: Iterable[Read], advance: Callable[[int], Any] = lambda _: None) -> int:
    """Add reads in parts; how many were new."""
    added, rest = 0, iter(reads)
    while part := list(islice(rest, _CHUNK)):
        added += store.events.add(part)
        advance(len(part))
    return added


def save_catalogue(folder: Path, source: str | Path, bad: BadRows | None = None, device: str = "cpu") -> int:
    """Embed the articles of a source into ``catalogue/`` of a model's folder; how many there are."""
    recommender = Recommender(load_model_dir(folder, device))
    recommender.add(read_articles(source, bad))
    held = recommender.state.source
    assert isinstance(held, ExactSearch)
    held.catalogue.save(folder / CATALOGUE)
    return len(held)


def put_catalogue(store: Store, model: LoadedModel, folder: Path) -> StoredModel:
    """Put the articles and vectors that stand beside a model into a store: nothing is embedded again.

    Raises:
        UserError: if the folder has no catalogue, or one of another model.
    """
    catalogue = Catalogue.load(folder / CATALOGUE)
    if catalogue.model_id != model.model_id:
        raise UserError("the catalogue is of another model", folder, "Train again, or embed: nrms embed")
    add_articles(store, (News(e.id, e.title, e.category, published=e.published_at) for e in catalogue.entries))
    stored = store.models.register(model.model_id, model.config.dim, str(folder.resolve()))
    for start in range(0, len(catalogue), 500):
        part = catalogue.entries[start : start + 500]
        vectors = np.asarray(catalogue.vectors[start : start + len(part)], np.float32)
        store.embeddings.put(stored, [entry.id for entry in part], vectors)
    return stored


def open_ready(database: str, folder: Path, log: Callable[[str], None] = lambda _: None) -> Store:
    """A store with an active model; where there is no database, one with the model of ``folder`` and its catalogue.

    Raises:
        UserError: as `make_ready`; where there was no database, none is made then.
    """
    try:
        store = Store(database, create=False)
    except NoDatabase:
        load_model_dir(folder)
        _need_catalogue(folder)
        store = Store(database)
    make_ready(store, folder, log)
    return store


def _need_catalogue(folder: Path) -> None:
    if not (folder / CATALOGUE).is_dir():
        fix = f"Add articles: nrms embed --model {shell_word(folder)} --data FOLDER --activate"
        raise UserError("there are no embedded articles beside the model", folder, fix)


def make_ready(store: Store, folder: Path, log: Callable[[str], None] = lambda _: None) -> StoredModel:
    """The active model of a store; an empty store first gets the model of ``folder`` and its catalogue.

    Where the active model's folder is ``folder`` and holds another model by now (it was trained again), that one is put
    in its place, with vectors of all articles.

    Raises:
        UserError: if the store has articles but no active model, or is empty and there is no model.
    """
    active = store.models.active()
    if active is not None:
        if Path(active.folder) != folder.resolve():
            return active
        model = load_model_dir(folder)
        if model.model_id == active.id:
            return active
        log(f"{folder} holds another model than {store.database.name}: it is put in place")
    elif store.articles.count():
        fix = f"Embed and activate one: nrms embed --model {shell_word(folder)} --activate"
        raise UserError("the database has articles but no active model", store.database.name, fix)
    else:
        model = load_model_dir(folder)
    _need_catalogue(folder)
    stored = put_catalogue(store, model, folder)
    embed_pending(store, model, stored.folder)
    log(f"{store.database.name}: {store.articles.count()} articles, model {stored.id[:12]} of {folder}")
    return store.models.activate(stored.id)
