"""The API through its test client, and its page in a browser before a real server."""

import os
import shutil
import subprocess
import sys

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


# -- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(summarizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    summarizer.save(folder)
    call = [sys.executable, "-m", "seq2seq_keras.cli", "serve", "--model", str(folder), "--port", "0"]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert line.startswith("http://127.0.0.1:"), line + process.stderr.read()
    yield line.split("/ ")[0]
    process.terminate()
    process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_in_chromium(address, summarizer, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    path = os.environ.get("LATENTLAB_CHROMIUM", found)
    if path is None:
        pytest.skip("there is no Chromium (set LATENTLAB_CHROMIUM to its path)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=[*flags, "--disable-component-update"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        faults, foreign = [], []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(address) else foreign.append(request.url))
        page.goto(address + "/")
        page.locator("#model", has_text="parameters, pointer").wait_for()

        page.select_option("#beam", "1")
        page.click("#go")
        page.wait_for_selector("#summary span")
        summary = summarizer.summarize(TEXT)
        assert page.locator("#summary span").all_text_contents() == list(summary.words)
        assert page.locator("#read span").all_text_contents() == list(summary.source)
        page.hover("#summary span")
        tinted = "[...document.querySelectorAll('#read span')].filter((s) => s.style.backgroundColor).length"
        assert page.evaluate(tinted) == len(summary.source)
        page.mouse.move(0, 0)
        assert page.evaluate(tinted) == 0
        for width in (1200, 390):  # nothing runs off the page
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
            wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide[0] <= wide[1]

        page.fill("#text", "<script>document.title = 'run'</script> <img src=x onerror=alert(1)> Two things happened.")
        page.keyboard.press("Control+Enter")
        page.locator("#read", has_text="happened").wait_for()
        assert page.locator("#read img, #summary script").count() == 0 and page.title() == "seq2seq-keras"
        page.fill("#text", " ... ")
        page.click("#go")
        page.wait_for_selector("#error:not([hidden])")
        assert "no words to summarize" in page.text_content("#error")
        assert [fault for fault in faults if "422" not in fault] == [] and foreign == []
        browser.close()
