"""The measurement on the Bing click log: folds by user, several seeds, baselines with the same vectors beside it.

Users are dealt out to five folds. Each fold is the test part once; of the other users a tenth is the dev part, which
chooses the epoch, and the rest the train part. So every test user is new to the model. Each impression is tested once
per seed; its metrics are averaged over the seeds, and whole users are drawn for the intervals.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from latentlab_shared.files import read_json, write_json
from latentlab_shared.metrics.ranking import RankingScores, ranking_metrics
from latentlab_shared.metrics.statistics import bootstrap_interval, paired_bootstrap
from nrms.config import ModelConfig, NrmsConfig, TrainConfig
from nrms.data.dkn import dkn_articles, dkn_impressions, read_dkn, user_folds
from nrms.data.log import ClickLog, open_log
from nrms.data.prepare import write_part
from nrms.data.types import Impression, News
from nrms.evaluation.baselines import chance, mean_of_titles, popularity, title_vectors
from nrms.model.folder import load_model_dir
from nrms.model.scoring import score_log
from nrms.training.trainer import train

METRICS = ("auc", "mrr", "ndcg@5", "ndcg@10")
METHODS = ("NRMS", "mean of titles, same vectors", "popularity", "random")
Floats = NDArray[np.float64]


def dkn_config() -> NrmsConfig:
    """Sizes for a log of six thousand clicks: MiniLM and its width stay, and training starts at the mean of titles."""
    model = ModelConfig(heads=24, head_dim=16, query_dim=64, prior=True, encoder="transformer", freeze=True)
    train_config = TrainConfig(vectors="minilm", balance=True, epochs=3, batch_size=64, learning_rate=1e-3, patience=2)
    return NrmsConfig(model=model, train=train_config)


@dataclass(frozen=True)
class _Fold:
    """The test impressions of one fold and seed: their users and ids, and (impressions, metrics) of each method."""

    ids: list[str]
    users: list[str]
    values: dict[str, Floats]


def run_folds(
    source: Path,
    work: Path,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    folds: int = 5,
    config: NrmsConfig | None = None,
    resamples: int = 10_000,
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Train and test on every fold with every seed; run again, it goes on where it stopped.

    Args:
        source: ``raw_train.txt``, or the folder that holds it.
        work: folder for data, runs and results of the folds.
        seeds: of the deal and of training.
        folds: parts that users are dealt out to.
        config: sizes and rates.
        resamples: of the bootstrap.
        log: told what happens, a line at a time.

    Returns:
        Rows for ``results/*.json``: one per method, and one per difference to NRMS.

    Raises:
        UserError: for a bad source, or a work folder of other settings.
    """
    config = config or dkn_config()
    if not config.model.freeze or not config.train.vectors:
        raise UserError("needs frozen pretrained vectors", "model.freeze", "The baseline is to have the same ones")
    source = source / "raw_train.txt" if source.is_dir() else source
    rows = read_dkn(source)
    news = dkn_articles(rows)
    impressions = dkn_impressions(rows, news)
    settings = {"config": config.to_dict(), "folds": folds, "impressions": len(impressions)}
    if (work / "settings.json").is_file():
        if read_json(work / "settings.json") != settings:
            raise UserError("holds folds of other settings", work, "Choose another folder")
    else:
        write_json(work / "settings.json", settings)
    done: list[list[_Fold]] = []
    for seed in seeds:
        parts = user_folds(impressions, folds, seed)
        done.append([])
        for number in range(folds):
            home = work / f"seed{seed}-fold{number}"
            if not (home / "result.json").is_file():
                _run_fold(home, news, parts, number, seed, config, log)
            done[-1].append(_read_fold(home))
            if home.joinpath("run").exists():
                shutil.rmtree(home / "run")  # thirty megabytes a fold, and repeatable
    return _table(done, resamples)


def _run_fold(
    home: Path,
    news: list[News],
    parts: list[list[Impression]],
    number: int,
    seed: int,
    config: NrmsConfig,
    log: Callable[[str], None],
) -> None:
    data = home / "data"
    rest = [i for place, part in enumerate(parts) if place != number for i in part]
    inner = user_folds(rest, 10, seed)
    for name, rows in (("test", parts[number]), ("dev", inner[0]), ("train", [i for p in inner[1:] for i in p])):
        write_part(data / name, news, rows)
    config = replace(config, train=replace(config.train, seed=seed))
    log(f"seed {seed}, fold {number}")
    train(data, home / "run", config, overwrite=True, device="cpu", log=log)
    loaded = load_model_dir(home / "run")
    test = open_log(data / "test", loaded.vocabulary, loaded.config)
    train_log = open_log(data / "train", loaded.vocabulary, loaded.config)
    scores = {
        "NRMS": score_log(loaded.model, test).astype(np.float64),
        "mean of titles, same vectors": mean_of_titles(title_vectors(loaded.model, test.titles), test),
        "popularity": popularity(train_log, test),
        "random": chance(test, seed),
    }
    results = {name: _metrics(values, test) for name, values in scores.items()}
    kept = np.flatnonzero(results["NRMS"].kept)
    columns = {name: [_columns(r)[m].tolist() for m in METRICS] for name, r in results.items()}
    held = {
        "ids": [test.impression_id(int(i)) for i in kept],
        "users": [test.users[test.user_of[i]] for i in kept],
        "values": columns,
    }
    write_json(home / "result.json", held)
    means = {name: r.means()["auc"] for name, r in results.items()}
    log(f"seed {seed}, fold {number}: AUC " + ", ".join(f"{name} {value:.4f}" for name, value in means.items()))
    shutil.rmtree(data)


def _metrics(scores: Floats, log: ClickLog) -> RankingScores:
    return ranking_metrics(scores, log.known_labels(), log.candidates.lengths)


def _columns(result: RankingScores) -> dict[str, Floats]:
    return {"auc": result.auc, "mrr": result.mrr, "ndcg@5": result.ndcg[5], "ndcg@10": result.ndcg[10]}


def _read_fold(home: Path) -> _Fold:
    held = read_json(home / "result.json")
    return _Fold(held["ids"], held["users"], {n: np.array(v).T for n, v in held["values"].items()})


def _table(done: list[list[_Fold]], resamples: int) -> list[dict[str, Any]]:
    """One row per method, with means over seeds and intervals over users, and one per difference to NRMS."""
    averages: dict[str, Floats] = {}
    users: list[str] = []
    for method in METHODS:
        total: Floats | None = None
        for folds in done:
            ids = [i for fold in folds for i in fold.ids]
            order = np.argsort(np.array(ids))
            values = np.concatenate([fold.values[method] for fold in folds])[order]
            total = values if total is None else total + values
            users = np.array([u for fold in folds for u in fold.users])[order].tolist()
        assert total is not None
        averages[method] = total / len(done)
    rows = []
    for method in METHODS:
        intervals = {
            m: bootstrap_interval(averages[method][:, i], clusters=users, resamples=resamples)
            for i, m in enumerate(METRICS)
        }
        rows.append(_row(method, intervals))
    for method in METHODS[1:3]:
        intervals = {
            m: paired_bootstrap(averages["NRMS"][:, i], averages[method][:, i], clusters=users, resamples=resamples)
            for i, m in enumerate(METRICS)
        }
        rows.append(_row(f"NRMS less {method}", intervals))
    return rows


def _row(name: str, intervals: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "metrics": {m: interval.estimate for m, interval in intervals.items()},
        "interval": {m: [interval.low, interval.high] for m, interval in intervals.items()},
    }
