"""The API through its test client: whole answers, streamed ones, limits, cancelling, who is let in."""

import importlib.util
import json
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refrag_models import make_model, make_tokenizer
from refrag_server import events, serving

from latentlab_shared.errors import NeedsExtra, UserError
from refrag.inference.generator import RefragGenerator, greedy
from refrag.model.documents import Doc
from refrag.model.folder import load_decoder
from refrag.model.gate import Budget
from refrag.model.tokenizer.loading import load_tokenizer
from refrag.serving.app import MAX_BODY_BYTES, Access, create_app, serve
from refrag.serving.library import Library
from refrag.serving.schemas import MAX_CHARACTERS, MAX_DOCUMENTS
from refrag.serving.vllm_worker import VllmWorker
from refrag.serving.worker import ThreadWorker

TEXTS = {"1": "The river rises in the northern hills.", "2": "In 1942 the library held 3,517 volumes."}
DOCS = [{"id": i, "text": text} for i, text in TEXTS.items()]
ASK = {"question": "How many volumes?", "docs": DOCS, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def generator():
    return RefragGenerator(make_model(), make_tokenizer(compression=8))


@pytest.fixture(scope="module")
def client(generator):
    return TestClient(create_app([ThreadWorker(generator)]), raise_server_exceptions=False)


def test_an_answer_is_the_generators(client, generator):
    found = client.post("/answer", json=ASK).json()
    docs = [Doc(i, text) for i, text in TEXTS.items()]
    answer = generator.answer(ASK["question"], docs, budget=Budget(fraction=0.25), generation=greedy(6))
    assert found["text"] == answer.text and len(found["citations"]) == len(answer.citations)
    assert [s["doc"] for s in found["slots"]] == [s.doc for s in answer.slots]
    metrics = found["metrics"]
    assert metrics["positions"] == answer.window_length < metrics["full_positions"]
    assert metrics["full_kv_bytes"] / metrics["kv_bytes"] == metrics["full_positions"] / metrics["positions"]
    assert found["retrieved"] == [{"id": "1"}, {"id": "2"}] and found["cancelled"] is False


def test_the_stream_tells_everything_in_order(client):
    reply = client.post("/chat", json=ASK | {"id": "a"})
    assert reply.headers["content-type"].startswith("text/event-stream")
    told = events(reply.text)
    names = [name for name, _ in told]
    assert names[:4] == ["request_received", "retrieved", "assigned", "plan"] and names[-2:] == ["metrics", "done"]
    pieces = "".join(data["text"] for name, data in told if name == "token")
    assert pieces == dict(told)["done"]["text"] == client.post("/answer", json=ASK).json()["text"]
    assert dict(told)["retrieved"] == {"docs": [{"id": "1"}, {"id": "2"}]}
    assert [data["n"] for name, data in told if name == "token"] == list(range(1, names.count("token") + 1))


def test_earlier_turns_are_read(client):
    turns = [{"role": "user", "content": "Which river?"}, {"role": "assistant", "content": "The northern one."}]
    alone, after = (client.post("/answer", json=ASK | {"history": h}).json()["metrics"] for h in ([], turns))
    assert after["positions"] > alone["positions"]


def test_chunks_can_be_pinned_and_excluded(client):
    plain = client.post("/answer", json=ASK).json()["slots"]
    shown = next(s for s in plain if s["expanded"])
    hidden = next(s for s in plain if not s["expanded"])
    cells = {name: [{key: s[key] for key in ("doc", "chunk")}] for name, s in (("expand", hidden), ("exclude", shown))}
    slots = client.post("/answer", json=ASK | cells).json()["slots"]
    state = {(s["doc"], s["chunk"]): s["expanded"] for s in slots}
    assert state[hidden["doc"], hidden["chunk"]] and not state[shown["doc"], shown["chunk"]]


def test_both_sides_of_a_comparison(client):
    told = events(client.post("/compare", json=ASK).text)
    sides = told[-1][1]["sides"]
    assert told[-1][0] == "done" and list(sides) == ["refrag", "full"]
    assert sides["full"]["metrics"]["positions"] == sides["refrag"]["metrics"]["full_positions"]
    assert sides["full"]["metrics"]["positions"] > sides["refrag"]["metrics"]["positions"]
    for side in sides:
        pieces = "".join(data["text"] for name, data in told if name == "token" and data["side"] == side)
        assert pieces == sides[side]["text"]


def test_passages_of_a_library(generator):
    library = Library()
    library.add([(text, None, f"{name}.txt") for name, text in TEXTS.items()])
    client = TestClient(create_app([ThreadWorker(generator)], library))
    told = events(client.post("/chat", json={"question": "How many volumes in the library?", "max_new_tokens": 2}).text)
    (first, *_) = dict(told)["retrieved"]["docs"]
    assert first["source"] == "2.txt" and first["text"] == TEXTS["2"] and first["score"] > 0
    both = client.post("/answer", json=ASK | {"docs": [{"id": "a", "text": "x y"}], "retrieve": 1}).json()
    assert [doc["id"] for doc in both["retrieved"]] == ["a", "2"]
    assert "no passage" in client.post("/answer", json={"question": "zyx"}).json()["error"]
    assert client.get("/models").json()["models"][0]["library"] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": ""}, "question"),
        ({"question": " \n"}, "question"),
        ({"docs": [{"id": "x" * 101, "text": "x"}]}, "docs"),
        ({"docs": []}, "no library"),
        ({"docs": [DOCS[0], DOCS[0]]}, "the same id"),
        ({"docs": [{"id": "[1]", "text": "x"}]}, "no document id"),
        ({"docs": [DOCS[0]] * (MAX_DOCUMENTS + 1)}, "docs"),
        ({"docs": [{"id": str(n), "text": "x" * (MAX_CHARACTERS // 2)} for n in range(3)]}, "characters together"),
        ({"budget": {"fraction": 0.1, "tokens": 3}}, "one of fraction"),
        ({"budget": {"fraction": 7.0}}, "fraction"),
        ({"compression": 0}, "compression"),
        ({"temperature": 1}, "temperature"),
        ({"history": [{"role": "system", "content": "x"}]}, "role"),
    ],
)
def test_wrong_requests_get_one_line(client, change, said):
    reply = client.post("/answer", json=ASK | change)
    assert reply.status_code == 422 and list(reply.json()) == ["error"]
    assert said in reply.json()["error"] and "\n" not in reply.json()["error"]


def test_faults_of_a_stream_are_an_event(client):
    told = events(client.post("/chat", json=ASK | {"docs": [DOCS[0], DOCS[0]]}).text)
    assert told[-1][0] == "error" and "same id" in told[-1][1]["error"]
    state = client.get("/workers").json()
    assert state["workers"] == [{"id": 0, "busy": False, "restarts": 0}] and state["in_hand"] == 0


class Slow(ThreadWorker):
    """A worker whose first job waits until it is told to go on."""

    def __init__(self, generator):
        super().__init__(generator)
        self.started, self.go_on = threading.Event(), threading.Event()

    def run(self, job, tell, stopped):
        if not self.started.is_set():
            self.started.set()
            assert self.go_on.wait(30)
        return super().run(job, tell, stopped)


def test_a_request_that_runs_and_one_that_waits_are_cancelled(generator):
    worker = Slow(generator)
    client = TestClient(create_app([worker], waiting=1))
    replies = {}

    def ask(name):
        replies[name] = events(client.post("/chat", json=ASK | {"id": name}).text)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second")]
    threads[0].start()
    assert worker.started.wait(30)
    threads[1].start()
    while client.get("/workers").json()["in_hand"] < 2:
        pass
    assert client.post("/chat", json=ASK | {"id": "first"}).status_code == 422
    full = client.post("/chat", json=ASK | {"id": "third"})
    assert full.status_code == 429 and full.headers["retry-after"] == "1"
    assert client.post("/cancel", json={"id": "second"}).json() == {"cancelled": True}
    threads[1].join(30)
    assert [name for name, _ in replies["second"]] == ["request_received", "retrieved", "cancelled"]
    assert client.post("/cancel", json={"id": "first"}).json() == {"cancelled": True}
    assert client.post("/cancel", json={"id": "nobody"}).json() == {"cancelled": False}
    worker.go_on.set()
    threads[0].join(60)
    assert replies["first"][-1][0] == "cancelled"
    assert client.post("/answer", json=ASK).status_code == 200


def test_vllm_is_asked_for_by_name(generator, tmp_path):
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed")
    with pytest.raises(NeedsExtra, match=r"vllm is not installed. Install it: pip install .latentlab-refrag\[vllm\]"):
        VllmWorker(generator, tmp_path)
    with pytest.raises(UserError, match="no backend"):
        serve(tmp_path, backend="onnx")
    with pytest.raises(UserError, match="one process"):
        serve(tmp_path, backend="vllm", workers=2)


class Engine:
    """Stands in for vLLM's, which needs a GPU: the same decoder from the same folder, by transformers."""

    def __init__(self, model, enable_prompt_embeds, enable_prefix_caching):
        assert enable_prompt_embeds and not enable_prefix_caching
        self.decoder, self.tokenizer = load_decoder(model).eval(), load_tokenizer(model)

    def generate(self, prompt, sampling):
        rows = prompt["prompt_embeds"][None]
        found = self.decoder.generate(
            inputs_embeds=rows, max_new_tokens=sampling.max_tokens, do_sample=False, pad_token_id=0
        )[0]
        ids = found.tolist()
        reply = SimpleNamespace(text=self.tokenizer.decode(ids, skip_special_tokens=True), token_ids=ids)
        return [SimpleNamespace(outputs=[reply])]


def test_a_worker_gives_vllm_the_embeddings_of_its_prompt(generator, tmp_path, monkeypatch):
    sampling = lambda **given: SimpleNamespace(**given)  # noqa: E731
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Engine, SamplingParams=sampling))
    generator.save_pretrained(tmp_path / "model")
    worker, told = VllmWorker(generator, tmp_path / "model" / "decoder"), []
    job = {"question": "How?", "history": [], "docs": [d | {"title": None} for d in DOCS], "budget": {"fraction": 0.2}}
    job |= {"expand": [], "exclude": [], "compression": None, "max_new_tokens": 6, "sides": ["refrag", "full"]}
    found = worker.run(job, lambda name, data: told.append((name, data)), lambda: False)
    assert worker.about()["backend"] == "vllm"
    docs = [Doc(d["id"], d["text"], None) for d in DOCS]
    for side, share in (("refrag", 0.2), ("full", 1.0)):
        window = generator.window("How?", docs, budget=Budget(fraction=share))
        with torch.no_grad():
            plain = generator.model.decoder.generate(
                inputs_embeds=window.embeddings[None], max_new_tokens=6, do_sample=False, pad_token_id=0
            )[0]
        text = generator.tokenizer.decoder_tokenizer.decode(plain.tolist(), skip_special_tokens=True)
        assert found[side]["text"] == text.lstrip()
        plans = [data for name, data in told if name == "plan" and data["side"] == side]
        assert [plan["positions"] for plan in plans] == [len(window.embeddings)]
        assert {c["doc"] for c in found[side]["citations"]} <= {doc.id for doc in docs}


def test_a_cancelled_answer_ends_within_a_token(generator):
    """Stopped by the second piece of text: one more comes at most, and the other side is not begun."""
    worker, told, stop = ThreadWorker(generator), [], threading.Event()
    job = {"question": "How?", "history": [], "docs": [d | {"title": None} for d in DOCS], "budget": {"fraction": 0.2}}
    job |= {"expand": [], "exclude": [], "compression": None, "max_new_tokens": 40, "sides": ["refrag", "full"]}

    def tell(name, data):
        told.append(name)
        if told.count("token") == 2:
            stop.set()

    found = worker.run(job, tell, stop.is_set)
    assert told.count("token") <= 3 and found["refrag"]["metrics"]["new_tokens"] < 40 and list(found) == ["refrag"]


# -- who is let in -----------------------------------------------------------------------------------------------------


def test_a_token_is_wanted_where_one_is_set(generator):
    guarded = TestClient(create_app([ThreadWorker(generator)], access=Access(token="secret")))
    assert guarded.get("/healthz").status_code == guarded.get("/").status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer sécret".encode()}):
        reply = guarded.post("/answer", json=ASK, headers=headers)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
    assert guarded.get("/openapi.json").status_code == 401
    assert guarded.post("/answer", json=ASK, headers={"authorization": "Bearer secret"}).status_code == 200


def test_pages_of_strangers_are_not(generator):
    mine = "https://mine.example"
    client = TestClient(create_app([ThreadWorker(generator)], access=Access(origins=(mine,))))
    assert client.get("/models", headers={"origin": "https://other.example"}).status_code == 403
    assert client.get("/models", headers={"origin": "null"}).status_code == 403
    assert client.get("/models", headers={"origin": "http://testserver"}).status_code == 200
    allowed = client.get("/models", headers={"origin": mine})
    assert allowed.headers["access-control-allow-origin"] == mine
    asked = {"origin": mine, "access-control-request-method": "POST"}
    assert client.options("/chat", headers=asked).headers["access-control-allow-origin"] == mine
    assert "access-control-allow-origin" not in client.options("/chat", headers=asked | {"origin": "https://x"}).headers


def test_a_name_that_was_pointed_here_is_not_answered(generator):
    access = Access(hosts=("127.0.0.1", "localhost", "::1"))
    app = create_app([ThreadWorker(generator)], access=access)
    for host, code in (("localhost:7860", 200), ("[::1]:7860", 200), ("127.0.0.1", 200), ("evil.example", 403)):
        assert TestClient(app).get("/models", headers={"host": host}).status_code == code, host


def test_a_document_of_100_megabytes_is_refused_before_it_is_read(generator):
    """Only the head of the request is sent: the answer cannot have waited for the rest."""
    with serving(create_app([ThreadWorker(generator)])) as address:
        host, port = address.removeprefix("http://").split(":")
        for length in (f"Content-Length: {100 * 2**20}", "Transfer-Encoding: chunked"):
            with socket.create_connection((host, int(port)), timeout=30) as line:
                line.sendall(f"POST /chat HTTP/1.1\r\nHost: {host}\r\n{length}\r\n\r\n".encode())
                if "chunked" in length:
                    line.sendall(b"5\r\nhello\r\n")
                assert line.recv(1000).startswith(b"HTTP/1.1 413")
    assert MAX_BODY_BYTES < 100 * 2**20


# -- the description ---------------------------------------------------------------------------------------------------


def test_the_page_and_what_is_known(client):
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "%%" not in page.text and "/* page." not in page.text and "What is the" in page.text
    assert client.get("/models").json()["models"][0]["compression"] == 4
    described = client.get("/openapi.json").json()["paths"]
    assert {"/chat", "/compare", "/cancel", "/answer", "/workers", "/models", "/healthz", "/readyz"} <= set(described)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*ASK, "budget", "expand", "exclude", "history", "compression", "retrieve", "id", "x"])


