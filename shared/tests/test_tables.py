import json

import pytest

from latentlab_shared.errors import UserError
from latentlab_shared.tables import fill

ROWS = [
    {"name": "a", "metrics": {"r2": 0.1234}, "interval": {"r2": [0.1, 0.2]}},
    {"name": "b", "metrics": {"r2": 12.0}},
]
RESULTS = [
    {"name": "speed", "value": 6.0, "unit": "x", "against": "plain", "target": ">=5", "ok": True},
    {"name": "seconds", "value": 1.0, "unit": "s", "against": None, "target": None, "ok": None},
]


def readme(tmp_path, head):
    facts = {"command": "tool bench", "data": "some", "commit": "c0ffee", "date": "2026-01-01", "machine": "m"}
    (tmp_path / "t.json").write_text(json.dumps({**facts, "seeds": [0], "rows": ROWS, "results": RESULTS}))
    path = tmp_path / "README.md"
    path.write_text(f"before\n<!-- table: {head} -->\nold\n<!-- end table -->\nafter\n")
    return path


def test_a_table_is_written_from_its_rows(tmp_path):
    path = readme(tmp_path, "t.json columns: name, r2")
    text = fill(path)
    assert "| a | 0.123 [0.100, 0.200] |" in text and "| b | 12.0 |" in text and "old" not in text
    assert "`tool bench` · data: some · commit c0ffee · 2026-01-01 · m · seeds 0" in text
    path.write_text(text)
    assert fill(path) == text, "filling twice changes nothing"


def test_a_table_of_the_results_that_have_a_target(tmp_path):
    text = fill(readme(tmp_path, "t.json#targets columns: name, value, ok"))
    assert "| speed | 6.000 | yes |" in text and "seconds" not in text


@pytest.mark.parametrize("head", ["t.json columns: name, rouge", "t.json#other columns: name", "missing.json"])
def test_a_table_that_cannot_be_written_says_why(tmp_path, head):
    with pytest.raises(UserError, match="rouge|other|missing.json"):
        fill(readme(tmp_path, head))


def test_a_figure_in_a_sentence_is_filled_and_a_missing_one_is_named(tmp_path):
    facts = dict.fromkeys(("command", "data", "commit", "date", "machine"), "x")
    held = {**facts, "rows": [{"name": "refiner", "metrics": {"r2": 0.5484, "text": "no"}}]}
    (tmp_path / "t.json").write_text(json.dumps(held))
    readme = tmp_path / "README.md"
    readme.write_text("R² <!-- figure: t.json; refiner; r2 -->9<!-- end figure --> | next\n")
    assert fill(readme) == "R² <!-- figure: t.json; refiner; r2 -->0.548<!-- end figure --> | next\n"
    for row, metric in (("other", "r2"), ("refiner", "auc"), ("refiner", "text")):
        readme.write_text(f"<!-- figure: t.json; {row}; {metric} -->1<!-- end figure -->")
        with pytest.raises(UserError, match="has no number"):
            fill(readme)
