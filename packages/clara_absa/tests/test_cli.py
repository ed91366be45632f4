"""The command line: what it prints, writes and refuses; as a process where that makes a difference."""

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from clara_absa.cli import app
from clara_absa.data_utils import read_part
from clara_absa.evaluation.metrics import TermPrior
from clara_absa.sample.generator import demo
from latentlab_shared.cli import run

RUN = "runs/clara_absa/sample"
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
    shutil.copytree(home / "seed1", home / "copy")
    both = json.loads(clara("compare", "seed1", "copy", "--json", "-o", "tables", cwd=home).stdout)
    found = both["rows"]
    assert [row["seeds"] for row in found] == [None, None, None, "1, 1"]
    assert "given twice" in clara("compare", "seed1", "./seed1", cwd=home, code=2).stderr
    alone = json.loads(clara("compare", "seed1", "--json", cwd=home).stdout)["rows"][3]
    assert found[3]["accuracy"] == pytest.approx(alone["accuracy"])
    assert json.loads((home / "tables" / "answers.json").read_text())["rows"][3]["metrics"]["seeds"] == "1, 1"
    measured = {
        row["answers"]: row["accuracy"]
        for row in json.loads(clara("evaluate", "--model", "seed1", "--json", cwd=home).stdout)["answers"]
    }
    probes = {row["answers"].split(": ")[1]: row["accuracy"] for row in both["probes"]}
    assert len(probes) == 3 and probes == pytest.approx({name: measured[name] for name in probes})
    assert len(json.loads((home / "tables" / "probes.json").read_text())["rows"]) == 3


def test_an_unfinished_run_is_to_be_resumed_by_its_own_package(home):
    for settings, hint in (({"clara": {}}, "train --resume 'my run'"), ({"stage": "questions"}, "Give a run folder")):
        (home / "my run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (home / "my run" / "checkpoints" / "last.safetensors").touch()
        (home / "my run" / "config.json").write_text(json.dumps(settings))
        assert hint in clara("predict", "--demo", "--model", "my run", cwd=home, code=2).stderr


def test_sweep_and_export(home):
    done = clara("sweep", "--size", "2", "--size", "8", "--limit", "10", "--json", cwd=home)
    rows = json.loads(done.stdout)["rows"]
    assert [row["k"] for row in rows] == [2, 8]
    assert done.stderr == "warning: k=2: the model was trained for 8\n"
    shutil.copytree(home / RUN, home / "twin")
    both = ["--model", RUN, "--also", "twin", "--beside", RUN, "--limit", "10", "-o", "tables", "--json"]
    [pooled] = json.loads(clara("sweep", *both, cwd=home).stdout)["rows"]
    assert pooled["accuracy"] == pooled["trained for k"] == pytest.approx(rows[1]["accuracy"])
    assert json.loads((home / "tables" / "sweep.json").read_text())["rows"][0]["name"] == "k=8"
    clara("export", "-o", "out", cwd=home)
    a, b = (clara("predict", "--demo", "--json", *more, cwd=home).stdout for more in ([], ["--model", "out"]))
    assert json.loads(a) == json.loads(b)


def test_pretrain_gives_a_backbone(home):
    clara("pretrain", "--epochs", "1", "--width", "32", "--layers", "1", "--limit", "16", "-o", "lm", cwd=home)
    clara("train", *FAST, "--backbone", "lm/backbone", "-o", "on_lm", cwd=home)
    config = json.loads((home / "on_lm" / "model" / "clara.json").read_text())
    assert config["backbone"] == "backbone"
    assert clara("predict", "--demo", "--model", "on_lm", cwd=home).stdout.count("\n") == 3
    said = clara("predict", "--demo", "--model", "lm", cwd=home, code=2).stderr
    assert "clara-absa train --backbone lm/backbone" in said
    (home / "on_lm" / "model").rename(home / "elsewhere")
    said = clara("predict", "--demo", "--model", "on_lm", cwd=home, code=2).stderr
    assert "go on with clara-absa train --resume on_lm" in said


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
        (["train", "--set", "loss.mark=1", "--set", "memory.start=tokens", "-o", "x"], "cannot be read off"),
        (["train", "--set", "loss.beta=[0,0]", "-o", "x"], "nothing would be learned"),
        (["train", "--set", "memory.sizes=[8,8]", "-o", "x"], "For example: --set 'memory.sizes=[8]'"),
        (["train", "--set", "memory.sizes=8", "-o", "x"], "memory.sizes=8 is not of type list"),
        (["train", "--set", "memory.reader=none", "--set", "memory.ratio=4", "-o", "x"], "memory.ratio: there is no"),
        (["train", "--set", "lora.roles=split", "-o", "x"], "lora.roles: without an adapter"),
        (["train", "--set", "recipe=seed", "-o", "x"], "recipe=seed, memory.start: the seed's recipe"),
        (["train", "--set", "memory.tokens", "-o", "x"], "Example: --set tiny.width=128"),
        (["train", "--resume", "absent"], "no such run folder"),
        (["train", "--resume", "absent", "--seed", "0"], "Leave --seed out"),
        (["train", "--resume", "absent", "--task", "joint"], "Leave --task out"),
        (["train", "--resume", "absent", "--set", "train.epochs=2"], "Leave --set out"),
        (["pretrain", "--resume", "absent", "--epochs", "3"], "Leave --epochs out"),
        (["predict", "The soup", "--demo"], "Leave the text or --demo out"),
        (["compress", "The soup", "--demo"], "Leave the text or --demo out"),
        (["predict", "The soup", "-a", "-4:3"], "-4:3 is no span"),
        (["train", "--task", "all", "-o", "x"], "not a task"),
        (["evaluate", "--model", "absent"], "no model here"),
        (["evaluate", "--model", "absent", "--data", "sample"], "no model here"),
        (["sweep", "--model", "absent", "--data", "sample"], "no model here"),
        (["compress"], "clara-absa compress: nothing to read"),
        (["prepare", "--source", "absent"], "--output-dir: converted files need a folder of their own"),
        (["prepare", "--source", "absent", "-o", "x"], "nothing to prepare"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, said, tmp_path):
    done = clara(*arguments, "-q", cwd=tmp_path, code=2)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--split", "dev"], "'dev' is not a part"),
        (["predict", "soup", "-a", "\udcff"], "aspects: half a character"),
        (["predict", "soup \udcff", "-a", "soup"], "text 0: half a character"),
        (["predict", "soup", "-a", "x" * 100_000], "more than 200 characters"),
        (["predict", "[B-ASP]food is good"], "text: a mark is not opened and closed"),
        (["predict", "marked.txt"], "marked.txt:3: a mark is not opened and closed"),
        (["predict", "food " * 300, "-a", "1400:1404"], "all that is read"),
        (["compress", "soup \udcff", "-o", "kept2"], "text 0: half a character"),
    ],
)
def test_wrong_questions_to_a_model_are_one_line_too(home, arguments, said):
    (home / "marked.txt").write_text("The [B-ASP]food[E-ASP] is good\n\nThe food[E-ASP] is bad\n")
    done = clara(*arguments, cwd=home, code=2)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
    assert not (home / "kept2").exists()


