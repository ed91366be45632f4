"""The command: what it prints, what it writes, how it fails."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from factory import make_model, make_news

from latentlab_shared.cli import run
from nrms.cli import app
from nrms.data.mind import news_row
from nrms.inference import Recommender
from nrms.model.folder import LoadedModel
from nrms.sample.generator import SampleConfig, write_sample
from nrms.server.corpus import make_ready
from nrms.server.store import Read, Store

HEAVY = ("torch", "sqlalchemy", "fastapi", "numpy", "transformers", "alembic", "usearch", "uvicorn")
VERBS = ["prepare", "train", "evaluate", "embed", "models", "activate"]
VERBS += ["recommend", "predict", "serve", "export", "bench"]


def nrms(*arguments: object, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command, in this process: torch takes seconds to load."""
    out, error = io.StringIO(), io.StringIO()
    words = list(map(str, arguments))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("NRMS_")]:
            patch.delenv(name)
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        if cwd is not None:
            patch.chdir(cwd)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as left:
            run(app, "nrms", words)
    return subprocess.CompletedProcess(words, left.value.code or 0, out.getvalue(), error.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LoadedModel) -> Path:
    """A model with a catalogue of 40 articles."""
    home = tmp_path_factory.mktemp("cli") / "model"
    made = Recommender(model)
    made.add(make_news(40))
    made.save_pretrained(home)
    return home


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['nrms', '--help']\n"
        "import atexit; atexit.register(lambda: sys.stderr.write(' '.join(m for m in "
        f"{HEAVY!r} if m in sys.modules)))\n"
        "from nrms.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert all(verb in done.stdout for verb in VERBS)


def test_a_mistake_in_a_real_process_is_one_line_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nrms.cli", "evaluate", "--model", "no-such"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: no-such: there is no such model folder")


def test_prepare_writes_no_more_of_the_sample_than_asked(tmp_path: Path) -> None:
    done = nrms("prepare", "--limit", "30", "--output-dir", "few", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["impressions"] == {"train": 30, "dev": 30}
    assert len((tmp_path / "few" / "train" / "behaviors.tsv").read_text().splitlines()) == 30


def test_recommend_as_a_table_as_json_and_from_stdin(folder: Path) -> None:
    shown = nrms("recommend", "--model", folder, "--history", "N1", "-k", "3")
    assert shown.returncode == 0 and "because of" in shown.stdout, shown.stderr
    done = nrms("predict", "--model", folder, "--history", "N1", "--history", "gone", "-k", "3", "--json")
    found = json.loads(done.stdout)
    assert [len(found["items"]), found["missing"]] == [3, ["gone"]] and "gone" in done.stderr
    assert found["items"][0]["reasons"][0]["id"] == "N1"
    titled = nrms("recommend", "-", "--model", folder, "-k", "2", "--json", stdin=f"{make_news(2)[1].title}\n\n")
    again = json.loads(titled.stdout)["items"]
    assert again[0]["id"] in {"N1", *(i["id"] for i in found["items"])}
    popular = nrms("recommend", "--model", folder)
    assert popular.returncode == 0 and "recent articles" in popular.stdout


def test_embed_activate_models_and_answers_from_the_database(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "news.tsv").write_text("".join(f"{news_row(n)}\n" for n in make_news(25)))
    database = f"sqlite:///{tmp_path / 'x.db'}"
    first = nrms("embed", "--model", folder, "--database", database, "--data", tmp_path / "news.tsv", "--json")
    done = json.loads(first.stdout)
    assert (done["done"], done["left"], done["active"]) == (25, 0, False), first.stderr
    assert "25 inserted" in first.stderr
    listed = json.loads(nrms("models", "--database", database, "--json").stdout)["models"]
    assert [(m["state"], m["embedded"], m["live"]) for m in listed] == [("building", 25, 25)]
    early = nrms("serve", "--model", folder, "--database", database)
    assert early.returncode == 2 and "no active model" in early.stderr and "--activate" in early.stderr
    activated = nrms("activate", listed[0]["id"][:8], "--database", database)
    assert activated.returncode == 0 and "is active" in activated.stdout
    again = json.loads(nrms("embed", "--model", folder, "--database", database, "--json").stdout)
    assert (again["done"], again["active"]) == (0, True)
    store = Store(database)
    store.events.add([Read("1", "someone", "N3", 1)])
    store.close()
    mine = nrms("recommend", "--database", database, "--user", "someone", "-k", "30", "--json")
    ids = [i["id"] for i in json.loads(mine.stdout)["items"]]
    assert len(ids) == 24 and "N3" not in ids


def test_only_reading_makes_no_database(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'typo' / 'x.db'}"
    for verb in (["recommend", "--history", "N1"], ["models"], ["activate", "abc"], ["serve", "--model", "no-such"]):
        done = nrms(*verb, "--database", database, cwd=tmp_path)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())
    Store(f"sqlite:///{tmp_path / 'empty.db'}").close()
    done = nrms("recommend", "--history", "N1", "--database", tmp_path / "empty.db")
    assert done.returncode == 2 and "no model is active" in done.stderr and "embed" in done.stderr


