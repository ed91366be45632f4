"""The HTTP API, inside one process on both databases, and as processes that are killed and stopped."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from factory import make_model, make_news
from fastapi.testclient import TestClient

from latentlab_shared.errors import UserError
from nrms.model.folder import LoadedModel
from nrms.server.app import create_app
from nrms.server.article_recommender.calculate_embeddings import embed_pending
from nrms.server.corpus import open_ready
from nrms.server.observe import JsonLines
from nrms.server.settings import Settings
from nrms.server.store import Store
from nrms.server.workers import serve

COUNT = 60
TOKEN = "a secret"


@pytest.fixture
def ready(database: str, model: LoadedModel, model_dir: Path) -> str:
    """A database with articles, vectors and an active model."""
    store = Store(database)
    store.articles.add(make_news(COUNT))
    embed_pending(store, model, str(model_dir))
    store.models.activate(model.model_id)
    store.close()
    return database


@pytest.fixture
def client(ready: str) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(ready, poll=0.05, patience=0.3, token=""))) as made:
        yield made


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_ranking_with_reasons_and_the_model_that_made_it(client: TestClient, model: LoadedModel) -> None:
    body = {"history": ["N1", "N2", "gone"], "k": 4, "explain": True, "categories": ["sports"], "diversity": 0.2}
    found = client.post("/recommend", json=body).json()
    assert found["model_id"] == model.model_id and found["missing"] == ["gone"] and found["fallback"] is None
    assert [i["category"] for i in found["items"]] == ["sports"] * 4
    assert all(i["reasons"] and i["published"].startswith("2026-01-01T") for i in found["items"])
    assert client.post("/recommend", json={}).json()["fallback"] == "recent"
    assert len(client.post("/recommend", json={"history": ["N1"], "k": 1000}).json()["items"]) == COUNT - 1
    assert client.post("/recommend", json={"history_titles": ["w1 w2"], "k": 0}).json()["items"] == []
    assert client.post("/recommend", json={"model_id": model.model_id}).status_code == 200
    other = client.post("/recommend", json={"model_id": "f" * 64})
    assert other.status_code == 409 and model.model_id in other.json()["error"]


def test_a_process_whose_model_is_away_waits_for_it(tmp_path: Path) -> None:
    """A worker that is replaced after the folder was moved must not die again and again."""
    folder, away = tmp_path / "m", tmp_path / "away"
    made = make_model(folder, seed=1)
    store = Store(f"sqlite:///{tmp_path / 'x.db'}")
    store.articles.add(make_news(3))
    embed_pending(store, made, str(folder))
    store.models.activate(made.model_id)
    folder.rename(away)
    with TestClient(create_app(Settings(store.database.url, poll=0.05, token=""))) as client:
        assert client.get("/readyz").status_code == 503 and client.post("/recommend", json={}).status_code == 503
        away.rename(folder)
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert len(client.post("/recommend", json={"history": ["N1"]}).json()["items"]) == 2
    store.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"k": -1}, "k: "),
        ({"k": "3"}, "k: "),
        ({"k": 1001}, "k: "),
        ({"k": True}, "k: "),
        ({"diversity": 2}, "diversity: "),
        ({"history": ["N1"] * 1001}, "history: "),
        ({"history": [""]}, "history.0: "),
        ({"history": ["a\u0000b"]}, "cannot be stored"),
        ({"published_since": "yesterday"}, "published_since: "),
        ({"histroy": []}, "histroy: "),
        ([], "body: "),
    ],
)
def test_wrong_bodies_are_one_line(
    model: LoadedModel, model_dir: Path, tmp_path: Path, body: object, said: str
) -> None:
    store = Store(str(tmp_path / "x.db"))
    store.close()
    with TestClient(create_app(Settings(f"sqlite:///{tmp_path / 'x.db'}", token=""))) as made:
        answer = made.post("/recommend", json=body)
        assert answer.status_code == 422 and said in answer.json()["error"]


def test_articles_become_recommendable_once_embedded(client: TestClient) -> None:
    article = {"id": "fresh", "title": "w1 w2 w3", "category": "new topic", "published": "2026-02-01T10:00:00Z"}
    added = client.post("/articles", json={"articles": [article, {"id": "N1", "title": "w5"}]})
    assert added.json() == {"inserted": 1, "updated": 1, "unchanged": 0}
    assert client.get("/embeddings").json()["left"] == 2
    answer = client.post("/embeddings/refresh")
    assert answer.status_code == 202
    wait_for(lambda: client.get("/embeddings").json()["left"] == 0)
    query = {"history": ["N2"], "categories": ["new topic"]}
    wait_for(lambda: [i["id"] for i in client.post("/recommend", json=query).json()["items"]] == ["fresh"])
    assert (
        client.get("/articles", params={"words": "W2 w1", "category": "new topic"}).json()["articles"][0]["id"]
        == "fresh"
    )
    assert "new topic" in client.get("/articles").json()["categories"]
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    client.post("/articles", json={"articles": [article | {"expires": past}]})  # withdrawn
    wait_for(lambda: client.post("/recommend", json=query).json()["items"] == [])


def test_events_make_a_reader_known(client: TestClient) -> None:
    assert client.get("/users/someone/recommendations", params={"k": 2}).json()["fallback"] == "recent"
    events = [{"event_id": f"e{i}", "user": "someone", "article": f"N{i}"} for i in range(3)]
    assert client.post("/events", json={"events": events}).json() == {"accepted": 3, "duplicates": 0}
    assert client.post("/events", json={"events": events}).json() == {"accepted": 3, "duplicates": 3}
    answer = client.get("/users/someone/recommendations", params={"k": 50, "explain": True}).json()
    assert answer["fallback"] is None and len(answer["attention"]) == 3
    assert not {"N0", "N1", "N2"} & {i["id"] for i in answer["items"]}
    late = {"event_id": "x", "user": "u", "article": "a", "at": "2999-01-01T00:00:00Z"}
    assert client.post("/events", json={"events": [late]}).status_code == 422


def test_what_was_read_is_not_recommended_however_long_ago(client: TestClient) -> None:
    old = [{"event_id": "old", "user": "u", "article": "N7", "at": "2020-01-01T00:00:00Z"}]
    again = [{"event_id": f"e{i}", "user": "u", "article": "N9"} for i in range(999)]
    gone = [{"event_id": f"g{i}", "user": "u", "article": f"gone{i}"} for i in range(1000)]
    for events in (old + again, gone, [{"event_id": "last", "user": "u", "article": "N2"}]):
        assert client.post("/events", json={"events": events}).status_code == 200
    answer = client.get("/users/u/recommendations", params={"k": 1000, "explain": True}).json()
    assert {i["id"] for i in answer["items"]} == {f"N{i}" for i in range(COUNT)} - {"N2", "N7", "N9"}
    assert [read["id"] for read in answer["attention"]] == ["N2"]  # of the last thousand that one is known


def test_times_outside_the_calendar_are_422(client: TestClient) -> None:
    article = {"id": "P0", "title": "t"}
    for moment in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:30:00-01:00"):
        for name in ("published", "expires"):
            answer = client.post("/articles", json={"articles": [article | {name: moment}]})
            assert answer.status_code == 422 and f"articles.0.{name}: " in answer.json()["error"]
        event = {"event_id": "e", "user": "u", "article": "N1", "at": moment}
        assert client.post("/events", json={"events": [event]}).status_code == 422
        assert client.post("/recommend", json={"published_since": moment}).status_code == 422
        assert client.get("/users/u/recommendations", params={"published_since": moment}).status_code == 422
    last = article | {"published": "9999-12-31T23:59:59.999999Z"}
    assert client.post("/articles", json={"articles": [last]}).status_code == 200
    assert client.get("/articles").json()["articles"][0]["published"] == "9999-12-31T23:59:59.999000+00:00"


def test_wrong_queries_are_one_line(client: TestClient) -> None:
    for path, names in (("/articles", ("category", "words")), ("/users/x/recommendations", ("category",))):
        for name in names:
            assert client.get(path, params={name: "x" * 200}).status_code == 200
            for value in ("\0", "a\0b", "x" * 201):
                answer = client.get(path, params={name: value})
                assert answer.status_code == 422 and name in answer.json()["error"]


def test_popular_articles_come_first_for_strangers(ready: str) -> None:
    store = Store(ready)
    from nrms.server.store import Read, now_ms

    store.events.add([Read(f"{u}{a}", u, a, now_ms()) for u, a in (("u", "N5"), ("v", "N5"), ("u", "N9"))])
    store.close()
    with TestClient(create_app(Settings(ready, token=""))) as made:
        answer = made.get("/users/stranger/recommendations", params={"k": 2}).json()
    assert (answer["fallback"], [i["id"] for i in answer["items"]]) == ("popular", ["N5", "N9"])


def test_writing_needs_the_token_when_there_is_one(ready: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = Settings(ready, token=TOKEN)
    assert TOKEN not in repr(settings)
    event = {"events": [{"event_id": "a", "user": "u", "article": "N1"}]}
    with TestClient(create_app(settings)) as made:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            answer = made.post("/events", json=event, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert made.post("/events", json=event, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert made.post("/embeddings/refresh").status_code == 401
        assert made.post("/recommend", json={}).status_code == 200
        assert made.get("/readyz").status_code == 200
        assert TOKEN not in made.get("/openapi.json").text + made.get("/metrics").text
    assert TOKEN not in caplog.text


def test_large_bodies_are_refused_however_they_are_sent(client: TestClient) -> None:
    large = b'{"history_titles": ["' + b"x" * 2**20 + b'"]}'
    headers = {"content-type": "application/json"}
    assert client.post("/recommend", content=large, headers=headers).status_code == 413
    pieces = (large[i : i + 65536] for i in range(0, len(large), 65536))
    assert client.post("/recommend", content=pieces, headers=headers).status_code == 413  # no content-length
    assert client.post("/recommend", content=b"{", headers=headers).status_code == 422
    small = (piece for piece in (b'{"k"', b": 1}"))
    assert client.post("/recommend", content=small, headers=headers).status_code == 200


def test_states_and_metrics(client: TestClient, model: LoadedModel) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready | {"model_id": model.model_id, "articles": COUNT, "dim": 16} == ready
    client.post("/recommend", json={"history": ["gone"]})
    page = client.get("/metrics").text
    assert 'nrms_requests_total{route="/recommend",status="200"} 1.0' in page
    assert 'nrms_fallbacks_total{kind="recent"} 1.0' in page and "nrms_missing_articles_total 1.0" in page
    assert f'nrms_model_active{{model_id="{model.model_id}"}} 1.0' in page and f"nrms_articles {COUNT}.0" in page
    assert client.get("/no/such/route/123").json() == {"error": "Not Found"}
    assert "no/such" not in client.get("/metrics").text  # paths of strangers are no labels
    assert {"/recommend", "/articles", "/events", "/users/{user}/recommendations"} <= set(
        client.get("/openapi.json").json()["paths"]
    )
    assert len(client.get("/healthz").headers["x-request-id"]) == 16


def test_without_a_model_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    Store(url).close()
    with TestClient(create_app(Settings(url, token=""))) as made:
        assert made.get("/healthz").status_code == 200
        for answer in (made.get("/readyz"), made.post("/recommend", json={}), made.get("/embeddings")):
            assert answer.status_code == 503 and "no model is active" in answer.json()["error"]


def test_the_page_runs_only_its_own_script(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("http-equiv", "")


def test_the_model_is_switched_under_load_without_a_failed_or_mixed_answer(
    ready: str, tmp_path: Path, model: LoadedModel
) -> None:
    store = Store(ready)
    other = make_model(tmp_path / "other", seed=5)
    failures: list[str] = []
    seen: dict[str, list] = {}
    stop = threading.Event()
    with TestClient(create_app(Settings(ready, poll=0.05, token=""))) as made:

        def ask() -> None:
            while not stop.is_set():
                answer = made.post("/recommend", json={"history": ["N1", "N2"], "k": 5})
                found = answer.json()
                if answer.status_code != 200:
                    failures.append(answer.text)
                elif seen.setdefault(found["model_id"], found["items"]) != found["items"]:
                    failures.append(f"two answers of {found['model_id']}")

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        embed_pending(store, other, str(tmp_path / "other"))  # beside the requests
        store.models.activate(other.model_id)
        wait_for(lambda: len(seen) == 2 or failures)
        store.models.activate(model.model_id)
        wait_for(lambda: made.get("/readyz").json()["model_id"] == model.model_id)
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == [] and set(seen) == {model.model_id, other.model_id}
    store.close()


def test_search_in_the_database_and_by_graph_answer_like_the_scan(
    empty_postgres: str, model: LoadedModel, model_dir: Path
) -> None:
    pytest.importorskip("usearch")
    store = Store(empty_postgres)
    store.articles.add(make_news(COUNT))
    embed_pending(store, model, str(model_dir))
    store.models.activate(model.model_id)
    store.close()
    answers = []
    body = {"history": ["N1", "N8"], "k": 5, "categories": ["sports", "music"], "explain": True}
    for search in ("exact", "usearch", "database"):
        with TestClient(create_app(Settings(empty_postgres, search=search, token=""))) as made:
            found = made.post("/recommend", json=body).json()
            answers.append([(i["id"], round(i["score"], 3)) for i in found["items"]])
            assert made.post("/recommend", json={"k": 2}).json()["items"][0]["id"] == f"N{COUNT - 1}"
            assert made.post("/recommend", json=body | {"candidates": ["N3", "N4"]}).json()["items"]
    assert answers[0] == answers[1] == answers[2]


def test_a_database_that_is_away_is_503_and_recommending_goes_on(ready: str) -> None:
    if not ready.startswith("sqlite"):
        pytest.skip("the restart of a real PostgreSQL is in test_load.py")
    import sqlite3

    event = {"events": [{"event_id": "a", "user": "u", "article": "N1"}]}
    with TestClient(create_app(Settings(ready, patience=0.3, token=""))) as made:
        other = sqlite3.connect(ready.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        answer = made.post("/events", json=event)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        assert made.post("/recommend", json={"history": ["N1"]}).json()["items"]
        other.execute("ROLLBACK")
        assert made.post("/events", json=event).json() == {"accepted": 1, "duplicates": 0}
        other.close()


def test_a_database_file_taken_away_is_503(ready: str) -> None:
    if not ready.startswith("sqlite"):
        pytest.skip("PostgreSQL keeps its files itself")
    file = Path(ready.removeprefix("sqlite:///"))
    event = {"events": [{"event_id": "a", "user": "u", "article": "N1"}]}
    with TestClient(create_app(Settings(ready, poll=30, patience=0.1, token=""))) as made:
        assert made.post("/events", json=event).json() == {"accepted": 1, "duplicates": 0}
        file.rename(file.with_suffix(".aside"))
        for answer in (made.post("/events", json=event), made.get("/articles")):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        assert not file.exists()
        assert made.post("/recommend", json={"history": ["N1"]}).json()["items"]
        file.with_suffix(".aside").rename(file)
        assert made.post("/events", json=event).json() == {"accepted": 1, "duplicates": 1}


def test_a_full_disk_is_503(ready: str) -> None:
    if not ready.startswith("sqlite"):
        pytest.skip("no disk to fill")
    from sqlalchemy import event as hook

    events = [{"event_id": f"{i}{'x' * 150}", "user": "u", "article": "N1"} for i in range(1000)]
    large = [{"id": f"big{i}", "title": "w1", "abstract": "x" * 9000} for i in range(100)]
    app = create_app(Settings(ready, poll=30, patience=0.1, token=""))
    with TestClient(app) as made:
        engine = app.state.service.store.database.engine
        engine.dispose()
        hook.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
        for answer in (made.post("/events", json={"events": events}), made.post("/articles", json={"articles": large})):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        engine.dispose()
        hook.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 100000"))
        assert made.post("/events", json={"events": events}).json() == {"accepted": 1000, "duplicates": 0}
        assert made.post("/articles", json={"articles": large}).json()["inserted"] == 100


def test_a_model_folder_that_is_gone_is_said_before_anyone_can_connect(tmp_path: Path) -> None:
    url, said = f"sqlite:///{tmp_path / 'x.db'}", []
    held = make_model(tmp_path / "m")
    store = Store(url)
    store.articles.add(make_news(3))
    embed_pending(store, held, str(tmp_path / "m"))
    store.models.activate(held.model_id)
    store.close()
    (tmp_path / "m").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="there is no such model folder"):
        serve(Settings(url), port=0, log=said.append)
    assert said == []


def test_a_mistake_in_the_model_leaves_no_database_behind(tmp_path: Path, model_dir: Path) -> None:
    for folder, said in ((tmp_path / "nowhere", "no such model folder"), (model_dir, "no embedded articles")):
        with pytest.raises(UserError, match=said):
            open_ready(f"sqlite:///{tmp_path / 'new' / 'x.db'}", folder)
    assert list(tmp_path.iterdir()) == []


def test_log_lines_are_json() -> None:
    record = logging.makeLogRecord({"msg": "a %s", "args": ("b",), "levelno": 20, "levelname": "INFO", "route": "/x"})
    line = json.loads(JsonLines().format(record))
    assert (line["event"], line["route"], line["level"]) == ("a b", "/x", "info")
