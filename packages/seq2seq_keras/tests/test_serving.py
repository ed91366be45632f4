"""The API through its test client."""

import keras
import pytest
from fastapi.testclient import TestClient

from seq2seq_keras.config import PRESETS, ModelConfig, Settings
from seq2seq_keras.data.encode import build_vocabulary
from seq2seq_keras.inference import Summarizer
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.sample import demo, generate
from seq2seq_keras.serving.app import MAX_BODY_BYTES, MAX_CHARACTERS, MAX_TEXTS, create_app

TEXT = demo().text


@pytest.fixture(scope="module")
def summarizer():
    keras.utils.set_random_seed(0)
    vocabulary = build_vocabulary(generate(50), PRESETS["small"].data)
    model = ModelConfig(embedding_dim=8, units=8, encoder_layers=1, pointer=True)
    return Summarizer(Seq2Seq(len(vocabulary), model), vocabulary, Settings(model=model))


@pytest.fixture(scope="module")
def client(summarizer):
    return TestClient(create_app(summarizer), raise_server_exceptions=False)


def test_health_and_readiness(client, summarizer):
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "parameters": summarizer.model.count_params(), "pointer": True}


def test_one_text_is_what_the_summarizer_says(client, summarizer):
    found = client.post("/summarize", json={"text": TEXT, "attention": True}).json()
    summary = summarizer.summarize(TEXT)
    assert found["text"] == summary.text and tuple(found["words"]) == summary.words
    assert len(found["attention"]) == len(found["words"]) and len(found["attention"][0]) == len(found["source"])


def test_several_texts_keep_their_order(client, summarizer):
    texts = [e.text for e in generate(4, seed=2)]
    found = client.post("/summarize", json={"texts": texts}).json()["summaries"]
    assert [f["text"] for f in found] == [s.text for s in summarizer.summarize(texts)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "give either text or texts"),
        ({"text": "a", "texts": ["b"]}, "give either text or texts"),
        ({"text": " "}, "no words to summarize"),
        ({"texts": ["Fine.", "..."]}, "text 1: there are no words"),
        ({"text": "x" * (MAX_CHARACTERS + 1)}, "text: "),
        ({"texts": ["x" * (MAX_CHARACTERS + 1)]}, "text 0 has more than"),
        ({"texts": ["x"] * (MAX_TEXTS + 1)}, "texts: "),
        ({"text": "News.", "beam": 0}, "beam: "),
        ({"text": "News.", "beam": "2"}, "beam: "),
        ({"text": "News.", "temperature": 1}, "temperature: "),
    ],
)
def test_bad_requests_are_one_line(client, body, said):
    answer = client.post("/summarize", json=body)
    assert answer.status_code == 422 and said in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_large_bodies_and_unknown_routes_are_refused(client):
    assert client.post("/summarize", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.post("/summarize", content=b"{").status_code == 422
    assert client.get("/absent").status_code == 404


def test_the_page_holds_the_demo_and_loads_nothing(client):
    answer = client.get("/")
    assert TEXT[:40] in answer.text and "%%" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"] and "http://" not in answer.text
