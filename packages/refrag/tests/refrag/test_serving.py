"""The API through its test client: whole answers, streamed ones, limits, cancelling."""

import json
import os
import shutil
import threading

import pytest
from fastapi.testclient import TestClient
from refrag_models import make_model, make_tokenizer

from latentlab_shared.serving import address_of, listen
from refrag.inference.generator import RefragGenerator, greedy
from refrag.model.documents import Doc
from refrag.model.gate import Budget
from refrag.serving.app import MAX_CHARACTERS, MAX_DOCUMENTS, MAX_WAITING, create_app

TEXTS = {"1": "The river rises in the northern hills.", "2": "In 1942 the library held 3,517 volumes."}
DOCS = [{"id": i, "text": text} for i, text in TEXTS.items()]
ASK = {"question": "How many volumes?", "docs": DOCS, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def generator():
    return RefragGenerator(make_model(), make_tokenizer(compression=8))


@pytest.fixture(scope="module")
def client(generator):
    return TestClient(create_app(generator), raise_server_exceptions=False)


def events(reply):
    """Names and data of a stream of server-sent events."""
    found = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_an_answer_is_the_generators(client, generator):
    found = client.post("/answer", json=ASK).json()
    docs = [Doc(i, text) for i, text in TEXTS.items()]
    answer = generator.answer(ASK["question"], docs, budget=Budget(fraction=0.25), generation=greedy(6))
    assert found["text"] == answer.text and found["window_length"] == answer.window_length
    assert [s["doc"] for s in found["slots"]] == [s.doc for s in answer.slots]
    metrics = found["metrics"]
    assert metrics["positions"] < metrics["full_positions"]
    assert metrics["full_kv_bytes"] / metrics["kv_bytes"] == metrics["full_positions"] / metrics["positions"]


def test_the_stream_tells_everything_in_order(client):
    reply = client.post("/chat", json=ASK | {"id": "a"})
    assert reply.headers["content-type"].startswith("text/event-stream")
    told = events(reply)
    names = [name for name, _ in told]
    assert names[:4] == ["request_received", "retrieved", "assigned", "plan"] and names[-2:] == ["metrics", "done"]
    pieces = "".join(data["text"] for name, data in told if name == "token")
    assert pieces == dict(told)["done"]["text"] == client.post("/answer", json=ASK).json()["text"]
    assert dict(told)["retrieved"] == {"docs": ["1", "2"]}


def test_chunks_can_be_pinned_and_excluded(client):
    plain = client.post("/answer", json=ASK).json()["slots"]
    shown = next(s for s in plain if s["expanded"])
    hidden = next(s for s in plain if not s["expanded"])
    cells = {name: [{key: s[key] for key in ("doc", "chunk")}] for name, s in (("expand", hidden), ("exclude", shown))}
    slots = client.post("/answer", json=ASK | cells).json()["slots"]
    state = {(s["doc"], s["chunk"]): s["expanded"] for s in slots}
    assert state[hidden["doc"], hidden["chunk"]] and not state[shown["doc"], shown["chunk"]]


def test_both_sides_of_a_comparison(client):
    found = client.post("/compare", json=ASK).json()
    assert found["full"]["positions"] == found["refrag"]["full_positions"] > found["refrag"]["positions"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": ""}, "question"),
        ({"docs": []}, "docs"),
        ({"docs": [DOCS[0], DOCS[0]]}, "the same id"),
        ({"docs": [{"id": "[1]", "text": "x"}]}, "no document id"),
        ({"docs": [DOCS[0]] * (MAX_DOCUMENTS + 1)}, "docs"),
        ({"docs": [{"id": str(n), "text": "x" * (MAX_CHARACTERS // 2)} for n in range(3)]}, "characters together"),
        ({"budget": {"fraction": 0.1, "tokens": 3}}, "one of fraction"),
        ({"budget": {"fraction": 7.0}}, "no budget"),
        ({"compression": 0}, "compression"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_wrong_requests_get_one_line(client, change, said):
    reply = client.post("/answer", json=ASK | change)
    assert reply.status_code == 422 and list(reply.json()) == ["error"]
    assert said in reply.json()["error"] and "\n" not in reply.json()["error"]


def test_faults_of_a_stream_are_an_event(client):
    told = events(client.post("/chat", json=ASK | {"docs": [DOCS[0], DOCS[0]]}))
    assert told[-1][0] == "error" and "same id" in told[-1][1]["error"]
    assert client.get("/workers").json() == {"workers": [{"id": 0, "busy": False}], "in_hand": 0}


def test_cancelled_before_its_turn(generator):
    """A request that waits is cancelled; the worker takes the next one."""
    started, go_on = threading.Event(), threading.Event()

    class Slow(RefragGenerator):
        def answer(self, *given, **options):
            if options["on_text"] is not None and not started.is_set():
                started.set()
                assert go_on.wait(30)
            return super().answer(*given, **options)

    slow = TestClient(create_app(Slow(generator.model, generator.tokenizer)))
    replies = {}

    def ask(name):
        replies[name] = events(slow.post("/chat", json=ASK | {"id": name}))

    first = threading.Thread(target=ask, args=("first",))
    first.start()
    assert started.wait(30)
    assert slow.post("/chat", json=ASK | {"id": "first"}).status_code == 422
    assert slow.post("/cancel", json={"id": "first"}).json() == {"cancelled": True}
    assert slow.post("/cancel", json={"id": "nobody"}).json() == {"cancelled": False}
    go_on.set()
    first.join(60)
    assert replies["first"][-1][0] == "cancelled"
    assert slow.post("/answer", json=ASK).status_code == 200


def test_a_queue_that_is_full_says_so(generator, monkeypatch):
    monkeypatch.setattr("refrag.serving.app.MAX_WAITING", -1)
    assert MAX_WAITING > 0
    reply = TestClient(create_app(generator)).post("/answer", json=ASK)
    assert reply.status_code == 429 and reply.headers["retry-after"]


def test_a_token_is_wanted_where_one_is_set(generator):
    guarded = TestClient(create_app(generator, token="secret"))
    assert guarded.get("/healthz").status_code == 200
    assert guarded.post("/answer", json=ASK).status_code == 401
    assert guarded.post("/answer", json=ASK, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert guarded.post("/answer", json=ASK, headers={"authorization": "Bearer secret"}).status_code == 200


def test_the_page_and_what_is_known(client):
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "%%" not in page.text and "What is the" in page.text
    assert client.get("/models").json()["models"][0]["compression"] == 4
    assert "/chat" in client.get("/openapi.json").json()["paths"]


# -- the page ----------------------------------------------------------------------------------------------------------


def browser_path():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return os.environ.get("LATENTLAB_CHROMIUM", found)


@pytest.fixture
def address(generator):
    """A real server on a free port."""
    import uvicorn

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(generator), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield address_of(listener)
    server.should_exit = True
    thread.join(30)


@pytest.mark.slow
def test_the_page_in_chromium(address, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if browser_path() is None:
        pytest.skip("there is no Chromium (set LATENTLAB_CHROMIUM to its path)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    evil = "<script>document.title = 'owned'</script></doc><img src=x onerror=\"document.title='owned'\"> 42"
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path(), args=flags)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        faults, foreign = [], []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(address) else foreign.append(request.url))
        page.on("dialog", lambda dialog: dialog.accept(evil))
        page.goto(address)
        assert page.locator(".doc").count() == 3
        page.click("#add")  # the pasted document is hostile
        assert page.locator(".doc").count() == 4 and evil in page.locator(".doc").last.inner_text()

        page.click("#go")
        page.wait_for_selector("#strip button")
        page.wait_for_selector("#trace:not([disabled])", timeout=60_000)
        cells = page.locator("#strip button")
        assert page.locator("#strip button.tokens").count() == round(cells.count() * 0.25)
        assert page.text_content("#facts td:nth-child(4)").endswith("×")
        vector = page.locator("#strip button:not(.tokens)").first
        label = vector.get_attribute("title")
        vector.click()
        page.click("#go")
        page.wait_for_selector(f"#strip button.tokens[title={json.dumps(label)}]", timeout=60_000)
        page.wait_for_selector("#go:not([disabled])", timeout=60_000)

        page.evaluate("showAnswer('It is 42 [1].', [{doc: '1', at: 9, start: 0, end: 3}])".replace("'1'", repr("x")))
        page.evaluate("docs[0].id = 'x'; showDocs()")
        page.locator(".cite").click()
        assert page.locator("mark").count() == 1
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        assert page.title() == "refrag" and faults == [] and foreign == []
        browser.close()
