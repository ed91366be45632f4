"""The benchmarks, at sizes that say nothing about speed: what they count must be right."""

import json
from pathlib import Path

import pytest
from refrag_tokenizers import SENTENCES, tokenizer
from test_cli import refrag

from refrag.bench.align import bench_align
from refrag.bench.memory import bench_memory
from refrag.bench.random_models import Sizes
from refrag.bench.training import bench_step
from refrag.bench.ttft import bench_ttft

SMALL = {"width": 16, "layers": 1, "encoder_width": 32, "encoder_layers": 1}


def test_ttft_counts_positions_and_bytes():
    rows = bench_ttft(Sizes(context=512, **SMALL), rates=(8, 16), repeats=1)
    named = {row["name"]: row for row in rows}
    full = named["full"]
    # 512 tokens in documents, some blanks at their ends left out; the rest is what stands around them.
    for k in (8, 16):
        row = named[f"k={k}, cached"]
        saved = full["positions"] - row["positions"]
        chunks = saved / (k - 1)
        assert 512 / k * 0.9 <= chunks <= 512 / k * 1.1
        assert row["kv_ratio"] == pytest.approx(full["positions"] / row["positions"], rel=1e-9)
        assert named[f"k={k}, not cached"]["positions"] == row["positions"]
        assert named[f"k={k}, cached, a tenth expanded"]["positions"] > row["positions"]
        assert row["formula"] > row["positions_ratio"] > 1
        assert row["next_ms"] > 0 and row["positions_ratio"] > row["next_formula"] > 1
        assert row["tokens_per_s"] > 0
    assert full["ratio"] == full["tokens_ratio"] == 1 and named["k=16, cached"]["target"] == 22.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_is_that_of_processes():
    full, row = bench_memory(Sizes(context=2048, **SMALL), rates=(16,), repeats=1)
    assert full["positions"] > 10 * row["positions"] > 0 and full["ratio"] == 1
    assert full["peak_MB"] > row["peak_MB"] >= 0 and full["peak_MB"] > full["kv_MB"]
    assert row["kv_ratio"] == pytest.approx(full["positions"] / row["positions"], rel=1e-9)


def test_both_ways_of_a_step_have_one_loss():
    fast, slow, ratio = bench_step(anchors=5, width=16, layers=1, repeats=1)
    assert fast["loss"] == pytest.approx(slow["loss"], rel=1e-4) and fast["loss"] > 0
    assert ratio["value"] == pytest.approx(slow["value"] / fast["value"])


def test_align_finds_no_faults(tmp_path):
    home = tmp_path / "tokenizers"
    for family in ("wordpiece", "gpt2"):
        tokenizer(family).save_pretrained(home / family)
    (tmp_path / "text.txt").write_text(" ".join(SENTENCES))
    options = {"chars": 300, "cases": 5, "repeats": 1, "references": 1, "seed": 0}
    rows, pairs = bench_align(home, tmp_path / "text.txt", **options, log=lambda line: None)
    named = {row["name"]: row for row in rows}
    assert named["spurious_anchors"]["value"] == named["missing_anchors"]["value"] == 0
    assert len(pairs) == 3 and sum("table_s" in pair for pair in pairs) == 1
    assert all(pair["tokens"] > 0 and pair["anchors"] > 10 for pair in pairs)


def test_bench_writes_its_tables(tmp_path):
    home = tmp_path / "data"
    for family in ("wordpiece", "gpt2"):
        tokenizer(family).save_pretrained(home / "tokenizers" / family)
    (home / "wikitext2").mkdir()
    (home / "wikitext2" / "valid.txt").write_text(" ".join(SENTENCES))
    small = ("--chars", 200, "--cases", 0, "--references", 0, "--repeats", 1)
    refrag("bench", "align", "--data-dir", home, *small, "-o", tmp_path / "out", "--json")
    table = json.loads((tmp_path / "out" / "align.json").read_text())
    assert {row["name"] for row in table["rows"]} >= {"tokens_per_second", "spurious_anchors"}
    assert len(json.loads((tmp_path / "out" / "align_pairs.json").read_text())["rows"]) == 3
