"""The command line: what it prints, writes and refuses; as a process where that makes a difference."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from latentlab_shared.cli import run
from seq2seq_keras.cli import app
from seq2seq_keras.sample import generate

TINY = ["model.units=16", "model.embedding_dim=16", "train.epochs=1", "data.min_count=2"]
FAST = ["--limit", "60", *(word for setting in TINY for word in ("--set", setting))]
ITEM = generate(1, seed=7)[0]


def s2s(*arguments: object, cwd, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess:
    """Run the command in this process, which spares the imports; a wrong exit code or a traceback fails the test."""
    given = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        captured = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with contextlib.chdir(cwd), captured[0], captured[1], pytest.raises(SystemExit) as left:
            run(app, "seq2seq-keras", given)
    finally:
        sys.stdin = before
    said = err.getvalue()
    assert left.value.code == code, f"{given}: {left.value.code}\n{out.getvalue()}\n{said}"
    assert "Traceback" not in said
    return subprocess.CompletedProcess(given, code, out.getvalue(), said)


def one_line(done: subprocess.CompletedProcess) -> str:
    """The single line on stderr of a command that was refused."""
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained default run."""
    folder = tmp_path_factory.mktemp("home")
    s2s("train", *FAST, "-q", cwd=folder)
    (folder / "article.txt").write_text(ITEM.text)
    rows = [json.dumps({"id": e.id, "text": e.text}) for e in generate(3, seed=8)]
    (folder / "articles.jsonl").write_text("\n".join(rows))
    return folder


def test_help_is_quick_to_load_nothing_heavy():
    heavy = ("tensorflow", "keras", "sklearn", "matplotlib", "fastapi", "numpy")
    code = f"import sys, seq2seq_keras.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


VERBS = ["prepare", "train", "evaluate", "ablate", "baselines", "predict", "summarize", "attention"]
VERBS += ["serve", "export", "bench"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, tmp_path):
    assert "--json" in s2s(verb, "--help", cwd=tmp_path).stdout


def test_prepare_writes_shards_once(tmp_path):
    done = s2s("prepare", "--limit", "50", "-o", "out", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["examples"] == {"train": 50, "valid": 10, "test": 10} and " of 20" in found["splitter"]
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "train.jsonl.gz",
        "valid.jsonl.gz",
        "test.jsonl.gz",
        "prepared.json",
    }
    assert "holds prepared data already" in one_line(s2s("prepare", "-o", "out", cwd=tmp_path, code=2))
    # What was written is a source in turn.
    again = json.loads(s2s("prepare", "--source", "out", "-o", "again", "--json", cwd=tmp_path).stdout)
    assert again["examples"] == found["examples"]


def test_a_run_folder_is_whole(home):
    run_folder = home / "runs/seq2seq_keras/small"
    names = {f.name for f in run_folder.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "results.json",
        "README.md",
        "model",
    } <= names
    assert {f.name for f in (run_folder / "model").iterdir()} == {"config.json", "vocabulary.txt", "model.safetensors"}
    held = json.loads((run_folder / "config.json").read_text())
    assert held["settings"]["model"]["units"] == 16 and held["limit"] == 60


def test_one_text_a_table_and_stdin(home):
    one = s2s("summarize", "article.txt", cwd=home).stdout
    assert len(one.splitlines()) == 1
    piped = json.loads(
        s2s("summarize", "-", "--json", "--beam", "2", "--n-best", "2", cwd=home, stdin=ITEM.text).stdout
    )
    assert len(piped["alternatives"]) == 1 and "attention" not in piped
    many = s2s("summarize", "articles.jsonl", cwd=home).stdout.splitlines()
    assert [line.split("\t")[0] for line in many] == [e.id for e in generate(3, seed=8)]
    assert json.loads(s2s("predict", "--demo", "--json", cwd=home).stdout)["words"]


