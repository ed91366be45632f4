"""The API through its test client."""

import inspect
import sys
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))
from clara_helpers import EXAMPLES, TOKENIZER, tiny

from clara_absa.configs import ClaraConfig, LoraSettings, MemoryConfig
from clara_absa.inference import AspectSentiment
from clara_absa.serving.app import MAX_BODY_BYTES, MAX_CHARACTERS, create_app

TEXT = EXAMPLES[0].text
TERMS = [aspect.term for aspect in EXAMPLES[0].aspects]
CONFIG = ClaraConfig(backbone="tiny", memory=MemoryConfig(tokens=4), lora=LoraSettings(rank=0))
ANSWERER = AspectSentiment(tiny(CONFIG.memory)[0], TOKENIZER, CONFIG)


@pytest.fixture(scope="module")
def client():
    return TestClient(create_app(ANSWERER), raise_server_exceptions=False)


def test_health_and_page(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready["tokens"] == 4 and ready["lists_aspects"] is True
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "%%" not in page.text and "The pasta was delicious" in page.text


def test_answers_are_the_models(client):
    found = client.post("/predict", json={"text": TEXT, "aspects": [*TERMS, [0, 3]]}).json()
    expected = ANSWERER.predict(TEXT, [*TERMS, (0, 3)])
    assert [row["aspect"] for row in found["aspects"]] == [r.aspect.term for r in expected]
    for row, result in zip(found["aspects"], expected, strict=True):
        assert row["probabilities"] == pytest.approx(dict(result.probabilities))
    assert client.post("/predict", json={"text": TEXT}).json()["text"] == TEXT  # it looks for aspects itself


def test_memories_are_the_models(client):
    found = client.post("/compress", json={"texts": [TEXT, "soup"]}).json()
    assert found["model"] == ANSWERER.identity
    for row, memory in zip(found["memories"], ANSWERER.compress_batch([TEXT, "soup"]), strict=True):
        assert row["vectors"] == [pytest.approx(v, abs=1e-6) for v in memory.vectors.tolist()]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/predict", {"text": " ", "aspects": ["a"]}, "the text is empty"),
        ("/predict", {"text": "a", "aspects": []}, "aspects"),
        ("/predict", {"text": "a", "aspects": [[0, 9]]}, "no span"),
        ("/predict", {"text": "a", "aspects": [[0, 1, 2]]}, "a span is"),
        ("/predict", {"text": "a", "aspects": ["x" * 201]}, "aspects.0: String should have at most 200 characters"),
        ("/predict", {"text": "a" * 300, "aspects": [[0, 201]]}, "200 characters"),
        ("/predict", {"text": "food " * 300, "aspects": [[1400, 1404]]}, "all that is read"),
        ("/predict", {"text": "a" * (MAX_CHARACTERS + 1)}, "text"),
        ("/predict", {"text": "a", "abstain": 2.0}, "abstain"),
        ("/predict", {"text": "a", "aspect": ["a"]}, "aspect"),
        ("/compress", {"texts": ["a", ""]}, "text 1"),
        ("/compress", {"texts": ["a" * (MAX_CHARACTERS + 1)]}, "texts.0"),
        ("/compress", {"texts": []}, "texts"),
    ],
)
def test_bad_requests_are_refused_in_one_line(client, path, body, said):
    answer = client.post(path, json=body)
    assert answer.status_code == 422 and said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", r'{"text": "a", "aspects": ["\ud800"]}'),
        ("/predict", r'{"text": "a \ud800", "aspects": ["a"]}'),
        ("/predict", r'{"text": "a \ud800"}'),
        ("/compress", r'{"texts": ["a", "\ud800"]}'),
    ],
)
def test_half_a_character_is_wrong_input(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "\n" not in answer.json()["error"], answer.text


def test_a_text_that_is_cut_is_said_to_be(client):
    long = "food " * 300
    assert ANSWERER.is_cut(long) and not ANSWERER.is_cut(TEXT)
    found = client.post("/predict", json={"text": long, "aspects": ["food"]}).json()
    assert found["cut"] and found["aspects"][0]["cut"]
    whole = client.post("/predict", json={"text": TEXT, "aspects": TERMS}).json()
    assert not whole["cut"] and not any(row["cut"] for row in whole["aspects"])
    rows = client.post("/compress", json={"texts": [long, TEXT]}).json()["memories"]
    assert [row["cut"] for row in rows] == [True, False]


def test_the_most_that_a_request_may_ask_is_answered(client):
    """64 aspects of 200 characters, many tokens each: asked in several rows, never in one of their summed length."""
    aspects = ["é" * 199 + chr(97 + n % 26) for n in range(64)]
    found = client.post("/predict", json={"text": TEXT, "aspects": aspects}).json()
    assert [row["aspect"] for row in found["aspects"]] == aspects


def test_health_waits_for_no_answer(monkeypatch):
    """It is answered by the event loop itself, while every thread waits for the model."""
    app = create_app(ANSWERER)
    [route] = [route for route in app.routes if getattr(route, "path", "") == "/healthz"]
    assert inspect.iscoroutinefunction(route.endpoint)
    held, release = threading.Barrier(2), threading.Event()

    def slow(*_, **__):
        held.wait(10)
        assert release.wait(10)
        return []

    monkeypatch.setattr(ANSWERER, "predict", slow)
    with TestClient(app) as served:
        asking = threading.Thread(
            target=served.post, args=("/predict",), kwargs={"json": {"text": "a", "aspects": ["a"]}}
        )
        asking.start()
        held.wait(10)
        assert served.get("/healthz").json() == {"status": "ok"}
        release.set()
        asking.join(10)


def test_a_body_that_is_too_long_or_of_no_length_is_not_read(client):
    assert client.post("/predict", content=b"{" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.get("/nothing").json() == {"error": "Not Found"}
