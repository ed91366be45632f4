"""The command line: what it prints, writes and refuses; as a process where that makes a difference."""

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentlab_shared.cli import run
from rsr_net.cli import app
from rsr_net.sample import demo, generate, write_stories

FAST = ["--limit", "60", "--set", "train.epochs=1"]
NEWS = generate(1, seed=7)[0]


def rsr(*arguments: object, cwd: Path, stdin: str | bytes = b"", code: int = 0) -> subprocess.CompletedProcess:
    """Run the command in this process, which spares the imports; a wrong exit code or a traceback fails the test."""
    given = [str(argument) for argument in arguments]
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(raw))
    try:
        captured = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with contextlib.chdir(cwd), captured[0], captured[1], pytest.raises(SystemExit) as left:
            run(app, "rsr-net", given)
    finally:
        sys.stdin = before
    said = err.getvalue()
    assert left.value.code == code, f"{given}: {left.value.code}\n{out.getvalue()}\n{said}"
    assert "Traceback" not in said
    return subprocess.CompletedProcess(given, code, out.getvalue(), said)


def one_line(done: subprocess.CompletedProcess) -> str:
    """The single line on stderr of a command that was refused."""
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained default run."""
    folder = tmp_path_factory.mktemp("home")
    rsr("train", *FAST, "-q", cwd=folder)
    (folder / "article.txt").write_text(NEWS.article)
    many = folder / "articles"
    many.mkdir()
    for number, example in enumerate(generate(3, seed=8)):
        (many / f"{number}.txt").write_text(example.article)
    return folder


def test_help_is_quick_to_load_nothing_heavy():
    heavy = ("torch", "transformers", "sklearn", "fastapi", "numpy")
    code = f"import sys, rsr_net.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "predict", "summarize", "serve", "export", "bench"])
def test_every_verb_has_help(verb, tmp_path):
    assert "--json" in rsr(verb, "--help", cwd=tmp_path).stdout


def test_version_is_the_installed_one(tmp_path):
    from importlib.metadata import version

    assert rsr("--version", cwd=tmp_path).stdout.strip() == f"rsr-net {version('latentlab-rsr-net')}"


# -- summarize ---------------------------------------------------------------------------------------------------


def test_a_file_stdin_and_the_library_agree(home):
    from rsr_net import Summarizer

    text = Summarizer.from_pretrained(home / "runs/rsr_net/sample").summarize(NEWS.article).text
    assert rsr("summarize", "article.txt", cwd=home).stdout.strip() == text
    assert rsr("summarize", "-", cwd=home, stdin=NEWS.article).stdout.strip() == text
    assert rsr("predict", "article.txt", cwd=home).stdout.strip() == text


def test_a_folder_gives_one_line_per_file(home):
    lines = rsr("summarize", "articles", cwd=home).stdout.splitlines()
    assert [line.partition("\t")[0] for line in lines] == ["0", "1", "2"]
    found = json.loads(rsr("summarize", "articles", "--json", "--limit", 2, cwd=home).stdout)["summaries"]
    assert [f["id"] for f in found] == ["0", "1"]
    assert [f["text"] for f in found] == [line.partition("\t")[2] for line in lines[:2]]


def test_no_more_of_stdin_is_read_than_an_article_can_be_long(home):
    assert "over 4 MiB" in one_line(rsr("summarize", "-", cwd=home, stdin="News. " * 2**20, code=2))


def test_control_characters_do_not_reach_the_terminal_or_break_lines(home, tmp_path):
    row = {"id": "a\tb\nc\x1b[31m", "article": "The \x1b]0;mayor\x07 won\x00 again \u202e today."}
    (tmp_path / "x.jsonl").write_text(json.dumps(row).replace("\\u0000", ""))
    given = ["summarize", tmp_path / "x.jsonl"]
    said = rsr(*given, cwd=home).stdout
    assert said.count("\t") == said.count("\n") == 1 and not set("\x1b\x07\u202e") & set(said)
    (found,) = json.loads(rsr(*given, "--json", cwd=home).stdout)["summaries"]
    assert found["id"] == row["id"] and "\x1b" in found["text"]


def test_json_has_the_trace_only_when_asked(home):
    short = json.loads(rsr("summarize", "article.txt", "--json", "-n", 1, cwd=home).stdout)
    assert len(short["indices"]) == 1 and "steps" not in short
    full = json.loads(rsr("summarize", "article.txt", "--json", "--explain", cwd=home).stdout)
    assert full["steps"][0]["reads"][0]["sentence"] in full["sentences"]


def test_explain_is_plain_text_when_it_is_no_terminal(home):
    said = rsr("summarize", "--demo", "--explain", cwd=home).stdout
    assert "\x1b" not in said and "confidence" in said and "moved" in said
    assert any(sentence in said for sentence in demo().sentences)


def test_retrieve_warns_on_stderr_that_it_speaks_of_another_article(home):
    done = rsr("summarize", "article.txt", "--mode", "retrieve", cwd=home)
    assert "another article" in done.stderr and "another article" not in done.stdout
    said = json.loads(rsr("summarize", "article.txt", "--mode", "retrieve", "--json", cwd=home).stdout)
    assert said["confidence"] is None and said["neighbours"][0]["similarity"] <= 1
    assert rsr("summarize", "article.txt", "--mode", "retrieve", "-q", cwd=home).stderr == ""


def test_wrong_input_is_one_line_and_exit_2(home, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    model = ["--model", home / "runs/rsr_net/sample"]
    for arguments, said in (
        (["article.txt"], "no such file"),
        ([tmp_path / "empty.txt", *model], "is empty"),
        ([tmp_path / "image.png", *model], "is not text"),
        (["-", *model], "is empty"),
        ([], "Give a file"),
        (["-", *model, "--mode"], "mode"),
        (["--demo"], "rsr-net train"),
        (["--demo", "--mode", "rewrite", *model], "mode"),
        (["--demo", "--mode", "generate", *model], "--resume RUN --decoder"),
        (["--demo", "--sentences", "2", *model], "--sentences"),
        (["--demo", "-n", "0", *model], "--max-sentences"),
        (["image.png", "--demo", *model], "not both"),
        (["/dev/zero", *model], "not a file"),
        (["News came. " * 99, *model], "no such file"),
        (["--demo", "--device", "mps", *model], "no such device"),
        (["--demo", "--device", "cuda:9", *model], "--device"),
    ):
        assert said in one_line(rsr("summarize", *arguments, cwd=tmp_path, code=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt", "image.png"]


# -- train -------------------------------------------------------------------------------------------------------


def test_a_run_folder_has_everything_and_says_how_to_use_it(home):
    folder = home / "runs/rsr_net/sample"
    assert {"config.json", "environment.json", "results.json", "README.md", "checkpoints"} <= {
        p.name for p in folder.iterdir()
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["data"] == "sample" and config["rsr"]["train"]["epochs"] == 1 and config["limit"] == 60
    environment = json.loads((folder / "environment.json").read_text())
    assert len(environment["data"]["sample"]) == 64 and environment["seed"] == 0
    assert f"rsr-net summarize article.txt --model {Path('runs/rsr_net/sample')}" in (folder / "README.md").read_text()


def test_the_same_seed_gives_the_same_model(home, tmp_path):
    rsr("train", *FAST, "-q", "--output-dir", "again", cwd=tmp_path)
    runs = (tmp_path / "again", home / "runs/rsr_net/sample")
    ours, theirs = (run / "checkpoints" / "best" / "refiner.safetensors" for run in runs)
    assert ours.read_bytes() == theirs.read_bytes()


def test_training_on_stories_and_on_jsonl(tmp_path):
    write_stories(tmp_path / "stories", 80, seed=3)
    said = json.loads(rsr("train", *FAST, "--data", "stories", "-o", "a", "--json", cwd=tmp_path).stdout)
    assert said["run"] == "a" and set(said["validation"]) == {"start", "refined"}
    rsr("train", "--data", "stories", "-o", "a", "-q", cwd=tmp_path, code=2)  # the folder is in use


def test_wrong_settings_are_one_line_and_write_nothing(tmp_path):
    with gzip.open(tmp_path / "bad.jsonl.gz", "wt") as file:
        file.write('{"article": "News."}\n{\n')
    (tmp_path / "c.yaml").write_text("model: {depth: 3}\n")
    (tmp_path / "one.jsonl").write_text('{"id": "1", "article": "News.", "highlights": "News."}\n')
    for arguments, said in (
        (["--set", "model.stepz=3"], "model.steps"),
        (["--set", "train.epochs=many"], "train.epochs"),
        (["--set", "epochs"], "key=value"),
        (["--set", "model.input_dim=8"], "--set model.input_dim"),
        (["--config", "c.yaml"], "depth"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--profile", "large"], "--profile"),
        (["--data", "absent"], "no such file or folder"),
        (["--data", ""], "--data: is empty"),
        (["--data", "bad.jsonl.gz"], "bad.jsonl.gz:2"),
        (["--encoder", "absent"], "absent"),
        (["--resume", "absent"], "absent"),
        (["--limit", "0"], "--limit"),
        (["--seed", "-1"], "--seed"),
        (["--seed", 10**20], "--seed"),
        (["--device", "mps"], "no such device"),
        (["--set", "recipe=seed"], "recipe"),
        (["--data", "one.jsonl"], "valid part"),
        (["--epochs", "3"], "--epochs"),
    ):
        assert said in one_line(rsr("train", *arguments, cwd=tmp_path, code=2)), arguments
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl.gz", "c.yaml", "one.jsonl"]


@pytest.mark.parametrize(
    "setting",
    [
        "model.heads=0",
        "model.steps=-1",
        "model.dropout=1.5",
        "model.step_size=5",
        "train.batch_size=0",
        "train.ridge=[]",
        "train.gradient_steps=0",
        "train.epochs=-1",
        "train.learning_rate=0.0",
        "train.seed=99999999999999999999",
        "model.hidden_dim=1000000000",
    ],
)
def test_a_setting_out_of_range_is_one_line_and_nothing_is_written(setting, tmp_path):
    line = one_line(rsr("train", "-q", "--limit", 20, "--set", setting, cwd=tmp_path, code=2))
    assert f"{setting.partition('=')[0]}: must be" in line and "--set" in line
    assert not list(tmp_path.iterdir())


def test_skip_bad_counts_and_goes_on(tmp_path):
    rows = [
        json.dumps({"id": str(e.id), "article": e.article, "highlights": list(e.highlights)}) for e in generate(150)
    ]
    (tmp_path / "news.jsonl").write_text("\n".join([*rows, "{"]) + "\n")
    assert "--skip-bad" in rsr("train", "--data", "news.jsonl", cwd=tmp_path, code=2).stderr
    done = rsr("train", "--data", "news.jsonl", "--skip-bad", "-o", "r", "--set", "train.epochs=1", cwd=tmp_path)
    assert "malformed" in done.stderr and (tmp_path / "r/checkpoints/best").is_dir()


@pytest.fixture
def run_folder(home, tmp_path):
    return shutil.copytree(home / "runs/rsr_net/sample", tmp_path / "r")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        *(("config.json", held, "damaged") for held in ("[]", "null", '"x"', "{}")),
        ("config.json", {"encoder": "lsa"}, "not what the run began with"),
        ("config.json", {"limit": -5}, "limit must be at least 1"),
        ("config.json", {"limit": 50}, "not what the run began with"),
        ("config.json", {"seed": 2**40}, "--seed"),
        ("environment.json", "[]", "damaged"),
        ("environment.json", {"data": {}}, "not what the run began with"),
        ("checkpoints/last/state.safetensors", -10, "checkpoint is damaged"),
        ("checkpoints/last/state.safetensors", 0, "checkpoint is damaged (its checksum is wrong)"),
    ],
)
def test_a_damaged_run_is_not_gone_on_with(run_folder, tmp_path, file, change, said):
    path = run_folder / file
    if isinstance(change, str):
        path.write_text(change)
    elif isinstance(change, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    else:
        raw = bytearray(path.read_bytes())
        path.write_bytes(raw[:change] if change else raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:])
    before = {p: p.read_bytes() for p in run_folder.rglob("*") if p.is_file()}
    assert said in one_line(rsr("train", "--resume", "r", cwd=tmp_path, code=2))
    assert before == {p: p.read_bytes() for p in run_folder.rglob("*") if p.is_file()}


def test_changed_articles_are_refused_and_so_are_other_settings(tmp_path):
    rows = [
        json.dumps({"id": str(e.id), "article": e.article, "highlights": list(e.highlights)}) for e in generate(150)
    ]
    (tmp_path / "news.jsonl").write_text("\n".join(rows))
    rsr("train", "--data", "news.jsonl", "-o", "r", "-q", "--set", "train.epochs=1", cwd=tmp_path)
    assert "--resume" in one_line(rsr("train", "--resume", "r", "--seed", 3, cwd=tmp_path, code=2))
    (tmp_path / "news.jsonl").write_text("\n".join(rows[1:]))
    assert "not what the run began with" in one_line(rsr("train", "--resume", "r", cwd=tmp_path, code=2))


def test_a_run_that_is_being_written_is_left_alone(run_folder, tmp_path):
    from latentlab_shared.runs import RunFolder

    with RunFolder.resume(run_folder):
        for given in (["--resume", "r"], [*FAST, "-o", "r", "--overwrite"]):
            assert "another process" in one_line(rsr("train", *given, cwd=tmp_path, code=2))


@pytest.mark.slow
def test_folds_and_their_ablation_come_from_one_verb(tmp_path):
    for part, few in (("train", generate(16)), ("val", generate(4, 1)), ("short_train", generate(6, 2))):
        rows = [json.dumps({"id": e.id, "article": e.article, "highlights": list(e.highlights)}) for e in few]
        with gzip.open(tmp_path / f"{part}.jsonl.gz", "wt") as file:
            file.write("\n".join(rows))
    given = ["--data", tmp_path, "--encoder", "tiny", "--seeds", 1, "--folds", 2, "-q", "-o", "out"]
    rsr("folds", *given, cwd=tmp_path)
    rsr("folds", *given, "--ablate", 1, cwd=tmp_path)
    held = json.loads((tmp_path / "out/ablation.json").read_text())
    assert held["command"].endswith("--encoder tiny --seeds 1 --folds 2 --ablate 1") and str(tmp_path) not in str(held)
    assert held["rows"][0]["name"] == "recipe" and (tmp_path / "out/embedding_tiny.json").is_file()
    assert "--data" in one_line(rsr("folds", "--data", "absent", cwd=tmp_path, code=2))


# -- the rest ----------------------------------------------------------------------------------------------------


def test_prepare_converts_a_folder_of_stories(tmp_path):
    write_stories(tmp_path / "stories", 60)
    done = rsr("prepare", "--source", "stories/", "-o", "out", "--json", cwd=tmp_path)
    account = json.loads(done.stdout)
    assert sum(account["articles"].values()) == 60 and (tmp_path / "out/train-00000.jsonl.gz").is_file()


def test_prepare_without_a_network_names_the_offline_ways(tmp_path):
    line = one_line(rsr("prepare", "-q", "--url", "http://127.0.0.1:1/cnn.tgz", "-o", "out", cwd=tmp_path, code=2))
    assert "cannot be reached" in line and "--source" in line and "--data sample" in line


def test_evaluate_writes_results_a_plot_and_a_page(home, tmp_path):
    model = home / "runs/rsr_net/sample"
    said = json.loads(rsr("evaluate", "--model", model, "--limit", 20, "-o", "out", "--json", cwd=tmp_path).stdout)
    held = json.loads((tmp_path / "out/results.json").read_text())
    assert said["articles"] == held["articles"] == 20 and held["environment"]["data"]
    assert {row["prediction"].split(" (")[0] for row in held["embedding"]} >= {"ridge", "refined"}
    page = Path(tmp_path, said["report"]).read_text()
    assert "data:image/png;base64," in page and "<script src" not in page and "http" not in page.replace("xmlns", "")
    assert (tmp_path / "out/plots/convergence.png").read_bytes().startswith(b"\x89PNG")
    assert "--split" in one_line(rsr("evaluate", "--model", model, "--split", "dev", cwd=tmp_path, code=2))


def test_export_says_what_it_wrote(home, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    model = home / "runs/rsr_net/sample"
    done = rsr("export", "--model", model, "-o", "out", "--json", cwd=tmp_path)
    said = json.loads(done.stdout)["files"]
    assert [Path(f["file"]).name for f in said] == ["refiner.onnx", "refiner.safetensors"]
    assert [f"writing {f['file']}" in done.stderr for f in said] == [True, True]
    for file in said:
        assert file["bytes"] == (tmp_path / file["file"]).stat().st_size and file["difference"] < 1e-4
    assert "--format" in one_line(rsr("export", "--model", model, "--format", "pickle", cwd=tmp_path, code=2))


@pytest.mark.slow
def test_ctrl_c_is_exit_130_and_resume_gives_the_uninterrupted_model(tmp_path):
    long = ["train", "--limit", "60", "--set", "train.epochs=150", "--set", "train.patience=150"]
    call = [sys.executable, "-m", "rsr_net.cli", *long, "-o", "stopped"]
    process = subprocess.Popen(
        call,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err and out == ""
    assert err.splitlines()[-1] == "interrupted: go on with rsr-net train --resume stopped"
    assert not (tmp_path / "stopped" / "checkpoints" / "best").exists()
    assert "has not finished" in one_line(rsr("summarize", "--demo", "--model", "stopped", cwd=tmp_path, code=2))

    assert "--resume" in one_line(rsr("train", "--resume", "stopped", "--limit", "9", cwd=tmp_path, code=2))
    rsr("train", "--resume", "stopped", "-q", cwd=tmp_path)
    rsr(*long, "-o", "straight", "-q", cwd=tmp_path)
    ours, theirs = (tmp_path / run / "checkpoints" / "best" / "refiner.safetensors" for run in ("stopped", "straight"))
    assert ours.read_bytes() == theirs.read_bytes()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 151))


def test_a_reader_that_leaves_is_no_fault(home):
    command = f"{sys.executable} -m rsr_net.cli summarize articles -q | head -c 1"
    done = subprocess.run(command, shell=True, cwd=home, capture_output=True, text=True, env=os.environ)
    assert done.stderr == "" and len(done.stdout) == 1
