"""Metrics of a model on a labelled part, with baselines beside it, by kind of impression, with intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from latentlab_shared.metrics.ranking import RankingScores, ranking_metrics
from latentlab_shared.metrics.statistics import bootstrap_interval
from nrms.data.log import ClickLog, open_log
from nrms.data.mind import BEHAVIORS_FILE
from nrms.data.rows import BadRows
from nrms.evaluation.baselines import chance, mean_of_titles, popularity, recency, title_vectors
from nrms.model.folder import LoadedModel, load_model_dir
from nrms.model.scoring import score_log

METRICS = ("auc", "mrr", "ndcg@5", "ndcg@10")
_HISTORY_BANDS = ((0, 0), (1, 5), (6, 20), (21, None))
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        rows: one per method, the model first: name, metrics, interval (by metric: low, high).
        slices: one per kind of impression, of the model: name, impressions, metrics, interval.
        impressions: that were evaluated.
        skipped: impressions with clicked or with unclicked articles only.
        notes: what was left out or put right in the data, by kind.
        model_id: of the model.
        seconds: the model took for all scores.
    """

    rows: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    impressions: int
    skipped: int
    notes: dict[str, int]
    model_id: str
    seconds: float


def evaluate(
    model: Path | LoadedModel,
    data: Path,
    part: str = "dev",
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    cache: Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    log: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a model folder, or the best checkpoint of a run.

    Args:
        model: where it is.
        data: folder with the part, and with ``train`` for the baselines that count clicks.
        part: which part.
        limit: at most so many impressions.
        skip_bad: count malformed rows instead of stopping at the first.
        cache: folder for the data as arrays.
        resamples: of the bootstrap; whole users are drawn.
        seed: of the draws and of the random baseline.
        device: where the model runs.
        log: told what happens, a line at a time.

    Raises:
        UserError: for bad data, and for a part without labels or without an impression of both classes.
    """
    loaded = load_model_dir(model, device) if isinstance(model, Path) else model
    test = open_log(data / part, loaded.vocabulary, loaded.config, cache=cache, bad=BadRows(skip=skip_bad), limit=limit)
    labels = test.known_labels()
    begun = time.perf_counter()
    scores = {"NRMS": score_log(loaded.model, test).astype(np.float64)}
    seconds = time.perf_counter() - begun
    log(f"{len(test):,} impressions scored in {seconds:.1f} s")
    train = None
    if part != "train" and (data / "train" / BEHAVIORS_FILE).is_file():
        train = open_log(data / "train", loaded.vocabulary, loaded.config, cache=cache, bad=BadRows(skip=skip_bad))
        scores["popularity"] = popularity(train, test)
        scores["recency"] = recency(train, test)
    scores["mean of titles, same vectors"] = mean_of_titles(title_vectors(loaded.model, test.titles), test)
    scores["random"] = chance(test, seed)

    results = {name: ranking_metrics(s, labels, test.candidates.lengths) for name, s in scores.items()}
    kept = results["NRMS"].kept
    if not kept.any():
        raise UserError("no impression has both a clicked and an unclicked article", data / part)
    users = test.user_of[kept]
    own = columns(results["NRMS"])
    rows = [_row(name, columns(result), users, resamples, seed) for name, result in results.items()]
    slices = [
        _row(name, {m: v[inside] for m, v in own.items()}, users[inside], resamples, seed)
        | {"impressions": int(inside.sum())}
        for name, kind in impression_kinds(test, train).items()
        if (inside := kind[kept]).any()
    ]
    return Evaluation(rows, slices, len(test), results["NRMS"].skipped, test.notes, loaded.model_id, seconds)


def columns(result: RankingScores) -> dict[str, Floats]:
    """The four metrics of each kept impression."""
    return {"auc": result.auc, "mrr": result.mrr, "ndcg@5": result.ndcg[5], "ndcg@10": result.ndcg[10]}


def impression_kinds(test: ClickLog, train: ClickLog | None) -> dict[str, NDArray[np.bool_]]:
    """Masks over impressions: length of the history, and, with a training part, new users and new clicked articles."""
    lengths = test.histories.lengths[test.history_of]
    kinds: dict[str, NDArray[np.bool_]] = {}
    for low, high in _HISTORY_BANDS:
        name = f"history {low}" if high == low else f"history {low} to {high}" if high else f"history {low} or more"
        kinds[name] = (lengths >= low) & (lengths <= (high if high is not None else np.iinfo(np.int64).max))
    if train is None:
        return kinds
    seen = set(train.users)
    new_user = np.array([name not in seen for name in test.users], bool)[test.user_of]
    shown = np.zeros(len(train.articles), bool)
    shown[train.candidates.values] = shown[train.histories.values] = True
    shown[0] = False
    new_article = np.array([not shown[train.titles.row_of.get(name, 0)] for name in test.articles], bool)
    clicked_old = (test.known_labels() == 1) & ~new_article[test.candidates.values]
    owner = np.repeat(np.arange(len(test)), test.candidates.lengths)
    has_old = np.bincount(owner[clicked_old], minlength=len(test)) > 0
    return kinds | {
        "users new since training": new_user,
        "users of the training part": ~new_user,
        "only new articles clicked": ~has_old,
        "an article of the training part clicked": has_old,
    }


def _row(name: str, values: dict[str, Floats], users: NDArray[Any], resamples: int, seed: int) -> dict[str, Any]:
    intervals = {
        metric: bootstrap_interval(column, clusters=users, resamples=resamples, seed=seed)
        for metric, column in values.items()
    }
    return {
        "name": name,
        "metrics": {metric: interval.estimate for metric, interval in intervals.items()},
        "interval": {metric: [interval.low, interval.high] for metric, interval in intervals.items()},
    }
