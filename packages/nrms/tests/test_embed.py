"""The embedding job as a process of its own: killed, run again, run twice at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from factory import make_model, make_news

from nrms.inference import Recommender
from nrms.model.folder import LoadedModel
from nrms.server.article_recommender import calculate_embeddings
from nrms.server.article_recommender.calculate_embeddings import embed_pending, run_embed
from nrms.server.store import Store
from nrms.server.store.schema import embeddings, jobs

_started: list[subprocess.Popen[str]] = []
MODULE = "nrms.server.article_recommender.calculate_embeddings"


def start(model_dir: Path, database: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MODULE, "--model", str(model_dir), "--database", database, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    _started.append(process)
    return process


@pytest.fixture(autouse=True)
def leave_no_process() -> Iterator[None]:
    """A test that fails leaves nothing running."""
    yield
    while _started:
        _started.pop().kill()


def finish(process: subprocess.Popen[str]) -> dict:
    out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def count(store: Store) -> int:
    with store.database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(embeddings)).scalar_one()


def wait_for(condition, seconds: float = 240) -> None:  # a process takes its time to start on a busy machine
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_killed_in_the_middle_and_run_again_nothing_twice_and_nothing_missing(
    database: str, model_dir: Path, model: LoadedModel
) -> None:
    store, total = Store(database), 3000
    news = make_news(total)
    store.articles.add(news)
    process = start(model_dir, database, "--batch-size", "3")
    wait_for(lambda: count(store) > 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = count(store)
    assert 20 < before < total and before % 3 == 0  # whole batches only
    again = finish(start(model_dir, database, "--batch-size", "500"))
    assert (again["done"], again["left"]) == (total - before, 0)
    assert count(store) == total
    with store.database.read() as connection:
        rows = connection.execute(sa.select(jobs.c.state, jobs.c.done).order_by(jobs.c.started_at)).all()
    assert rows == [("failed", before), ("done", total - before)]
    stored = store.models.get(model.model_id)
    changes = store.embeddings.changes(stored)
    assert [row[1] for row in changes.rows] == [n.id for n in news]
    assert np.allclose(changes.vectors, model.encode_articles(news).numpy(), atol=1e-3, rtol=1e-3)
    store.close()


def test_interrupted_it_says_so_and_how_to_go_on(tmp_path: Path, model_dir: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'x.db'}")
    store.articles.add(make_news(3000))
    process = start(model_dir, store.database.url, "--batch-size", "1")
    wait_for(lambda: count(store) > 5)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in error, error
    held = json.loads(out)
    assert held["done"] == count(store) and held["left"] == 3000 - held["done"]
    store.close()


@pytest.mark.slow
def test_two_processes_share_the_work(database: str, model_dir: Path) -> None:
    store, total = Store(database), 4000
    store.articles.add(make_news(total))
    both = [start(model_dir, database, "--batch-size", "50") for _ in range(2)]
    done = [finish(process)["done"] for process in both]
    assert sum(done) == total == count(store)
    store.close()


def test_the_scheduler_goes_on_until_it_is_told_to_stop(database: str, model_dir: Path) -> None:
    store = Store(database)
    store.articles.add(make_news(5))
    process = start(model_dir, database, "--every", "0.05")
    wait_for(lambda: count(store) == 5)
    store.articles.add(make_news(7))
    wait_for(lambda: count(store) == 7)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    store.close()


def test_a_job_told_to_stop_leaves_the_rest_for_the_next(database: str, model: LoadedModel) -> None:
    store, batches = Store(database), []
    store.articles.add(make_news(50))
    first = embed_pending(store, model, "f", batch_size=10, stop=lambda: len(batches) == 2, advance=batches.append)
    assert (first.done, first.left, batches) == (20, 30, [10, 10])
    assert embed_pending(store, model, "f").done == 30
    store.close()


def test_embed_adds_activates_and_reports(tmp_path: Path, model_dir: Path, model: LoadedModel) -> None:
    from nrms.data.mind import behaviors_row, news_row
    from nrms.data.types import Impression

    news = make_news(12)
    at = news[-1].published.replace(tzinfo=None)
    (tmp_path / "news.tsv").write_text("".join(f"{news_row(n)}\n" for n in news))
    shown = [
        Impression("1", "U1", at, ("N1", "N2"), ("N3", "N4"), (1, 0)),
        Impression("2", "U1", at, ("N1", "N2", "N3"), ("N5", "N6"), (0, 1)),
    ]
    (tmp_path / "behaviors.tsv").write_text("".join(f"{behaviors_row(i)}\n" for i in shown))
    url = f"sqlite:///{tmp_path / 'x.db'}"
    reports: list[dict] = []
    options = calculate_embeddings.EmbedOptions(model_dir, url, str(tmp_path), tmp_path, activate=True)
    run_embed(options, "cpu", reports.append)
    run_embed(options, "cpu", reports.append)
    assert [(r["done"], r["left"], r["active"]) for r in reports] == [(12, 0, True), (0, 0, True)]
    store = Store(url)
    assert store.events.history("U1") == ["N1", "N2", "N3", "N6"]
    assert store.models.active().id == model.model_id
    store.close()


def test_load_model_and_recommend_topk_from_titles(
    tmp_path: Path, model_dir: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed's two functions: history on the fly, candidates from the cache."""
    from latentlab_shared.errors import UserError
    from nrms.server.article_recommender import model as module
    from nrms.server.article_recommender.model import load_model, recommend_topk_from_titles

    monkeypatch.setattr(module, "_loaded", None)
    with pytest.raises(UserError, match="load_model"):
        recommend_topk_from_titles(["x"], ["N1"])
    news = make_news(30)
    url = f"sqlite:///{tmp_path / 'x.db'}"
    store = Store(url)
    store.articles.add(news)
    embed_pending(store, model, str(model_dir))
    store.close()
    load_model(model_dir, database=url)
    titles, chosen = [news[3].title, news[8].title], ["N1", "N5", "N9", "N5"]
    items = recommend_topk_from_titles(titles, chosen, 2)
    read = model.encode_titles(titles)[None]
    import torch

    with torch.inference_mode():
        user = model.model.encode_user(read, torch.ones(1, 2, dtype=torch.bool))[0].numpy()
    matrix = {n.id: v.numpy() for n, v in zip(news, model.encode_articles(news), strict=True)}
    expected = sorted({"N1", "N5", "N9"}, key=lambda id: -float(matrix[id] @ user))[:2]
    assert [item.id for item in items] == expected
    assert np.allclose([item.score for item in items], [matrix[id] @ user for id in expected], rtol=2e-3, atol=2e-3)
    fresh = recommend_topk_from_titles(titles, [{"id": "new", "title": news[3].title}, news[1], "N5"], 5)
    assert {item.id for item in fresh} == {"new", "N1", "N5"}
    with pytest.raises(UserError, match="neither a cached embedding nor a title, the first is gone"):
        recommend_topk_from_titles(titles, ["gone"])
    assert isinstance(load_model(model_dir), Recommender)


def test_a_model_folder_that_was_overwritten_is_noticed(tmp_path: Path) -> None:
    from latentlab_shared.errors import UserError
    from nrms.server.sync import Follower

    first = make_model(tmp_path / "m", seed=1)
    store = Store(f"sqlite:///{tmp_path / 'x.db'}")
    store.articles.add(make_news(3))
    embed_pending(store, first, str(tmp_path / "m"))
    store.models.activate(first.model_id)
    make_model(tmp_path / "m", seed=2)
    with pytest.raises(UserError, match="holds another model"):
        Follower(store).refresh()
    store.close()
