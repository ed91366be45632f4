"""The benchmark on sizes that take seconds: its rows, and that it refuses ways of decoding that disagree."""

import pytest

from latentlab_shared.errors import RunFailed
from seq2seq_keras import bench


@pytest.fixture
def small(monkeypatch):
    for name, value in (("_VOCABULARY", 60), ("_SOURCE", 6), ("_WORDS", 3), ("_BATCH", 2), ("_ITEMS", 50)):
        monkeypatch.setattr(bench, name, value)


@pytest.mark.slow
def test_every_row_has_its_figures(small):
    rows = {row["name"]: row["metrics"] for row in bench.run_bench(repeats=1, parts=("sample", "decode", "beam"))}
    assert [name.split(":")[0] for name in rows] == [
        "generate 50 built-in items",
        *("full, decode 1", "full, decode 2", "full, beam 4 / greedy, 2 texts"),
        *("small, decode 1", "small, decode 2", "small, beam 4 / greedy, 2 texts"),
    ]
    for name, metrics in rows.items():
        assert {"value", "unit", "against", "target", "ok"} <= set(metrics)
        if "decode" in name:
            assert metrics["same_ids"] and metrics["value"] > 1 and metrics["wall_ratio"] > 1


@pytest.mark.slow
def test_other_ids_end_the_benchmark(small, monkeypatch):
    monkeypatch.setattr(bench.SeedDecoder, "decode_sequence", lambda self, text, ext: [0])
    with pytest.raises(RunFailed, match="other ids"):
        bench.run_bench(repeats=1, parts=("decode",))
