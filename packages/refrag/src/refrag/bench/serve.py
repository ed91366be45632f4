"""The server under load and with faults: many streams at once, clients that leave, a worker that is killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from latentlab_shared.errors import RunFailed
from latentlab_shared.provenance import write_table
from latentlab_shared.serving import listen
from refrag.inference.generator import RefragGenerator
from refrag.sample.facts import generate
from refrag.sample.tiny import make_tiny
from refrag.serving.app import create_app
from refrag.serving.worker import ProcessWorker

Log = Callable[[str], None]
_WAIT_S = 300.0
_LONG = 400  # tokens of an answer that is broken off


def bench_serve(
    *, streams: int = 50, workers: int = 1, tokens: int = 24, seed: int = 0, log: Log = lambda _: None
) -> list[dict[str, Any]]:
    """Hold many streams, then break things; rows with ``ok`` where something is demanded.

    The model is tiny and untrained: what is tested is the server, by a real socket and workers in processes of their
    own. Times are of the wall clock, on a machine that may have other work.

    Args:
        streams: opened at once.
        workers: processes.
        tokens: of an answer.
        seed: of the model and the questions.
        log: told what is going on.

    Raises:
        RunFailed: if the server does not come up.
    """
    examples = generate(streams, seed)
    with tempfile.TemporaryDirectory(prefix="refrag-") as home:
        texts = [text for e in examples for text in (*(doc.text for doc in e.docs), e.question)]
        RefragGenerator(*make_tiny(texts, seed=seed)).save_pretrained(Path(home, "model"))
        log(f"starting {workers} workers")
        pool = [ProcessWorker(Path(home, "model"), Path(home, "cache")) for _ in range(workers)]
        bodies = [
            {"question": e.question, "docs": [{"id": d.id, "text": d.text} for d in e.docs], "max_new_tokens": tokens}
            for e in examples
        ]
        try:
            with _Server(create_app(pool, waiting=streams)) as server:
                return _measure(server, pool, bodies, log)
        finally:
            for worker in pool:
                worker.close()


def _measure(
    server: _Server, pool: list[ProcessWorker], bodies: list[dict[str, Any]], log: Log
) -> list[dict[str, Any]]:
    log(f"{len(bodies)} answers, one after the other")
    whole = [server.post("/answer", body)["text"] for body in bodies]
    log(f"{len(bodies)} streams at once")
    held: list[list[tuple[str, Any]]] = [[] for _ in bodies]
    first: list[float] = []
    began = time.perf_counter()

    def follow(number: int) -> None:
        for event in server.stream(bodies[number]):
            if event[0] == "token" and all(name != "token" for name, _ in held[number]):
                first.append(time.perf_counter() - began)
            held[number].append(event)

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(len(bodies))]
    for worker in pool:  # nothing is answered before all streams stand
        _signal(worker, signal.SIGSTOP)
    for thread in threads:
        thread.start()
    open_at_once, until = 0, time.monotonic() + _WAIT_S
    while open_at_once < len(bodies) and time.monotonic() < until:
        time.sleep(0.01)
        open_at_once = max(open_at_once, server.get("/workers")["in_hand"])
    began = time.perf_counter()
    for worker in pool:
        _signal(worker, signal.SIGCONT)
    for thread in threads:
        thread.join(_WAIT_S)
    seconds = time.perf_counter() - began
    ends = [events[-1][0] if events else "nothing" for events in held]
    pieces = ["".join(data["text"] for name, data in events if name == "token") for events in held]
    count = sum(name == "token" for events in held for name, _ in events)
    same = sum(map(str.__eq__, pieces, whole))
    rows: list[dict[str, Any]] = [
        _demanded("streams open at once", open_at_once, len(bodies)),
        _demanded("streams without an error", ends.count("done"), len(bodies)),
        _demanded("texts equal to the whole answers", same, len(bodies)),
        {"name": "pieces of text per second, all streams", "value": count / seconds},
        {"name": "first piece, median, s", "value": statistics.median(first) if first else None},
        {"name": "all streams done, s", "value": seconds},
    ]
    long = {**bodies[0], "max_new_tokens": _LONG}
    log("a client that leaves")
    leaving = server.stream(long)
    _until(leaving, "token")
    leaving.close()
    began = time.perf_counter()
    while server.get("/workers")["in_hand"]:
        time.sleep(0.005)
    rows.append({"name": "after a client left, its place is free, s", "value": time.perf_counter() - began})
    rows.append(_served("after a client left, next answer, s", server, bodies[0], whole[0]))
    log("a cancelled answer")
    stream = server.stream({**long, "id": "cancelled"})
    _until(stream, "token")
    server.post("/cancel", {"id": "cancelled"})
    end = list(stream)[-1]
    rows.append(
        {"name": "a cancelled stream ends with", "value": end[0], "target": "cancelled", "ok": end[0] == "cancelled"}
    )
    log("a worker killed in the middle of an answer")
    stream = server.stream(long)
    number = _until(stream, "assigned")["worker"]
    _until(stream, "token")
    _signal(pool[number], signal.SIGKILL)
    end = list(stream)[-1]
    rows.append(_demanded("a killed worker's stream ends with", end[0], "error"))
    rows.append(_served("after a worker was killed, next answer, s", server, bodies[0], whole[0]))
    rows[-1]["ok"] = rows[-1]["ok"] and pool[number].restarts == 1 and "Ask again" in end[1]["error"]
    status = server.announced(100 * 2**20)
    rows.append(_demanded("a body of 100 MiB, announced and not sent: status", status, 413))
    return rows


def _signal(worker: ProcessWorker, number: signal.Signals) -> None:
    assert worker.process.pid is not None
    os.kill(worker.process.pid, number)


def _demanded(name: str, value: object, target: object) -> dict[str, Any]:
    return {"name": name, "value": value, "target": target, "ok": value == target}


def _until(stream: Iterator[tuple[str, Any]], wanted: str) -> Any:
    """The data of the next event of a name."""
    for name, data in stream:
        if name == wanted:
            return data
    raise RunFailed(f"the stream ended before {wanted}", "refrag bench serve")


def _served(name: str, server: _Server, body: dict[str, Any], text: str) -> dict[str, Any]:
    began = time.perf_counter()
    found = server.post("/answer", body)["text"]
    return {"name": name, "value": time.perf_counter() - began, "ok": found == text}


class _Server:
    """An application behind a socket of this machine, and a client of it."""

    def __init__(self, app: Any) -> None:
        import uvicorn

        self._listener = listen("127.0.0.1", 0)
        self._port = self._listener.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off"))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True, name="server"
        )

    def __enter__(self) -> _Server:
        self._thread.start()
        until = time.monotonic() + _WAIT_S
        while not self._server.started:
            if time.monotonic() > until or not self._thread.is_alive():
                raise RunFailed("the server does not come up", "refrag bench serve")
            time.sleep(0.01)
        return self

    def __exit__(self, *fault: object) -> None:
        self._server.should_exit = True
        self._thread.join(_WAIT_S)

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        line = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_WAIT_S)
        try:
            line.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json"})
            reply = line.getresponse()
            found = json.loads(reply.read())
        finally:
            line.close()
        if reply.status != 200:
            raise RunFailed(f"{path} answers {reply.status}: {found.get('error')}", "refrag bench serve")
        return found

    def stream(self, body: dict[str, Any]) -> Generator[tuple[str, Any], None, None]:
        """The events of ``/chat``; closing the iterator leaves."""
        line = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_WAIT_S)
        try:
            line.request("POST", "/chat", json.dumps(body), {"content-type": "application/json"})
            reply, name = line.getresponse(), ""
            for raw in reply:
                text = raw.decode().rstrip("\n")
                if text.startswith("event: "):
                    name = text[7:]
                elif text.startswith("data: "):
                    yield name, json.loads(text[6:])
        finally:
            if line.sock is not None:
                line.sock.close()
            line.close()

    def announced(self, size: int) -> int:
        """The status that a body of so many bytes gets before any of them is sent."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=_WAIT_S) as line:
            line.sendall(f"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n".encode())
            return int(line.recv(64).split()[1])


def write_results(folder: Path, rows: list[dict[str, Any]], command: str, seed: int) -> None:
    """Write ``serve.json``, the table of the web application's page of documentation."""
    about = "a tiny untrained model in workers of their own, real sockets on one machine; wall clock"
    shown = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in rows]
    write_table(folder / "serve.json", shown, command=command, data=about, seeds=[seed])
