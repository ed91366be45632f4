"""The original project's two functions: load a model once, then rank candidates for a list of titles."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError
from nrms.data.types import News
from nrms.inference import Item, Recommender

_lock = threading.Lock()
_loaded: Recommender | None = None


def load_model(checkpoint: str | Path = "runs/nrms/sample", *, device: str = "cpu", database: str = "") -> Recommender:
    """Load a model and keep it for `recommend_topk_from_titles`.

    Args:
        checkpoint: a run folder, a model folder, or the original project's ``checkpoint_epoch5.pt`` beside its
            ``config.json`` and ``vocabulary.json``.
        device: "auto", "cpu", "cuda" or "mps".
        database: where the cached embeddings are; without it, those saved with the model.

    Raises:
        UserError: if there is no model, a file is damaged, or the database has no vectors of it.

    Source: the seed's `model.py`.
    """
    global _loaded
    recommender = Recommender.from_pretrained(checkpoint, device=device)
    if database:
        from nrms.server.store import Store
        from nrms.server.sync import read_catalogue

        store = Store(database, create=False)
        try:
            recommender.swap(source=read_catalogue(store, store.models.get(recommender.model_id)))
        finally:
            store.close()
    with _lock:
        _loaded = recommender
    return recommender


def recommend_topk_from_titles(
    history_titles: Sequence[str],
    candidates: Sequence[str | News | Mapping[str, Any]],
    k: int = 10,
    *,
    recommender: Recommender | None = None,
) -> list[Item]:
    """Rank candidates for what a user read.

    The history is encoded now. Candidates are looked up in the cache by their id; one that is not there is encoded from
    its title, if it has one.

    Args:
        history_titles: titles read, oldest first.
        candidates: ids, or articles (`News`, or mappings with ``id`` and ``title``).
        k: how many to return.
        recommender: instead of the one that `load_model` kept.

    Returns:
        At most k articles, best first; without a history, in the order of popularity or time, with the score None.

    Raises:
        UserError: if no model is loaded, or a candidate is unknown and has no title.

    Source: the seed's `recommend_topk_from_titles`.
    """
    chosen = recommender or _loaded
    if chosen is None:
        raise UserError("no model is loaded", "recommend_topk_from_titles", "Call load_model() first")
    given = [_as_news(candidate) for candidate in candidates]
    ids = [item.id for item in given]
    known = {entry.id for entry in chosen.state.source.find(list(dict.fromkeys(ids))).entries}
    fresh = [item for item in given if item.id not in known]
    nameless = [item.id for item in fresh if not item.title.strip()]
    if nameless:
        what = f"{len(nameless)} candidates have neither a cached embedding nor a title, the first is {nameless[0]}"
        raise UserError(what, "candidates", "Embed them first, or give their titles")
    asked = chosen if not fresh else _beside(chosen, [item for item in given if item.id in known], fresh)
    return list(asked.recommend((), k, history_titles=history_titles, candidates=ids, exclude_read=False).items)


def _beside(chosen: Recommender, known: list[News], fresh: list[News]) -> Recommender:
    """A recommender over the candidates alone, for this call: the shared catalogue is not changed."""
    from nrms.inference.catalogue import Catalogue

    state = chosen.state
    found = state.source.find(list(dict.fromkeys(item.id for item in known)))
    made = Recommender(state.model, Catalogue(state.model.model_id, tuple(found.entries), found.vectors.astype("f2")))
    made.add(fresh)
    return made


def _as_news(candidate: str | News | Mapping[str, Any]) -> News:
    if isinstance(candidate, News):
        return candidate
    if isinstance(candidate, str):
        return News(candidate, "")
    if "id" not in candidate:
        raise UserError("a candidate has no id", "candidates", "Give ids, or mappings with id and title")
    return News(str(candidate["id"]), str(candidate.get("title") or ""))
