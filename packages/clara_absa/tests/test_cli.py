"""The command line: what it prints, writes and refuses; as a process where that makes a difference."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time

import pytest

from clara_absa.cli import app
from clara_absa.sample.generator import demo
from latentlab_shared.cli import run

FAST = ["--limit", "24", "--set", "train.epochs=1", "--set", "loss.ext_share=0.5", "--set", "loss.rec_share=0.5"]


def clara(*arguments: object, cwd, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess:
    """Run the command in this process, which spares the imports; a wrong exit code or a traceback fails the test."""
    given = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        captured = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with contextlib.chdir(cwd), captured[0], captured[1], pytest.raises(SystemExit) as left:
            run(app, "clara-absa", given)
    finally:
        sys.stdin = before
    assert left.value.code == code, f"{given}: {left.value.code}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue()
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained default run."""
    folder = tmp_path_factory.mktemp("home")
    clara("train", *FAST, "-q", cwd=folder)
    return folder


def test_nothing_heavy_is_loaded_for_help():
    heavy = ("torch", "transformers", "peft", "sklearn", "fastapi", "numpy")
    code = f"import sys, clara_absa.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_folder_holds_what_is_needed(home):
    run_folder = home / "runs" / "clara_absa" / "sample"
    for name in ("config.json", "environment.json", "metrics.jsonl", "results.json", "README.md", "model/README.md"):
        assert (run_folder / name).is_file(), name
    assert (run_folder / "research_logs" / "train.csv").read_text().startswith("epoch,rec,ext,reason")
    assert "clara-absa predict" in (run_folder / "model" / "README.md").read_text()


def test_predict_says_the_same_in_text_and_json(home, tmp_path):
    terms = [aspect.term for aspect in demo().aspects]
    said = clara("predict", "--demo", cwd=home)
    found = json.loads(clara("predict", "--demo", "--json", cwd=home).stdout)
    assert [row["aspect"] for row in found["aspects"]] == terms
    lines = [f"{r['aspect']}\t{r['polarity']}\t{r['confidence']:.2f}" for r in found["aspects"]]
    assert said.stdout.splitlines() == lines and said.stderr == ""
    marked = demo().text.replace("pasta", "[B-ASP]pasta[E-ASP]")
    [one] = json.loads(clara("predict", marked, "--json", cwd=home).stdout)["aspects"]
    first = found["aspects"][0]
    assert {k: one[k] for k in ("aspect", "polarity", "start", "end")} == {
        k: first[k] for k in ("aspect", "polarity", "start", "end")
    }
    assert one["probabilities"] == pytest.approx(first["probabilities"], abs=1e-5)  # one question, not three, in a pass
    piped = clara("predict", "-", "-a", "pasta", "-a", "34:38", cwd=home, stdin=demo().text + "\n\nGood food\n", code=2)
    assert "no span" in piped.stderr
    many = clara("predict", "-", "-a", "pasta", "--json", cwd=home, stdin=demo().text + "\n\nGood food\n")
    assert len(json.loads(many.stdout)["texts"]) == 2


def test_compress_then_ask(home):
    clara("compress", "--demo", "-o", "kept", cwd=home)
    found = clara("predict", "--memory", "kept/00001.safetensors", "-a", "pasta", cwd=home).stdout
    assert found == clara("predict", "--demo", "-a", "pasta", cwd=home).stdout


def test_evaluate_writes_its_files_and_names_baselines(home):
    results = json.loads(clara("evaluate", "--limit", "10", "--generate", "--json", cwd=home).stdout)
    named = {row["answers"] for row in results["answers"]}
    probes = {"another sentence's memory", "shuffled memory", "zero memory"}
    assert named == {"model", "aspect prior", "most frequent", *probes}
    assert {"extraction_f1", "token_accuracy", "rouge_l"} <= results["writing"].keys()
    folder = home / "runs" / "clara_absa" / "sample"
    for name in ("confusion", "reliability", "training"):
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in (folder / "report.html").read_text()
    assert json.loads((folder / "results.json").read_text())["questions"] == results["questions"]


def test_compare_pools_seeds_into_one_row(home):
    clara("train", *FAST, "--seed", 1, "-o", "seed1", "-q", cwd=home)
    found = json.loads(clara("compare", "seed1", "seed1", "--json", "-o", "tables", cwd=home).stdout)["rows"]
    assert [row["seeds"] for row in found] == [None, None, "1, 1"]
    alone = json.loads(clara("compare", "seed1", "--json", cwd=home).stdout)["rows"][2]
    assert found[2]["accuracy"] == pytest.approx(alone["accuracy"])
    assert json.loads((home / "tables" / "answers.json").read_text())["rows"][2]["metrics"]["seeds"] == "1, 1"


def test_sweep_and_export(home):
    rows = json.loads(clara("sweep", "--size", "2", "--size", "8", "--limit", "10", "--json", cwd=home).stdout)["rows"]
    assert [row["k"] for row in rows] == [2, 8]
    clara("export", "-o", "out", cwd=home)
    a, b = (clara("predict", "--demo", "--json", *more, cwd=home).stdout for more in ([], ["--model", "out"]))
    assert json.loads(a) == json.loads(b)


def test_pretrain_gives_a_backbone(home):
    clara("pretrain", "--epochs", "1", "--width", "32", "--layers", "1", "--limit", "16", "-o", "lm", cwd=home)
    clara("train", *FAST, "--backbone", "lm/backbone", "-o", "on_lm", cwd=home)
    config = json.loads((home / "on_lm" / "model" / "clara.json").read_text())
    assert config["backbone"] == "backbone"
    assert clara("predict", "--demo", "--model", "on_lm", cwd=home).stdout.count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict"], "nothing to read"),
        (["predict", "--demo", "--model", "absent"], "no model here"),
        (["predict", "absent.txt"], "no such file"),
        (["train", "--profile", "large"], "not a profile"),
        (["train", "--profile", "light"], "needs data"),
        (["train", "--data", "absent", "-o", "x"], "no such file or folder"),
        (["train", "--set", "memory.tokens=0", "-o", "x"], "memory.tokens: must be at least 1"),
        (["train", "--set", "lora.targets=[q_proj]", "--set", "lora.rank=2", "-o", "x"], "no linear module is called"),
        (["train", "--set", "loss.distill=1", "-o", "x"], "needs a teacher"),
        (["train", "--resume", "absent"], "no such run folder"),
        (["train", "--task", "all", "-o", "x"], "not a task"),
        (["evaluate", "--model", "absent"], "Give --data"),
        (["evaluate", "--model", "absent", "--data", "sample", "--split", "dev"], "'dev' is not a part"),
        (["compress"], "clara-absa compress: nothing to read"),
        (["prepare", "--source", "absent"], "nothing to prepare"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, said, tmp_path):
    done = clara(*arguments, "-q", cwd=tmp_path, code=2)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(900)
def test_an_interrupted_training_leaves_with_130_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "clara_absa.cli", "train", "--limit", "24", "-o", "run"]
    command += ["--set", "train.epochs=400", "--set", "train.batch_size=4", "--set", "train.checkpoint_every=1"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores SIGINT; the child must not inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "last.safetensors"
    for _ in range(4000):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 130, said
    assert "go on with clara-absa train --resume run" in said
    assert checkpoint.exists() and not (tmp_path / "run" / "model").exists()