def test_an_empty_database_gets_the_articles_of_the_model(folder: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    make_ready(Store(database), folder)
    done = nrms("recommend", "--model", folder, "--database", database, "--history", "N1", "-k", "2", "--json")
    from_files = nrms("recommend", "--model", folder, "--history", "N1", "-k", "2", "--json")
    assert json.loads(done.stdout)["items"] == json.loads(from_files.stdout)["items"]


def test_a_model_that_was_trained_again_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    database, home = f"sqlite:///{tmp_path / 'x.db'}", tmp_path / "model"
    answers = []
    for seed in (1, 2):
        made = Recommender(make_model(home, seed=seed))
        made.add(make_news(20 + seed))
        made.save_pretrained(home)
        make_ready(Store(database), home)
        done = nrms("recommend", "--model", home, "--database", database, "--history", "N1", "-k", "30", "--json")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
        assert answers[-1]["model_id"] == made.model_id and len(answers[-1]["items"]) == 19 + seed
    assert answers[0]["model_id"] != answers[1]["model_id"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recommend", "--model", "no-such"], "there is no such model folder"),
        (["embed", "--model", "no-such"], "there is no such model folder"),
        (["recommend", "--user", "u"], "--user: the reads of a user are in a database"),
        (["serve", "--search", "magic"], "is no way to search"),
        (["models", "--database", "oracle://x"], "not supported"),
        (["activate", "abc", "--database", "x.db"], "x.db"),
        (["train", "--profile", "huge"], "is not a profile"),
        (["train", "--data", ""], "--data: is empty"),
        (["train", "--set", "train.epochz=3"], "epochz"),
        (["train", "--set", "model.heads=0"], "model.heads must be at least 1, not 0"),
        (["train", "--set", "model.heads=2.5"], "model.heads=2.5 is not of type int"),
        (["train", "--set", "model.dropout=1"], "model.dropout must be in [0, 1)"),
        (["train", "--set", "model.views=[title,title]"], "model.views must hold title"),
        (["train", "--set", "model.views=[body]"], "model.views[0]='body' is not one of"),
        (
            ["train", "--set", "model.encoder=transformer", "--set", "model.views=[title,abstract]"],
            "model.encoder=words",
        ),
        (["train", "--set", "train.learning_rate=-1"], "train.learning_rate must be positive"),
        (["train", "--set", "train.learning_rate=.inf"], "train.learning_rate must be positive"),
        (["train", "--set", "train.clip=.nan"], "train.clip must be at least 0"),
        (["train", "--set", "train.seed=99999999999"], "train.seed must be at most"),
        (["train", "--set", "train.warmup=2"], "train.warmup is a share"),
        (["train", "--set", "train.accumulate=3"], "train.batch_size must be a multiple"),
        (["train", "--set", "train.schedule=steep"], "is not one of"),
        (["train", "--set", "train.precision=fp8"], "is not one of"),
        (["evaluate", "--data", "nowhere"], "there is no such model folder"),
        (["bench", "--suite", "none"], "is no suite"),
        (["bench", "--suite", "work", "--quick", "--peer", "x"], "is no peer"),
        (["export", "--model", "no-such"], "there is no such model folder"),
        (["prepare", "--source", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = nrms(*arguments, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and done.stdout == "" and len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ") and said in lines[0]


def test_a_run_that_has_not_ended_does_not_answer(folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    shutil.rmtree(cut / "catalogue")
    done = nrms("recommend", "--model", cut, "--history", "N1")
    assert done.returncode == 2 and f"nrms train --resume {cut}" in done.stderr and done.stdout == ""


def test_export_gives_the_same_scores_in_another_runtime(folder: Path, tmp_path: Path, model: LoadedModel) -> None:
    runtime = pytest.importorskip("onnxruntime")
    import numpy as np

    done = nrms("export", "--model", folder, "--output-dir", tmp_path / "onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert all(file["difference"] <= 1e-5 for file in json.loads(done.stdout)["files"])
    news, user = (runtime.InferenceSession(str(tmp_path / "onnx" / f"{n}_encoder.onnx")) for n in ("news", "user"))
    from nrms.data.tokens import tokenise

    articles = make_news(9)
    tokens, lengths = tokenise(articles, model.vocabulary, model.config)
    vectors = news.run(None, {"tokens": tokens.astype("i8"), "lengths": lengths.astype("i8")})[0]
    assert np.allclose(vectors, model.encode_articles(articles).numpy(), atol=1e-5)
    users = user.run(None, {"news": vectors[None, :4], "mask": np.ones((1, 4), bool)})[0]
    scores = vectors @ users[0]
    made = Recommender(model)
    made.add(articles)
    ours = made.recommend(["N0", "N1", "N2", "N3"], 9).items
    assert np.allclose([scores[int(i.id[1:])] for i in ours], [i.score for i in ours], atol=5e-2, rtol=5e-3)
    about = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert about["model_id"] == model.model_id


@pytest.mark.slow
def test_train_evaluate_and_recommend_on_the_sample(tmp_path: Path) -> None:
    trained = nrms("train", "--set", "train.epochs=1", "--json", "--limit", "400", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["articles"] == 3000
    scored = nrms("evaluate", "--json", "--limit", "100", cwd=tmp_path)
    assert {row["name"] for row in json.loads(scored.stdout)["rows"]} >= {"NRMS", "popularity", "random"}, scored.stderr
    assert json.loads(nrms("recommend", "--history", "N12", "--json", cwd=tmp_path).stdout)["items"]
    file = tmp_path / "prediction.zip"
    assert nrms("evaluate", "--submission", file, "--limit", "20", cwd=tmp_path).returncode == 0 and file.is_file()


def test_evaluate_writes_figures_plots_and_a_page(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "data", SampleConfig(articles=120, users=20, train=60, dev=20, candidates=8))
    done = nrms("evaluate", "--model", folder, "--data", tmp_path / "data", "--output-dir", tmp_path / "o", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["report"] == str(tmp_path / "o" / "report.html"), done.stderr
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2 and "://" not in page  # it stands alone
    assert all(row["name"] in page for row in [*found["rows"], *found["slices"]])
    written = json.loads((tmp_path / "o" / "results.json").read_text())
    assert written["rows"] == found["rows"] and written["model_id"] == found["model_id"]
    assert (tmp_path / "o" / "plots" / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_under_torchrun_one_process_writes_and_prints(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", SampleConfig(articles=120, users=20, train=60, dev=20, candidates=8))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nrms.cli"]
    command += ["train", "--profile", "sample", "--data", "data", "--output-dir", "run"]
    command += ["--set", "train.epochs=1", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
    if "SIGABRT" in done.stderr:  # seen once, on a machine with thrice its load, and not again: shown, and tried anew
        warnings.warn(done.stderr, stacklevel=1)
        again = [*command, "--overwrite"]
        done = subprocess.run(again, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)  # one object, of one process
    assert found["articles"] == 120 and (tmp_path / "run" / "catalogue" / "catalogue.json").is_file()
    assert nrms("recommend", "--model", tmp_path / "run", "--history", "N1", "--json").returncode == 0


def test_a_run_remembers_its_data(tmp_path: Path) -> None:
    write_sample(tmp_path / "mine", SampleConfig(articles=120, users=20, train=60, dev=20, candidates=8))
    sizes = [
        "--set",
        "model.heads=2",
        "--set",
        "model.head_dim=4",
        "--set",
        "model.word_dim=8",
        "--set",
        "train.epochs=1",
    ]
    done = nrms("train", "--data", "mine", "--output-dir", "run", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--model run --history" in (tmp_path / "run/README.md").read_text()
    assert nrms("train", "--resume", "run", cwd=tmp_path).returncode == 0
    done = nrms("evaluate", "--model", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads((tmp_path / "run/results.json").read_text())["data"].startswith(
        "mine, dev"
    )
    (tmp_path / "mine").rename(tmp_path / "moved")
    done = nrms("evaluate", "--model", "run", cwd=tmp_path)
    assert done.returncode == 2 and "gone" in done.stderr and "--data" in done.stderr
