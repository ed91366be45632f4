"""From finished folds to tables: articles pooled over folds, averaged over seeds, bootstrapped over articles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.metrics.classification import brier_score, expected_calibration_error, roc_auc
from latentlab_shared.metrics.statistics import Interval, bootstrap_interval, paired_bootstrap
from latentlab_shared.metrics.summarization import RougeScorer
from latentlab_shared.provenance import write_table
from rsr_net.evaluation.vectors import VectorScores, r2, r2_difference, r2_interval

Doubles = NDArray[np.float64]
Done = Sequence[dict[str, Any]]
Row = dict[str, Any]

REFINED = "refiner"
SEED_NETWORK = "the seed's network, as written"
SELECTED = "selector around the refined state"
_BASELINES = (
    "mean of the training summaries",
    "document",
    "lead",
    "ridge [document]",
    "ridge [document, lead]",
    "MLP of as many numbers",
    SEED_NETWORK,
    "refiner, step 0",
    "refiner, step 1",
    "refiner, 3x the trained depth",
)


def summarise(done: Done) -> dict[str, Any]:
    """All tables of finished folds, each the result of ``folds.run_fold`` with its fold and seed."""
    return {
        "embedding": _embedding(done),
        "differences": _differences(done),
        "steps": _steps(done),
        "convergence": _convergence(done),
        "extraction": _extraction(done),
        "confidence": _confidence(done),
        "stopping": _stopping(done),
        "about": {
            "articles": len({i for one in done for i in one["ids"]}),
            "folds": len({one["fold"] for one in done}),
            "seeds": sorted({one["seed"] for one in done}),
            "numbers": done[0]["numbers"],
            "rouge": RougeScorer(("rouge1", "rouge2", "rougeLsum"), split=str.splitlines).signature,
        },
    }


def write_tables(
    output_dir: Path, tables: dict[str, Any], encoder: str, seeds: Sequence[int], command: str
) -> list[Path]:
    """Write each table as ``<table>_<encoder>.json``, from which the README's tables are made.

    Args:
        output_dir: the folder.
        tables: what ``folds.run_folds`` returned.
        encoder: its name, for the files' names.
        seeds: those of the networks.
        command: what makes the tables again.
    """
    about = tables["about"]
    data = f"CNN/DailyMail, {about['articles']} full-length articles in {about['folds']} folds, encoder {encoder}"
    written = []
    for name, rows in tables.items():
        if name != "about":
            path = output_dir / f"{name}_{encoder.replace('/', '-')}.json"
            write_table(path, rows, command=command, data=data, seeds=seeds, about=about)
            written.append(path)
    return written


def pooled(done: Done, *keys: str | int) -> Doubles:
    """A per-article figure of all folds, averaged over seeds; articles in a fixed order, (N,)."""
    by_seed: dict[int, list[tuple[str, float]]] = {}
    for one in done:
        value: Any = one
        for key in keys:
            value = value[key]
        by_seed.setdefault(one["seed"], []).extend(zip(one["ids"], value, strict=True))
    # JSON has no NaN: what could not be measured comes back as None.
    mean: Doubles = np.array([[v for _, v in sorted(p)] for p in by_seed.values()], dtype=np.float64).mean(0)
    return mean


def _scores(done: Done, *keys: str | int) -> VectorScores:
    return VectorScores(**{name: pooled(done, *keys, name) for name in VectorScores.__dataclass_fields__})


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _embedding(done: Done) -> list[Row]:
    rows = []
    for name in done[0]["embedding"]:
        scores = _scores(done, "embedding", name)
        intervals = {"r2": _ends(r2_interval(scores.error, scores.spread))}
        intervals["cosine"] = _ends(bootstrap_interval(scores.cosine, resamples=2000))
        intervals["r@1_centred"] = _ends(bootstrap_interval(scores.hit_centred, resamples=2000))
        rows.append({"name": name, "metrics": scores.means(), "interval": intervals})
    return rows


def _differences(done: Done) -> list[Row]:
    """The refiner minus each baseline, with paired intervals."""
    ours = _scores(done, "embedding", REFINED)
    rows = []
    for name in _BASELINES:
        theirs = _scores(done, "embedding", name)
        gains = {
            "r2": r2_difference(ours.error, theirs.error, ours.spread),
            "cosine": paired_bootstrap(ours.cosine, theirs.cosine, resamples=2000),
            "r@1_centred": paired_bootstrap(ours.hit_centred, theirs.hit_centred, resamples=2000),
            "r@1_of_500": paired_bootstrap(ours.hit_500, theirs.hit_500, resamples=2000)
            if not np.isnan(ours.hit_500).any()
            else None,
        }
        rows.append(
            {
                "name": f"refiner - {name}",
                "metrics": {key: gain.estimate for key, gain in gains.items() if gain is not None},
                "interval": {key: _ends(gain) for key, gain in gains.items() if gain is not None},
            }
        )
    return rows


def _steps(done: Done) -> list[Row]:
    """Every step to the trained depth, then twice and three times that."""
    start, depth, rows = _scores(done, "steps", 0), done[0]["depth"], []
    for k in (*range(depth + 1), 2 * depth, 3 * depth):
        scores = _scores(done, "steps", k)
        metrics = {"step": k, **scores.means(), "improved": float((scores.error < start.error).mean())}
        if k:
            metrics["residual"] = float(np.mean([np.mean(one["residuals"][k - 1]) for one in done]))
        gain = r2_difference(scores.error, start.error, scores.spread)
        rows.append(
            {
                "name": f"step {k}",
                "metrics": {**metrics, "r2_gain": gain.estimate},
                "interval": {"r2_gain": _ends(gain)} if k else {},
            }
        )
    return rows


def _convergence(done: Done) -> list[Row]:
    """How strongly a step contracts where the steps end, and which step validation would choose."""
    radius = np.concatenate([one["radius"] for one in done])
    chosen = np.array([one["best_step"] for one in done], dtype=np.float64)

    def row(name: str, values: Doubles, **more: float) -> Row:
        spread = {"median": float(np.median(values)), "smallest": float(values.min()), "largest": float(values.max())}
        return {"name": name, "metrics": {**spread, **more}}

    return [
        row("spectral radius at the last state", radius, share_below_1=float((radius < 1).mean())),
        row("step chosen on validation", chosen),
    ]


def _extraction(done: Done) -> list[Row]:
    names = list(done[0]["rouge"])
    lsum = {name: pooled(done, "rouge", name, "rougeLsum") for name in names}
    lead, document, true = (lsum[n] for n in ("LEAD-3", "nearest to the document", "nearest to the true summary"))
    rows = []
    for name in names:
        row: Row = {"name": name, "metrics": {}, "interval": {}}
        for metric in ("rouge1", "rouge2", "rougeLsum", "sentences"):
            row["metrics"][metric] = float(pooled(done, "rouge", name, metric).mean())
        for label, other in (("above_lead3", lead), ("above_document", document)):
            gain = paired_bootstrap(lsum[name], other, resamples=2000)
            row["metrics"][label], row["interval"][label] = gain.estimate, _ends(gain)
        row["metrics"]["share_of_gap"] = float((lsum[name].mean() - lead.mean()) / (true.mean() - lead.mean()))
        rows.append(row)
    return rows


def _confidence(done: Done) -> list[Row]:
    """Per seed over all folds' articles; the interval is over articles, of the first seed."""
    rows = []
    for seed in sorted({one["seed"] for one in done}):
        mine = [one for one in done if one["seed"] == seed]
        probability = np.concatenate([one["quality"] for one in mine])
        outcome = np.concatenate([one["event"] for one in mine]).astype(float)
        pairs = np.stack([probability, outcome], 1)
        auc = bootstrap_interval(pairs, lambda drawn: roc_auc(drawn[:, 1], drawn[:, 0]), resamples=500)
        metrics = {
            "ece": expected_calibration_error(probability, outcome, bins=10),
            "auc": auc.estimate,
            "brier": brier_score(probability, outcome),
            "rate": float(outcome.mean()),
        }
        rows.append({"name": f"seed {seed}", "metrics": metrics, "interval": {"auc": _ends(auc)}})
    return rows


def _stopping(done: Done) -> list[Row]:
    every = _scores(done, "embedding", REFINED)
    depth = done[0]["depth"]
    rows: list[Row] = [{"name": "all steps", "metrics": {"r2": r2(every.error, every.spread), "steps": float(depth)}}]
    for tol in done[0]["stopping"]:
        error, used = (pooled(done, "stopping", tol, key) for key in ("error", "steps"))
        lost = r2_difference(every.error, error, every.spread)
        rows.append(
            {
                "name": f"residual below {tol}",
                "metrics": {
                    "r2": r2(error, every.spread),
                    "steps": float(used.mean()),
                    "saved": 1 - float(used.mean()) / depth,
                    "r2_lost": lost.estimate,
                },
                "interval": {"r2_lost": _ends(lost)},
            }
        )
    return rows
