"""The API through its test client and a real server; the page in Chromium."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from fastapi.testclient import TestClient

from latentlab_shared.encoders import TinyEncoder
from rsr_net import RsrConfig, Summarizer
from rsr_net.data import embed_examples
from rsr_net.inference import SummaryIndex
from rsr_net.sample import demo, generate
from rsr_net.serving.app import MAX_BODY_BYTES, MAX_CHARACTERS, MAX_SENTENCES, MAX_TEXTS, MAX_WAITING, create_app
from rsr_net.training import fit

ARTICLE = demo().article


@pytest.fixture(scope="module")
def summarizer():
    encoder, examples = TinyEncoder(), generate(60)
    articles = list(embed_examples(examples, encoder))
    config = RsrConfig.from_dict({"model": {"input_dim": encoder.dim, "steps": 4}, "train": {"epochs": 1}})
    refiner = fit(articles[:50], articles[50:], config)
    known = SummaryIndex(
        tuple(e.id for e in examples),
        tuple(e.summary for e in examples),
        encoder.encode([e.summary for e in examples]),
    )
    return Summarizer(refiner, encoder, "tiny", config, index=known)


@pytest.fixture(scope="module")
def client(summarizer):
    return TestClient(create_app(summarizer), raise_server_exceptions=False)


def test_health_and_readiness(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    about = {"encoder": "tiny", "trained_on": "", "modes": ["extract", "retrieve"]}
    assert client.get("/readyz").json() == {"status": "ready", **about}


def test_one_article_is_what_the_summarizer_says(client, summarizer):
    answer = client.post("/summarize", json={"text": ARTICLE, "max_sentences": 2})
    summary = summarizer.summarize(ARTICLE, max_sentences=2)
    assert answer.status_code == 200
    found = answer.json()
    assert found["text"] == summary.text and found["indices"] == list(summary.indices)
    assert found["confidence"] == pytest.approx(summary.confidence) and len(found["steps"]) == len(summary.steps)


def test_several_articles_keep_their_order(client, summarizer):
    texts = [e.article for e in generate(4, seed=2)]
    found = client.post("/summarize", json={"texts": texts, "mode": "extract"}).json()["summaries"]
    assert [f["text"] for f in found] == [s.text for s in summarizer.summarize(texts)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "give either text or texts"),
        ({"text": "a", "texts": ["b"]}, "give either text or texts"),
        ({"text": " "}, "no article text"),
        ({"texts": ["Fine.", "..."]}, "text 1: there is no article text"),
        ({"text": "x" * (MAX_CHARACTERS + 1)}, "text: "),
        ({"texts": ["x" * (MAX_CHARACTERS // 2 + 1)] * 2}, "together they have more than"),
        ({"text": "It rained. " * (MAX_SENTENCES + 1)}, f"more than {MAX_SENTENCES}"),
        ({"texts": ["It rained. " * (MAX_SENTENCES // 2 + 1)] * 2}, f"more than {MAX_SENTENCES}"),
        ({"texts": ["x"] * (MAX_TEXTS + 1)}, "texts: "),
        ({"texts": []}, "texts: "),
        ({"text": "News.", "mode": "rewrite"}, "mode: "),
        ({"text": "News.", "mode": "generate"}, "no decoder"),
        ({"text": "News.", "max_sentences": 0}, "max_sentences: "),
        ({"text": "News.", "max_sentences": "2"}, "max_sentences: "),
        ({"text": "News.", "temperature": 1}, "temperature: "),
        ({"text": 3}, "text: "),
        ([], "body: "),
    ],
)
def test_wrong_requests_get_one_line_of_json(client, body, said):
    answer = client.post("/summarize", json=body)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"] and said in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_bodies_that_are_no_json_or_too_large(client):
    answer = client.post("/summarize", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "error" in answer.json()
    answer = client.post("/summarize", content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413 and "4 MiB" in answer.json()["error"]
    chunks = (b"x" for _ in range(3))
    assert client.post("/summarize", content=chunks).status_code == 413  # no length is told
    assert client.get("/summarize").json() == {"error": "Method Not Allowed"}
    assert client.get("/absent").status_code == 404


def test_a_fault_of_the_model_is_said_without_its_inside(summarizer):
    class Broken:
        index = decoder = None
        encoder_name = "tiny"

        def summarize_examples(self, *_):
            raise ZeroDivisionError("secret")

    client = TestClient(create_app(Broken()), raise_server_exceptions=False)
    answer = client.post("/summarize", json={"text": "News."})
    assert answer.status_code == 500 and "secret" not in answer.text and list(answer.json()) == ["error"]


def test_requests_at_once_get_their_own_answers(client, summarizer):
    texts = [e.article for e in generate(8, seed=3)]
    wanted, got = [s.text for s in summarizer.summarize(texts)], [""] * 8

    def ask(n):
        got[n] = client.post("/summarize", json={"text": texts[n]}).json()["text"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted


def test_who_would_wait_too_long_is_told_to_come_again(summarizer):
    begun, go_on = threading.Semaphore(0), threading.Event()

    class Slow:
        def summarize_examples(self, *given):
            begun.release()
            assert go_on.wait(60)
            return summarizer.summarize_examples(*given)

    client, answers = TestClient(create_app(Slow())), []

    def ask():
        answers.append(client.post("/summarize", json={"text": ARTICLE}))

    threads = [threading.Thread(target=ask) for _ in range(MAX_WAITING + 4)]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=60)
    while len(answers) < 3:  # all but those who wait and the one that is answered
        time.sleep(0.01)
    assert client.get("/healthz").status_code == 200
    go_on.set()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 3 and sum(answer.status_code == 200 for answer in answers) == MAX_WAITING + 1
    assert refused[0].json() == {"error": "busy, try again"} and int(refused[0].headers["retry-after"]) >= 1
    assert client.post("/summarize", json={"text": ARTICLE}).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in page.text
    assert "Storm Celia" in page.text and "%%" not in page.text


# -- a real server -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(summarizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    summarizer.save_pretrained(folder / "m")
    call = [sys.executable, "-m", "rsr_net.cli", "serve", "--model", str(folder / "m"), "--port", "0"]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert line.startswith("http://127.0.0.1:"), line + process.stderr.read()
    yield process, line.split("/ ")[0]
    if process.poll() is None:
        process.kill()
    process.wait()


def browser_path():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return os.environ.get("LATENTLAB_CHROMIUM", found)


@pytest.mark.slow
def test_the_page_in_chromium(server, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if browser_path() is None:
        pytest.skip("there is no Chromium (set LATENTLAB_CHROMIUM to its path)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path(), args=flags)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        faults, foreign = [], []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(server[1]) else foreign.append(request.url))
        page.goto(server[1] + "/")
        page.locator("#mode option").nth(1).wait_for(state="attached")
        assert page.text_content("#model") == "encoder tiny"

        page.click("#go")
        page.wait_for_selector("#summary li")
        picked = page.locator("#article .picked").all_text_contents()
        assert picked and picked == page.locator("#summary li").all_text_contents()
        assert page.locator("#steps li").count() == page.locator("#spark circle").count() > 0
        assert page.text_content("#percent").endswith("%")
        page.hover("#steps li")
        tinted = page.evaluate("[...document.querySelectorAll('#article span')].filter(s => s.style.boxShadow).length")
        assert tinted == 3
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]  # nothing runs off the page
        page.screenshot(path=tmp_path / "page.png", full_page=True)

        page.select_option("#mode", "retrieve")
        page.wait_for_selector("#warning:not([hidden])")
        assert page.locator("#summary li").count() == 3

        page.click("#edit")
        page.fill("#text", "One <b>bold</b> thing. <img src=x onerror=alert(1)> Two things happened.")
        page.select_option("#mode", "extract")
        page.click("#go")
        page.locator("#article", has_text="<b>bold</b>").wait_for()
        assert page.locator("#article img, #article b").count() == 0  # text stays text
        page.click("#edit")
        hostile = "<script>document.title='run'</script> <img src=x onerror=\"document.title='run'\"> Two things."
        page.fill("#text", hostile)
        page.click("#go")
        page.locator("#article", has_text="onerror").wait_for()
        assert page.locator("#article script, #summary img, #summary script").count() == 0 and page.title() != "run"

        page.click("#edit")
        page.fill("#text", " ... ")
        page.click("#go")
        page.wait_for_selector("#error:not([hidden])")
        assert "no article text" in page.text_content("#error")
        faults = [fault for fault in faults if "422" not in fault]
        assert faults == [] and foreign == []
        page.set_viewport_size({"width": 390, "height": 800})
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]
        browser.close()


def test_a_taken_port_is_one_line(server, capfd, summarizer):
    from latentlab_shared.errors import UserError
    from latentlab_shared.serving import serve_app

    port = int(server[1].rpartition(":")[2])
    with pytest.raises(UserError, match="--port"):
        serve_app(create_app(summarizer), "127.0.0.1", port)


def test_it_stops_on_sigterm_after_answering(server):
    process, url = server
    assert httpx.post(f"{url}/summarize", json={"text": ARTICLE}, timeout=60).status_code == 200
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("GET", "/healthz")  # the server holds the connection now, however busy the machine
    connection.getresponse().read()
    body = json.dumps({"texts": [e.article for e in generate(24, seed=8)]})
    connection.request("POST", "/summarize", body, {"content-type": "application/json"})
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    answer = connection.getresponse()
    assert answer.status == 200 and len(json.loads(answer.read())["summaries"]) == 24
    connection.close()
    process.wait(timeout=30)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz", timeout=2)