def test_a_text_longer_than_a_file_name_is_a_text(home):
    text = "The soup was tasty, but the bill was outrageous. " * 6
    assert len(text) > 255
    assert clara("predict", text, "-a", "soup", cwd=home).stdout.startswith("soup\t")
    assert clara("compress", text, "-o", "of_long", cwd=home).stderr == ""


def test_a_text_that_is_cut_is_warned_of(home):
    long = "The soup was tasty, but the bill was outrageous. " * 40
    done = clara("predict", long, "-a", "soup", "--json", cwd=home)
    assert "warning: the text is longer than 246 tokens" in done.stderr
    found = json.loads(done.stdout)
    assert found["cut"] and found["aspects"][0]["cut"]
    (home / "two.txt").write_text(f"{long}\nThe soup was fine\n")
    done = clara("predict", "two.txt", "-a", "soup", "--json", cwd=home)
    assert "1 of 2 texts are longer" in done.stderr
    assert [row["cut"] for row in json.loads(done.stdout)["texts"]] == [True, False]
    done = clara("compress", "two.txt", "-o", "two", "--json", cwd=home)
    assert "1 of 2 texts are longer" in done.stderr
    assert [row["cut"] for row in json.loads(done.stdout)["memories"]] == [True, False]
    asked = clara("predict", "--memory", "two/00001.safetensors", "-a", "soup", "--json", cwd=home)
    assert "the text is longer" in asked.stderr and json.loads(asked.stdout)["cut"]
    (home / "long.csv").write_text(f"text,aspect,polarity\n{json.dumps(long)},soup,positive\nThe tea,tea,neutral\n")
    done = clara("evaluate", "--data", "long.csv", "-o", "of_cut", "--json", cwd=home)
    assert "1 of 2 texts are longer" in done.stderr and json.loads(done.stdout)["cut"] == 1


