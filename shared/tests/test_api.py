"""What every HTTP API answers."""

import pytest

from latentlab_shared.errors import RunFailed, UserError

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
from fastapi import FastAPI, HTTPException  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402

from latentlab_shared.api import add_errors, limit_bodies, page  # noqa: E402


class Ask(BaseModel):
    k: int = Field(ge=1)


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    add_errors(app)
    limit_bodies(app, 1 << 20)

    def ask(body):
        faults = {2: UserError("wrong\nword", "k", "Say it again"), 3: RunFailed("no luck"), 4: KeyError("secret")}
        if body.k in faults:
            raise faults[body.k]
        if body.k == 5:
            raise HTTPException(409, "not now", {"retry-after": "1"})
        return {"k": body.k}

    ask.__annotations__["body"] = Ask  # the class is this module's
    app.post("/ask")(ask)
    app.get("/")(lambda: page("<script>/* base.js */\n</script><p>%%TEXT%%</p>", {"TEXT": "<b> & 'it'"}))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"k": 1}, 200, None),
        ({"k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({}, 422, "k: Field required"),
        ([], 422, "body: "),
        ({"k": 2}, 422, "wrong word"),
        ({"k": 3}, 500, "no luck"),
        ({"k": 4}, 500, "the server failed; its log says why"),
        ({"k": 5}, 409, "not now"),
    ],
)
def test_every_fault_is_one_line(client, body, status, said):
    answer = client.post("/ask", json=body)
    assert answer.status_code == status
    if said is not None:
        assert set(answer.json()) == {"error"} and said in answer.json()["error"] and "\n" not in answer.json()["error"]
        assert "secret" not in answer.text


def test_a_body_of_another_kind_or_too_deep_says_what_to_send(client):
    answer = client.post("/ask", content='{"k": 1}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422
    assert answer.json()["error"] == "the body is text/plain: send JSON, with content-type: application/json"
    for body in ("[" * 100_000, '{"k": ' + "1" * 5_000 + "}"):
        answer = client.post("/ask", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422 and "JSON" in answer.json()["error"], answer.text


def test_a_body_that_is_no_json_or_too_large(client):
    broken = client.post("/ask", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 422 and broken.json()["error"].startswith("the body is not JSON")
    large = client.post("/ask", content=b" " * ((1 << 20) + 1))
    assert large.status_code == 413 and "too large" in large.json()["error"] and "1 MiB" in large.json()["error"]
    assert client.post("/ask", content=iter([b"{}"])).status_code == 413  # its length is not told
    assert client.get("/nowhere").json() == {"error": "Not Found"}


def test_a_page_escapes_and_runs_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert "const make" in answer.text and "base.js" not in answer.text
    assert answer.text.partition("</script>")[2] == "<p>&lt;b&gt; &amp; &#x27;it&#x27;</p>"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.post("/ask", json={"k": 5}).headers["retry-after"] == "1"


def test_a_malformed_piece_of_a_body_leaves_no_traceback(client):
    """The server answers that itself; what we would say has nobody to hear it."""
    pytest.importorskip("uvicorn")
    import io
    import logging
    import socket
    import threading

    import uvicorn

    log = io.StringIO()
    handler = logging.StreamHandler(log)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(client.app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        logging.getLogger("uvicorn.error").addHandler(handler)
        thread.start()
        try:
            head = b"POST /ask HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            for body, status in ((b"ZZ\r\n", b" 400 "), (b"2\r\n{}\r\n0\r\n\r\n", b" 413 ")):
                with socket.create_connection(listener.getsockname(), timeout=60) as one:
                    one.sendall(head + body)
                    assert status in one.recv(1000).split(b"\r\n")[0]
        finally:
            server.should_exit = True
            thread.join()
            logging.getLogger("uvicorn.error").removeHandler(handler)
    assert "Traceback" not in log.getvalue()
