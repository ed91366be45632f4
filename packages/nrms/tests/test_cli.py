"""The command as a process: what it prints, what it writes, how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factory import make_news

from nrms.data.mind import news_row
from nrms.inference import Recommender
from nrms.model.folder import LoadedModel
from nrms.server.store import Read, Store

HEAVY = ("torch", "sqlalchemy", "fastapi", "numpy", "transformers", "alembic", "usearch", "uvicorn")
VERBS = ["prepare", "train", "evaluate", "embed", "models", "activate"]
VERBS += ["recommend", "predict", "serve", "export", "bench"]


def nrms(*arguments: object, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nrms.cli", *map(str, arguments)]
    given = {key: value for key, value in os.environ.items() if not key.startswith("NRMS_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, input=stdin, env=given, timeout=240)


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


def test_an_empty_database_gets_the_articles_of_the_model(folder: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    done = nrms("recommend", "--model", folder, "--database", database, "--history", "N1", "-k", "2", "--json")
    from_files = nrms("recommend", "--model", folder, "--history", "N1", "-k", "2", "--json")
    assert json.loads(done.stdout)["items"] == json.loads(from_files.stdout)["items"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recommend", "--model", "no-such"], "there is no such model folder"),
        (["embed", "--model", "no-such"], "there is no such model folder"),
        (["recommend", "--user", "u"], "--user: the reads of a user are in a database"),
        (["serve", "--search", "magic"], "is no way to search"),
        (["models", "--database", "oracle://x"], "not supported"),
        (["activate", "abc", "--database", "x.db"], "there is no such model"),
        (["train", "--profile", "huge"], "is not a profile"),
        (["train", "--set", "train.epochz=3"], "epochz"),
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