def test_one_file_is_split_for_training_and_measured_in_its_parts(home):
    from clara_absa.data_utils import write_jsonl
    from clara_absa.sample.generator import generate

    examples = list({e.text: e for e in generate(70, seed=4)}.values())[:60]
    write_jsonl(examples[:40], home / "own" / "train.jsonl")
    write_jsonl(examples[40:], home / "own" / "more.jsonl")
    trained = clara("train", *FAST[2:], "--data", "own/train.jsonl", "-o", "of_one", cwd=home)
    assert "own/train.jsonl is one file: a tenth of its sentences" in trained.stderr
    assert "32 sentences to train on, 4 for validation, backbone tiny" in trained.stderr

    small = ["--epochs", "1", "--width", "32", "--layers", "1", "-o", "lm_of_one"]
    said = clara("pretrain", "--data", "own/train.jsonl", *small, cwd=home).stderr
    assert "is one file" in said and "32 texts to learn from" in said

    def measured(*arguments):
        return json.loads(clara("evaluate", *arguments, "--json", cwd=home).stdout)

    test, again = measured("--model", "of_one", "--split", "test"), measured("--model", "of_one")
    assert (test["sentences"], test["part"], again["sentences"]) == (4, "test part", 4)
    same = measured("--model", "of_one", "--split", "test", "--data", "./own/train.jsonl")
    assert same["sentences"] == 4
    other = measured("--model", "of_one", "--data", "own/more.jsonl", "-o", "of_more")
    assert (other["sentences"], other["part"]) == (20, "whole file")
    # The look-up knows the terms of the training sentences, whatever is measured.
    terms = {a.term for e in read_part(home / "own" / "train.jsonl", "train") for a in e.aspects}
    unseen = sum(a.term not in terms for e in examples[40:] for a in e.aspects)
    assert {row["group"]: row["aspects"] for row in other["groups"]}["unseen term"] == unseen
    prior = TermPrior(read_part(home / "own" / "train.jsonl", "train"))
    right = [prior.predict(a.term) == a.polarity for e in examples[40:] for a in e.aspects]
    rows = {row["answers"]: row["accuracy"] for row in other["answers"]}
    assert rows["aspect prior"] == pytest.approx(sum(right) / len(right))
    # A model without its run: nobody knows what it was trained on.
    bare = measured("--model", "of_one/model", "--data", "own/more.jsonl", "-o", "of_bare")
    assert not {"aspect prior", "most frequent"} & {row["answers"] for row in bare["answers"]}
    assert not any("term" in row["group"] for row in bare["groups"])


def test_a_resumed_run_takes_what_is_of_the_machine_only(home, monkeypatch):
    clara("train", *FAST, "-o", "again", "-q", cwd=home)
    before = json.loads((home / "again" / "results.json").read_text())
    monkeypatch.setenv("CLARA_DATA", "sample")  # a setting of the shell is no option of this call
    clara("train", "--resume", "again", "--device", "cpu", "-q", cwd=home)
    assert json.loads((home / "again" / "results.json").read_text()) == before


def test_a_run_whose_settings_are_gone_is_not_resumed_with_others(home):
    shutil.copytree(home / RUN, home / "damaged")
    (home / "damaged" / "config.json").write_text("{}")
    done = clara("train", "--resume", "damaged", cwd=home, code=2)
    assert "damaged/config.json: this is no configuration" in done.stderr and len(done.stderr.splitlines()) == 1


def test_only_the_quickstarts_own_run_is_replaced_and_that_is_said(tmp_path):
    clara("train", *FAST, "-q", cwd=tmp_path)
    assert "a new run replaces the quickstart's earlier one" in clara("train", *FAST, cwd=tmp_path).stderr
    (tmp_path / "own.csv").write_text("text,aspect,polarity\nThe tea is good,tea,positive\n" * 30)
    before = (tmp_path / RUN / "results.json").read_bytes()
    assert "not empty" in clara("train", *FAST, "--data", "own.csv", cwd=tmp_path, code=2).stderr
    assert (tmp_path / RUN / "results.json").read_bytes() == before


def test_a_seed_in_the_settings_is_the_seed(home):
    clara("train", *FAST, "--seed", 5, "-o", "by_option", "-q", cwd=home)
    clara("train", *FAST, "--set", "train.seed=5", "-o", "by_setting", "-q", cwd=home)
    assert all(
        json.loads((home / f / "environment.json").read_text())["seed"] == 5 for f in ("by_option", "by_setting")
    )
    one, other = (json.loads((home / f / "results.json").read_text()) for f in ("by_option", "by_setting"))
    assert one["validation"] == other["validation"]


def test_a_training_whose_last_step_goes_too_far_has_failed(home):
    more = ["--limit", "12", "--set", "train.epochs=1", "--set", "train.learning_rate=1e30"]
    done = clara("train", *more, "-o", "far", "-q", cwd=home, code=1)
    assert "train.learning_rate" in done.stderr and not (home / "far" / "model").exists()


def test_progress_names_its_total(home, monkeypatch):
    monkeypatch.setattr("latentlab_shared.cli._EVERY_S", 0.0)
    said = clara("train", *FAST, "-o", "with_progress", cwd=home).stderr
    assert "training: 1 of 2\ntraining: 2 of 2\n" in said
    said = clara("train", "--resume", "with_progress", cwd=home).stderr
    assert "training: 2 of 2" in said and "training: 1 of" not in said
    options = ["--epochs", "2", "--width", "32", "--layers", "1", "--limit", "16", "-o", "lm_progress"]
    assert "pretraining: 2 of 2" in clara("pretrain", *options, cwd=home).stderr


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