@pytest.mark.parametrize(
    "change",
    [
        {"question": "a\ud800"},
        {"docs": [{"id": "1", "text": "\udcff"}]},
        {"docs": [{"id": "1", "text": "x", "title": "\udcff"}]},
        {"history": [{"role": "user", "content": "\udcff"}]},
    ],
)
def test_half_a_character_is_wrong_input(client, change):
    reply = client.post("/answer", content=json.dumps(ASK | change), headers={"content-type": "application/json"})
    assert reply.status_code == 422 and list(reply.json()) == ["error"] and "\n" not in reply.json()["error"]


@pytest.mark.parametrize("origin", ["foo", "*", "https://a.org/", "https://", "file://x", "https://a.org:x", ""])
def test_what_is_no_origin(origin, tmp_path):
    with pytest.raises(UserError, match="is no origin"):
        Access(origins=(origin,))
    with pytest.raises(UserError, match="--allow-origin"):
        serve(tmp_path, origins=[origin])
    assert Access(origins=("https://a.org:8443", "http://localhost", "http://[::1]:80"))


def test_it_is_ready_when_it_listens(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    found = client.get("/readyz").json()
    about = client.get("/models").json()["models"][0]
    assert found == {"status": "ready", "workers": 1} | {k: about[k] for k in ("encoder", "decoder", "compression")}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(client, number):
    body = json.dumps(ASK | {"budget": {"fraction": "?"}}).replace('"?"', number)
    reply = client.post("/answer", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422 and "fraction" in reply.json()["error"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["/chat", "/answer", "/compare", "/cancel"]), st.dictionaries(NAMES, JSON, max_size=4))
def test_no_body_breaks_the_server(client, path, change):
    reply = client.post(path, json=ASK | change)
    assert reply.status_code in (200, 422, 429), reply.text
    if reply.status_code != 200:
        assert list(reply.json()) == ["error"]


@pytest.mark.slow
def test_the_api_is_as_it_describes_itself(generator):
    """Requests that schemathesis makes from the description: no failure, and every answer of a kind it names."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    kinds = (checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance)
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app([ThreadWorker(generator)]))
    seen = []
    for operation in (found.ok() for found in schema.get_all_operations()):

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def check(case):
            case.call_and_validate(checks=[not_a_server_error, *kinds])

        check()
        seen.append(operation.path)
    assert {"/chat", "/compare", "/answer", "/cancel", "/workers"} <= set(seen)
