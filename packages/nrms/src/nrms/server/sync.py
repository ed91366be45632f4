"""Keeps a recommender at the state of the store: the active model, its matrix, and what is popular."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latentlab_shared.errors import UserError
from nrms.data.types import Floats
from nrms.inference import Recommender
from nrms.inference.catalogue import Catalogue, Entry, Filter, Found
from nrms.inference.search import GraphSearch
from nrms.model.folder import LoadedModel, load_model_dir
from nrms.server.store import Changes, Store, StoredModel, Unavailable, now_ms

_log = logging.getLogger(__name__)

Search = Literal["exact", "usearch", "database"]
_POPULAR_DAYS = 7
_RECALL_READERS = 20
_POPULAR_EVERY = 15.0  # seconds between two countings


def read_catalogue(store: Store, model: StoredModel) -> Catalogue:
    """All articles with current vectors of a model."""
    changes = store.embeddings.changes(model)
    return Catalogue(model.id, tuple(_entries(changes)), changes.vectors, changes.revision)


def _entries(changes: Changes) -> list[Entry]:
    return [Entry(*row[1:6]) for row in changes.rows]


class DatabaseSource:
    """Articles that stay in PostgreSQL: found by id or by pgvector's graph, nothing is held here.

    Args:
        store: a PostgreSQL store.
        model: whose vectors.
        size: articles with vectors.
        exact: read all vectors instead of the graph.
    """

    def __init__(self, store: Store, model: StoredModel, size: int, exact: bool = False) -> None:
        if not store.database.is_postgres:
            raise UserError("search in the database needs PostgreSQL", "--search", "Use exact or usearch with SQLite")
        self._store, self._model, self._size, self._exact = store, model, size, exact

    @property
    def model_id(self) -> str:
        """The model that made the vectors."""
        return self._model.id

    def __len__(self) -> int:
        return self._size

    def find(self, ids: list[str]) -> Found:
        """The known ones among these articles."""
        held = self._store.embeddings.get(self._model, ids) if ids else {}
        rows = [held[id] for id in ids if id in held]
        vectors = [vector.astype(np.float32) for _, vector in rows]
        matrix = np.stack(vectors) if vectors else np.zeros((0, self._model.dim), np.float32)
        return _found([row for row, _ in rows], matrix, np.zeros(0, np.float32))

    def search(self, user: Floats, k: int, wanted: Filter) -> Found:
        """The k best articles."""
        hits = self._store.embeddings.nearest(self._model, user, k, wanted, self._exact)
        vectors = hits.vectors.astype(np.float32)
        scores = vectors @ user  # of the vector that was asked with, not of its half-precision form
        order = np.lexsort(([row[0] for row in hits.rows], -scores))
        return _found([hits.rows[i] for i in order], vectors[order], scores[order])

    def newest(self, k: int, wanted: Filter) -> Found:
        """The k articles published last."""
        rows = self._store.embeddings.newest(self._model, k, wanted)
        return _found(rows, np.zeros((0, self._model.dim), np.float32), np.zeros(0, np.float32))


def _found(rows: Sequence[Any], vectors: Floats, scores: Floats) -> Found:
    """Rows as in `Changes`; the order of the catalogue is that of the articles' numbers."""
    places = np.array([row[0] for row in rows], np.int64)
    return Found([Entry(*row[1:6]) for row in rows], vectors, scores, places)


def load_stored(model: StoredModel, device: str = "cpu") -> LoadedModel:
    """The encoders of a stored model, from its folder.

    Raises:
        UserError: if the folder is gone, damaged, or holds another model by now.
    """
    loaded = load_model_dir(Path(model.folder), device)
    if loaded.model_id != model.id:
        fix = "Train into a folder of its own, then embed and activate that"
        raise UserError(f"the folder holds another model than {model.id[:12]}", model.folder, fix)
    return loaded