def test_evaluate_writes_results_page_and_table(home):
    done = s2s("evaluate", "--limit", "8", "--table", "t.json", "--name", "tiny", "--json", cwd=home)
    found = json.loads(done.stdout)
    assert found["texts"] == 8 and found["rows"][0]["name"] == "model"
    run_folder = home / "runs/seq2seq_keras/small"
    assert (run_folder / "report.html").is_file() and (run_folder / "plots/scores.png").is_file()
    short = ["--beam", "2", "--set", "decode.max_length=3"]
    s2s("evaluate", "--limit", "8", "--table", "t.json", "--name", "beam", *short, "-q", cwd=home)
    rows = json.loads((home / "t.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert rows[names.index("beam")]["metrics"]["length"] <= 3
    assert names.count("tiny") == names.count("beam") == names.count("lead-8") == 1
    seed = json.loads(s2s("evaluate", "--limit", "8", "--protocol", "seed", "-o", "seed", "--json", cwd=home).stdout)
    assert seed["protocol"] == "seed" and (home / "seed/results.json").is_file()


def test_baselines_need_no_model(tmp_path):
    done = s2s("baselines", "--limit", "20", "--table", "b.json", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    scores = {row["name"]: row["metrics"]["f1"] for row in found["rows"]}
    assert found["texts"] == 20 and scores["best span (oracle)"] > scores["lead-8"] > 0
    held = json.loads((tmp_path / "b.json").read_text())
    assert held["command"].startswith("seq2seq-keras baselines --data sample") and str(tmp_path) not in json.dumps(held)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_ablate_trains_each_variant_once(tmp_path):
    names = ["seed", "pointer", "with coverage"]
    call = ["ablate", *FAST, "--texts", "5", "--table", "a.json", "-o", "runs"]
    call += [word for name in names for word in ("--variant", name)]
    found = json.loads(s2s(*call, "--json", cwd=tmp_path).stdout)["results"]
    assert [row["name"] for row in found] == names
    held = {name: json.loads((tmp_path / "runs" / name / "config.json").read_text()) for name in ("seed", "pointer")}
    assert not held["seed"]["settings"]["model"]["mask"] and held["pointer"]["settings"]["model"]["pointer"]
    stamps = {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/model/model.safetensors")}
    again = s2s(*call, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["results"] == found and len(stamps) == 3
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps, "a finished variant was trained again"
    written = json.loads((tmp_path / "a.json").read_text())
    rows = written["rows"]
    assert written["command"].endswith("--limit 60 --texts 5") and rows[0]["metrics"]["examples"] == 60
    assert [row["name"] for row in rows] == [*names, "lead-13"]
    other = s2s("ablate", *FAST, "--seed", "5", "--variant", "seed", "-o", "runs", cwd=tmp_path, code=2)
    assert "other data or settings" in other.stderr


def test_attention_is_drawn(home):
    found = json.loads(s2s("attention", "--demo", "-o", "drawn", "--json", cwd=home).stdout)
    assert found["files"] == ["drawn/attention.png", "drawn/copied.png"]
    assert all((home / f).read_bytes().startswith(b"\x89PNG") for f in found["files"])


def test_export_compares(home):
    found = json.loads(s2s("export", "--format", "keras", "--texts", "3", "-o", "out", "--json", cwd=home).stdout)
    assert found["files"][0]["same_ids"] and (home / "out/model.keras").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["summarize"], "nothing to summarize"),
        (["summarize", "absent.txt"], "no such file"),
        (["summarize", "article.txt", "--model", "absent"], "no trained model"),
        (["summarize", "article.txt", "--min-length", "5", "--max-length", "3"], "above max_length"),
        (["train", "--preset", "huge"], "not a preset"),
        (["train", "--set", "model.unit=3"], "Did you mean model.units?"),
        (["train", "--data", "absent"], "no such file or folder"),
        (["train", "--resume", "runs/seq2seq_keras/small", "--limit", "3"], "its own data and settings"),
        (["train", "--resume", "runs/seq2seq_keras/small", "--set", "train.seed=3"], "keeps its settings"),
        (["train", "--resume", "runs/seq2seq_keras/small", "--preset", "full"], "its own data and settings"),
        (["train", "--limit", "20"], "not empty"),
        (["train", "--track", "paper", "-o", "never"], "unknown tracker"),
        (["summarize", "--demo", "article.txt"], "--demo has a text of its own"),
        (["summarize", "article.txt", "--set", "train.epochs=9"], "Change decode.* alone"),
        (["summarize", "articles.jsonl", "--text-column", "body"], "no column body"),
        (["summarize", "article.txt", "--min-length", "300"], "not possible"),
        (["evaluate", "--text-column", "body"], "Give --data, too"),
        (["evaluate", "--model", "runs/seq2seq_keras/small/model"], "a saved model, not the run"),
        (["evaluate", "--table", "article.txt"], "article.txt"),
        (["train", "--resume", "absent"], "no such run folder"),
        (["evaluate", "--part", "train"], "not a held-out part"),
        (["evaluate", "--protocol", "mine"], "not a protocol"),
        (["evaluate", "--set", "train.epochs=9"], "Change decode.* alone"),
        (["evaluate", "--set", "decode.beam=0"], "beam is 0"),
        (["evaluate", "--model", "absent"], "no such run folder"),
        (["export", "--format", "h5"], "not a format"),
        (["bench", "--part", "sing"], "not a part"),
        (["ablate", "--variant", "bigger"], "not a variant"),
        (["summarize", "article.txt", "--device", "cuda"], "finds no GPU"),
        (["summarize", "article.txt", "--device", "tpu"], "Invalid value for '--device'"),
        (["prepare", "--labels", "good", "-o", "never"], "not a kind of label"),
        (["train", "--epochs", "3"], "No such option"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(home, arguments, said):
    before = sorted(home.rglob("*"))
    assert said in one_line(s2s(*arguments, cwd=home, code=2))
    assert sorted(home.rglob("*")) == before


def test_a_run_of_another_name_is_not_overwritten(home):
    shutil.copytree(home / "runs/seq2seq_keras/small", home / "mine")
    assert "not empty" in one_line(s2s("train", *FAST, "-q", "-o", "mine", cwd=home, code=2))


def test_a_finished_run_can_be_given_more_epochs(home):
    shutil.copytree(home / "runs/seq2seq_keras/small", home / "longer")
    call = ["train", "--resume", "longer", "--set", "train.epochs=2", "--json"]
    assert json.loads(s2s(*call, cwd=home).stdout)["epochs"] == 2
    assert json.loads((home / "longer/config.json").read_text())["settings"]["train"]["epochs"] == 2


def test_what_was_evaluated_stays_until_the_model_is_trained_on(home, monkeypatch):
    shutil.copytree(home / "runs/seq2seq_keras/small", home / "kept")
    s2s("evaluate", "--model", "kept", "--limit", "4", "-q", cwd=home)
    held = json.loads((home / "kept/results.json").read_text())
    monkeypatch.setenv("SEQ2SEQ_KERAS_DATA", "elsewhere")  # the run's own data is meant
    s2s("train", "--resume", "kept", "-q", cwd=home)
    assert json.loads((home / "kept/results.json").read_text()) == held and (home / "kept/report.html").is_file()
    s2s("train", "--resume", "kept", "--set", "train.epochs=2", "-q", cwd=home)
    assert "rows" not in json.loads((home / "kept/results.json").read_text())
    assert not (home / "kept/report.html").exists() and not (home / "kept/plots").exists()
    said = one_line(s2s("train", "--resume", "kept", "--set", "train.epochs=1", cwd=home, code=2))
    assert "2 epochs behind it" in said


def test_each_row_has_its_summary_and_each_hypothesis_its_line(home):
    rows = [{"id": name, "text": text} for name, text in (("a", ITEM.text), ("b", ""), ("c", ITEM.text))]
    (home / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = s2s("summarize", "rows.jsonl", cwd=home)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["a", "c"] and "1 empty" in done.stderr
    done = s2s("summarize", "rows.jsonl", "--n-best", "2", "--set", "decode.no_repeat_ngram=1", "-q", cwd=home)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["a", "a", "c", "c"]


def test_a_run_whose_data_changed_is_not_resumed(home):
    shutil.copytree(home / "runs/seq2seq_keras/small", home / "changed")
    file = home / "changed/environment.json"
    held = json.loads(file.read_text())
    assert sorted(held["data"]) == ["sample (test)", "sample (train)", "sample (valid)"]
    held["data"]["sample (train)"] = "0" * 64
    file.write_text(json.dumps(held))
    said = one_line(s2s("train", "--resume", "changed", cwd=home, code=2))
    assert "the data is not what the run began with: sample (train)" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_is_130_and_resume_goes_on(tmp_path):
    command = [sys.executable, "-m", "seq2seq_keras.cli", "train", "--limit", "400", "-o", "run"]
    command += ["--set", "train.epochs=2", "--set", "model.units=16", "--set", "train.checkpoint_minutes=0.001"]
    # A background job of a shell ignores SIGINT; the child must not inherit that.
    started = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    checkpoint = tmp_path / "run/checkpoints/last/progress.json"
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    said = started.communicate(timeout=300)[1]
    assert started.returncode == 130 and "--resume run" in said
    # One run in the folder is not another's to throw away.
    assert "--resume run" in one_line(s2s("train", "--limit", "400", "-o", "run", cwd=tmp_path, code=2))
    found = json.loads(s2s("train", "--resume", "run", "--json", cwd=tmp_path).stdout)
    assert found["epochs"] == 2
