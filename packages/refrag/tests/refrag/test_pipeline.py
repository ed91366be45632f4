"""Runs from end to end, in few steps: folders that hold what is needed, and answers from them."""

import json

import pytest
from test_cli import refrag

from refrag.pipeline import RunSettings, train_run
from refrag.sample.facts import generate
from refrag.training.loop import LoopSettings

FEW = LoopSettings(steps=3, batch_size=2, checkpoint_every=1)
SMALL = ["--set", "loop.steps=3", "--set", "loop.batch_size=2", "--set", "examples=20", "--set", "gate_examples=2"]


@pytest.mark.parametrize("stage", ["alignment", "reconstruction", "pretraining"])
def test_every_stage_leaves_a_model_to_go_on_from(tmp_path, stage):
    settings = RunSettings(stage=stage, examples=8, loop=FEW)
    results = train_run(tmp_path / "one", settings)
    assert results["first"]["loss"] > 0 and len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()) == 3
    again = RunSettings(stage="reconstruction", examples=8, loop=FEW, longest=2, model=results["model"])
    assert train_run(tmp_path / "two", again)["last"]["loss"] > 0


def test_train_then_predict(tmp_path):
    run = tmp_path / "run"
    out, _ = refrag("train", *SMALL, "-o", run, "--json")
    assert json.loads(out)["model"] == str(run / "model")
    for name in ("config.json", "environment.json", "metrics.jsonl", "results.json", "README.md", "model/refrag.json"):
        assert (run / name).is_file(), name
    example = generate(1, 5)[0]
    documents = []
    for doc in example.docs:
        (tmp_path / f"{doc.id}.txt").write_text(doc.text)
        documents += ["--doc", tmp_path / f"{doc.id}.txt"]
    given = (example.question, *documents, "--model", run, "--expand", "0.5", "--max-new-tokens", 8)
    out, _ = refrag("predict", *given, "--json")
    answer = json.loads(out)
    assert {slot["doc"] for slot in answer["slots"]} == {doc.id for doc in example.docs}
    assert {citation["doc"] for citation in answer["citations"]} <= {doc.id for doc in example.docs}
    out, _ = refrag(
        "evaluate", "--model", run, "--limit", 4, "--compression", 8, "--context", 24, "--target", 8, "--json"
    )
    (row,) = json.loads(out)["results"]
    assert row["name"] == "k=8" and row["tokens"] > 10 and row["full"] > 0
    out, _ = refrag("predict", *given, "--explain")
    assert f"{answer['window_length']} positions in place of {answer['full_length']}" in out
    again, _ = refrag("train", "--resume", run, "--json")
    assert json.loads(again)["model"] == str(run / "model")
    _, err = refrag("train", *SMALL, "-o", run, code=2)
    assert "not empty" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--stage", "no"], "no stage"),
        (["train", "--data", "a.txt"], "questions are of the sample only"),
        (["train", "--stage", "alignment", "--data", "absent.txt"], "no such file"),
        (["train", "--set", "loop.stepz=3"], "unknown key loop.stepz"),
        (["predict", "Why?", "--doc", "absent.txt", "--model", "x"], "no such file"),
        (["evaluate", "--model", "nowhere"], "no model here"),
        (["bench", "no"], "no benchmark"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    out, err = refrag(*arguments, code=2)
    assert out == "" and message in err.lower() and err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []
