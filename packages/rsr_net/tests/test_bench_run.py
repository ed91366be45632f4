"""The benchmark runs, and its figures are of the right kind; no figure is compared with a clock here."""

import json
from pathlib import Path

import pytest

from latentlab_shared.errors import UserError
from rsr_net.bench import run_bench
from rsr_net.sample import generate


def test_every_row_has_the_house_form_and_the_files_are_written(tmp_path: Path) -> None:
    rows = run_bench(articles=16, encoder="tiny-bart", repeats=1, output=tmp_path)
    assert all(set(row) == {"name", "value", "unit", "against", "target", "ok"} for row in rows)
    values = {row["name"]: row["value"] for row in rows}
    assert values["epoch_encoding"] > values["epoch_cached"] > 0
    held = json.loads((tmp_path / "bench.json").read_text())
    assert held["rows"][0]["name"] == "epoch_cpu_ratio" and held["rows"][0]["metrics"]["target"] == 100
    assert "16 built-in articles" in held["data"]
    assert [d["steps"] for d in held["depths"]] == [d["n"] * d["T"] * d["segments"] for d in held["depths"]]
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_articles_is_measured_and_too_few_are_refused(tmp_path: Path) -> None:
    rows = [json.dumps({"id": e.id, "article": e.article, "highlights": list(e.highlights)}) for e in generate(40)]
    (tmp_path / "news.jsonl").write_text("\n".join(rows))
    data = str(tmp_path / "news.jsonl")
    run_bench(articles=32, encoder="tiny-bart", repeats=1, output=tmp_path, data=data)
    held = json.loads((tmp_path / "bench.json").read_text())
    assert "32 articles of news.jsonl" in held["data"] and held["command"].endswith("--data DATA/news.jsonl")
    with pytest.raises(UserError, match="holds 20 articles"):
        run_bench(articles=20, encoder="tiny-bart", data=data)
