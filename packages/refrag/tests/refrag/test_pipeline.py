"""Runs from end to end, in few steps: folders that hold what is needed, and answers from them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import refrag

from refrag.data.questions import write_questions
from refrag.model.documents import Doc
from refrag.pipeline import evaluate_questions, train_run
from refrag.sample.facts import generate
from refrag.training.settings import LoopSettings, RunSettings

FEW = LoopSettings(steps=3, batch_size=2, checkpoint_every=1)
SMALL = ["--set", "loop.steps=3", "--set", "loop.batch_size=2", "--set", "examples=20", "--set", "gate_examples=2"]


@pytest.mark.parametrize("stage", ["alignment", "reconstruction", "pretraining"])
def test_every_stage_leaves_a_model_to_go_on_from(tmp_path, stage):
    settings = RunSettings(stage=stage, examples=8, loop=FEW)
    results = train_run(tmp_path / "one", settings)
    assert results["first"]["loss"] > 0 and len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()) == 3
    again = RunSettings(stage="reconstruction", examples=8, loop=FEW, longest=2, model=results["model"])
    assert train_run(tmp_path / "two", again)["last"]["loss"] > 0


def test_losses_can_go_elsewhere_too(tmp_path):
    """Off by default; TensorBoard's file holds every step; a tracker that is not there leaves nothing behind."""
    pytest.importorskip("tensorboard")
    settings = RunSettings(stage="reconstruction", examples=8, longest=2, loop=FEW)
    train_run(tmp_path / "quiet", settings)
    assert not (tmp_path / "quiet" / "tensorboard").exists()
    train_run(tmp_path / "told", settings, track=["tensorboard"])
    assert sum(path.stat().st_size for path in (tmp_path / "told" / "tensorboard").iterdir()) > 100
    _, err = refrag("train", *SMALL, "--track", "paper", "-o", tmp_path / "none", code=2)
    assert "unknown tracker" in err and not (tmp_path / "none").exists()


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
    sizes = ("--compression", 8, "--context", 24, "--target", 8)
    out, _ = refrag("evaluate", "--task", "perplexity", "--model", run, "--limit", 4, *sizes, "--json")
    (row,) = json.loads(out)["results"]
    assert row["name"] == "k=8" and row["tokens"] > 10 and row["full"] > 0
    out, _ = refrag("predict", *given, "--explain")
    assert f"{answer['window_length']} positions in place of {answer['full_length']}" in out
    for option in (("--seed", 5), ("--set", "loop.steps=3"), ("-o", tmp_path / "else")):
        assert "keeps its own data and settings" in refrag("train", "--resume", run, *option, code=2)[1]
    again, _ = refrag("train", "--resume", run, "--json")
    assert json.loads(again)["model"] == str(run / "model")
    _, err = refrag("train", *SMALL, "-o", run, code=2)
    assert "not empty" in err
    out, _ = refrag("evaluate", "--model", run, "--limit", 3, "--expand", 0.3, "-o", tmp_path / "tables", "--json")
    names = [row["name"] for row in json.loads(out)["results"]]
    assert names[:4] == ["no documents", "all tokens", "vectors only", "gate 0.3"] and len(names) == 10
    files = json.loads(out)["files"]
    assert (
        all(Path(path).stat().st_size > 500 for path in files.values())
        and "gate 0.3" in (tmp_path / "tables" / "questions" / "report.html").read_text()
        and not (run / "report.html").exists()
    )
    table = json.loads((tmp_path / "tables" / "questions.json").read_text())
    assert table["command"].endswith("--expand 0.3 --limit 3") and len(table["rows"]) == 10
    out, _ = refrag("demo", "--model", run, "--questions", 2, "--json")
    assert len(json.loads(out)["answers"]) == 2