class Follower:
    """Follows a store from a thread of its own: what changed there is read beside, then put in place at once.

    Args:
        store: what to follow.
        search: how answers are found.
        poll: seconds between two looks.
        device: of the models.
    """

    def __init__(self, store: Store, search: Search = "exact", poll: float = 2.0, device: str = "cpu") -> None:
        self._store, self._search, self._poll, self._device = store, search, poll, device
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._counted = -float("inf")
        self._seen = -1
        self.recommender: Recommender | None = None
        self.on_swap: Callable[[Recommender], None] = lambda _: None

    def refresh(self) -> bool:
        """Look once, and put in place what changed; whether anything did."""
        with self._lock:
            model = self._store.models.active()
            if model is None:
                return False
            revision = self._store.embeddings.revision()
            now = self.recommender
            popular = self._popular()
            if now is None or now.model_id != model.id:
                self._begin(model, popular)
            elif revision != self._seen:
                self._continue(now, model, popular)
            elif popular is not None and popular != now.state.popular:
                now.swap(popular=popular)
                return False
            else:
                return False
            self._log_recall()
            self._seen = revision
            assert self.recommender is not None
            self.on_swap(self.recommender)
            return True

    def _begin(self, model: StoredModel, popular: tuple[str, ...] | None) -> None:
        """Another model: its encoders and its articles, exchanged together."""
        loaded = load_stored(model, self._device)
        source = self._source(loaded, model)
        if self.recommender is None:
            how: Literal["exact", "usearch"] = "usearch" if self._search == "usearch" else "exact"
            self.recommender = Recommender(loaded, source, popular or (), how)
        else:
            self.recommender.swap(loaded, source, popular)
        _log.info("model in place", extra={"model_id": model.id, "articles": len(self.recommender)})

    def _log_recall(self) -> None:
        """Say how many of the exact ten best articles a graph in memory finds, for a few random readers."""
        assert self.recommender is not None
        source = self.recommender.state.source
        if not isinstance(source, GraphSearch) or not len(source):
            return
        rng = np.random.default_rng(0)
        read = rng.integers(len(source), size=(_RECALL_READERS, 20))
        users = [self.recommender.user_vector([source.catalogue.entries[row].id for row in rows]) for rows in read]
        _log.info("graph in place", extra={"recall_at_10": round(source.recall(np.stack(users)), 4)})

    def _source(self, loaded: LoadedModel, model: StoredModel) -> Catalogue | DatabaseSource:
        if self._search == "database":
            self._store.embeddings.build_index(model)
            return DatabaseSource(self._store, model, self._store.models.coverage(model).embedded)
        catalogue = read_catalogue(self._store, model)
        return catalogue if len(catalogue) else Catalogue.empty(model.id, loaded.config.dim)

    def _continue(self, now: Recommender, model: StoredModel, popular: tuple[str, ...] | None) -> None:
        """The same model: only what changed."""
        if self._search == "database":
            size = self._store.models.coverage(model).embedded
            now.swap(source=DatabaseSource(self._store, model, size), popular=popular)
            return
        held = getattr(now.state.source, "catalogue", None)
        assert isinstance(held, Catalogue)
        changes = self._store.embeddings.changes(model, held.revision)
        if changes.rows:
            merged = held.updated(_entries(changes), changes.vectors, changes.revision)
            now.swap(source=merged, popular=popular)
            _log.info("articles in place", extra={"changed": len(changes.rows), "articles": len(merged)})

    def _popular(self) -> tuple[str, ...] | None:
        if time.monotonic() - self._counted < _POPULAR_EVERY:
            return None
        self._counted = time.monotonic()
        return tuple(self._store.events.popular(now_ms() - _POPULAR_DAYS * 86_400_000))

    def start(self) -> None:
        """Look now, if the database and the model's folder are there, and then every ``poll`` seconds."""
        try:
            self.refresh()
        except Unavailable as error:
            _log.warning("database away", extra={"reason": str(error)})
        except UserError as error:
            _log.error("model away", extra={"reason": str(error)})
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._poll):
            try:
                self.refresh()
            except Unavailable as error:
                _log.warning("database away", extra={"reason": str(error)})
            except UserError as error:  # of a model's folder; what is in place goes on answering
                _log.error("model away", extra={"reason": str(error)})
            except Exception:
                _log.exception("cannot follow the store")

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
