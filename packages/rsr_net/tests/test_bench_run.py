"""The benchmark runs, and its figures are of the right kind; no figure is compared with a clock here."""

import json
from pathlib import Path

from rsr_net.bench import run_bench


def test_every_row_has_the_house_form_and_the_files_are_written(tmp_path: Path) -> None:
    rows = run_bench(articles=16, encoder="tiny-bart", repeats=1, output=tmp_path)
    assert all(set(row) == {"name", "value", "unit", "against", "target", "ok"} for row in rows)
    values = {row["name"]: row["value"] for row in rows}
    assert values["epoch_encoding"] > values["epoch_cached"] > 0
    held = json.loads((tmp_path / "bench.json").read_text())
    assert held["results"][0]["name"] == "epoch_cpu_ratio" and "16 built-in articles" in held["data"]
    assert [d["steps"] for d in held["depths"]] == [d["n"] * d["T"] * d["segments"] for d in held["depths"]]
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