def test_questions_from_a_file_and_parts_from_folders(tmp_path):
    """A decoder from a folder, an encoder made here, questions of a file: what real training is."""
    examples = generate(6, 2)
    write_questions(tmp_path / "q.jsonl", examples)
    first = train_run(tmp_path / "one", RunSettings(examples=8, gate_examples=2, loop=FEW))
    settings = RunSettings(
        data=str(tmp_path / "q.jsonl"),
        decoder=str(tmp_path / "one" / "model" / "decoder"),
        decoder_training="full",
        gate_examples=2,
        loop=FEW,
    )
    results = train_run(tmp_path / "two", settings)
    assert results["last"]["loss"] > 0 and results["gate"]["last"] >= 0 and first["model"] != results["model"]
    model, long = Path(results["model"]), Doc("long", "The mill stands by the river. " * 400)
    with_long = [replace(example, docs=(*example.docs, long)) for example in examples[:2]]
    write_questions(tmp_path / "fits_in_part.jsonl", [with_long[0], *examples[:2]])
    rows = evaluate_questions(model, str(tmp_path / "fits_in_part.jsonl"))
    assert len(rows) == 10 and rows[0]["k"] == 8
    assert all((row["questions"], row["left_out"]) == (2, 1) for row in rows)
    write_questions(tmp_path / "too_long.jsonl", with_long)
    _, err = refrag("evaluate", "--model", model, "--data", tmp_path / "too_long.jsonl", code=2)
    assert "more than the decoder's" in err and err.count("\n") == 1
    (tmp_path / "empty.jsonl").write_text("")
    _, err = refrag("evaluate", "--model", model, "--data", tmp_path / "empty.jsonl", code=2)
    assert "there are no questions" in err and err.count("\n") == 1


def test_a_run_that_cannot_go_on_says_so_first(tmp_path):
    """Before any step; what it lacks is named."""
    (tmp_path / "config.json").write_text("{}")
    for held, said in (("{", "environment.json:1: not valid JSON"), ("{}", "model: the model that the run began with")):
        (tmp_path / "environment.json").write_text(held)
        _, err = refrag("train", "--resume", tmp_path, code=2)
        assert said in err and err.count("\n") == 1
    assert "--overwrite" in err
    (tmp_path / "environment.json").unlink()
    for verb in ("train", "pretrain-decoder"):
        assert "environment.json: there is no such file" in refrag(verb, "--resume", tmp_path, code=2)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--stage", "no"], "no stage"),
        (["train", "--data", "a.jsonl"], "no such file"),
        (["train", "--set", "examples=0"], "examples"),
        (["train", "--set", "gate_examples=0"], "gate_examples: must be at least 1"),
        (["train", "--set", "gate_margin=.nan"], "gate_margin"),
        (["train", "--set", "max_tokens=0"], "max_tokens"),
        (["train", "--set", "limit=0"], "limit"),
        (["train", "--set", "expanded=1.5"], "expanded: must be in [0, 1]"),
        (["train", "--set", "whole=-0.1"], "whole"),
        (["train", "--set", "compression=1025"], "compression: must be a whole number from 1 to 1024"),
        (["train", "--set", "rates=[4,2000]"], "rates"),
        (["train", "--set", "weights.kld=-1"], "weights.kld"),
        (["train", "--set", "loop.seed=-1"], "seed"),
        (["predict", "Why?", "--doc", "short.txt", "--compression", "2000"], "--compression"),
        (["evaluate", "--compression", "2000"], "--compression"),
        (["evaluate", "--name", "../esc", "-o", "out"], "no name of a file"),
        (["evaluate", "--name", "a/b", "-o", "out"], "no name of a file"),
        (["evaluate", "--name", "a.json", "-o", "out"], "no name of a file"),
        (["evaluate", "--name", "a\\b", "-o", "out"], "no name of a file"),
        (["evaluate", "--name", "esc"], "give -o folder too"),
        (["train", "--set", "decoder_training=some"], "decoder_training"),
        (["train", "--set", "training_model=xyz"], "names no parts"),
        (["train", "--stage", "reconstruction", "--data", "short.txt"], "no text has"),
        (["train", "--stage", "alignment", "--data", "absent.txt"], "no such file"),
        (["train", "--set", "loop.stepz=3"], "unknown key loop.stepz"),
        (["predict", "Why?", "--doc", "absent.txt", "--model", "x"], "no such file"),
        (["predict", " ", "--doc", "absent.txt", "--model", "x"], "the question is empty"),
        (["predict", "Why?", "--doc", "/dev/zero", "--model", "x"], "no file"),
        (["evaluate", "--model", "nowhere"], "no model here"),
        (["evaluate", "--task", "speed"], "no task"),
        (["evaluate", "--task", "perplexity"], "no model here"),
        (["serve", "-q"], "no model here"),
        (["export"], "no model here"),
        (["demo", "--model", "nowhere"], "no model here"),
        (["bench", "no"], "no benchmark"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Too short.\n")
    out, err = refrag(*arguments, code=2)
    assert out == "" and message in err.lower() and err.strip().count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
