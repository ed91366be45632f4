"""What is learnt from the built-in sample, over seeds, and what the peer learns from the same files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from latentlab_shared.runs import RunFolder
from nrms.bench.measure import Result, result
from nrms.bench.work import run_peer
from nrms.evaluation.evaluate import evaluate
from nrms.sample.generator import SampleConfig, sample_config, write_sample
from nrms.training.trainer import train

Log = Callable[[str], None]
_PEER = {"epochs": 6, "words": 64, "heads": 4, "head_dim": 16, "query": 64, "title": 20, "batch": 64, "rate": 2e-3}


def measure_quality(folder: Path, seeds: Sequence[int], quick: bool, peer: Path | None, log: Log) -> list[Result]:
    """AUC on the dev part after the last epoch, and the processor time of the whole run, validation included."""
    ours: list[tuple[float, float, float]] = []  # AUC, nDCG@10, CPU-s
    beside: dict[str, list[float]] = {"popularity": [], "mean of titles, same vectors": []}  # AUC
    theirs: list[tuple[float, float, float]] = []
    sample = SampleConfig(articles=120, users=20, train=60, dev=20, candidates=8) if quick else SampleConfig()
    for seed in seeds:
        data = folder / f"sample-{seed}"
        write_sample(data, replace(sample, seed=seed))
        began = time.process_time()
        result_of = train(data, folder / f"run-{seed}", sample_config(seed), overwrite=True, device="cpu")
        seconds = time.process_time() - began
        last = [line for line in RunFolder.read(result_of.run).metrics() if "dev_auc" in line][-1]
        ours.append((last["dev_auc"], last["dev_ndcg@10"], seconds))
        for row in evaluate(result_of.run, data, resamples=10).rows:
            if row["name"] in beside:
                beside[row["name"]].append(row["metrics"]["auc"])
        log(f"seed {seed}: AUC {ours[-1][0]:.4f} in {seconds:.0f} CPU-s")
        if peer is not None and not theirs:  # it takes ten times as long: one seed
            found = run_peer(peer, data, {**_PEER, "seed": seed})
            theirs.append((found["auc"], found["ndcg@10"], found["cpu"]))
            log(f"seed {seed}: recommenders AUC {found['auc']:.4f} in {found['cpu']:.0f} CPU-s")
    rows = _rows("sample", ours, 0.85, 90.0, f"{len(seeds)} seeds, dev part, after 6 epochs")
    how = f"{len(seeds)} seeds, dev part"
    rows += [result(f"sample, {name}, AUC, mean", float(np.mean(values)), "", how) for name, values in beside.items()]
    if theirs:
        rows += _rows("sample, recommenders 1.2.1", theirs, None, None, "first seed, same files and sizes, rate 2e-3")
    return rows


def _rows(
    name: str, values: list[tuple[float, float, float]], auc: float | None, seconds: float | None, how: str
) -> list[Result]:
    aucs, gains, spent = np.array(values).T
    return [
        result(f"{name}, AUC, mean", float(aucs.mean()), "", how, auc, "more"),
        result(f"{name}, AUC, worst seed", float(aucs.min()), "", how, auc, "more"),
        result(f"{name}, nDCG@10, mean", float(gains.mean()), "", how),
        result(f"{name}, processor time of a run, worst seed", float(spent.max()), "CPU-s", how, seconds),
    ]
