"""How long one answer takes: in process, through pgvector, and over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from latentlab_shared.errors import RunFailed
from nrms.bench.data import catalogue_vectors, titles
from nrms.bench.measure import Result, cpu_seconds, percentiles, result, timed
from nrms.data.types import News
from nrms.inference import Catalogue, Recommender
from nrms.inference.catalogue import Entry
from nrms.inference.search import GraphSearch, all_scores, top_rows
from nrms.model.folder import LoadedModel
from nrms.server.corpus import add_articles
from nrms.server.store import Store
from nrms.server.sync import DatabaseSource

Log = Callable[[str], None]
K, HISTORY = 10, 50
_TARGETS = {10_000: (1.5, 4.0), 100_000: (10.0, 20.0), 1_000_000: (60.0, 100.0)}


def histories(size: int, count: int, seed: int = 1) -> list[list[str]]:
    """Readers who read 50 articles each."""
    rng = np.random.default_rng(seed)
    return [[f"N{i}" for i in rng.choice(size, HISTORY, replace=False)] for _ in range(count)]


def make_catalogue(model: LoadedModel, size: int) -> Catalogue:
    """A catalogue with generated vectors."""
    entries = tuple(Entry(f"N{i}", f"title {i}", published=i) for i in range(size))
    return Catalogue(model.model_id, entries, catalogue_vectors(model, size))


def measure_exact(model: LoadedModel, size: int, log: Log) -> list[Result]:
    """A whole answer (50 cached reads → 10 articles) with exact scoring; and the same scan over float32."""
    catalogue = make_catalogue(model, size)
    recommender = Recommender(model, catalogue)
    requests = max(30, min(300, 30_000_000 // size))
    asked = histories(size, requests + 3)
    median, worst, cpu = timed(lambda i: recommender.recommend(asked[i], K), requests)
    name, target = f"exact, {size:,} articles", _TARGETS.get(size, (None, None))
    how = f"in process, float16, {HISTORY} cached reads, {torch.get_num_threads()} thread"
    log(f"{name}: {median:.2f} / {worst:.2f} ms, {cpu:.2f} ms of processor time")
    rows = [
        result(f"{name}, p50", median, "ms", how, target[0]),
        result(f"{name}, p99", worst, "ms", how, target[1]),
        result(f"{name}, processor time", cpu, "CPU-ms", f"mean of {requests}", target[0]),
    ]
    if size <= 100_000:
        wide = torch.from_numpy(catalogue.vectors.astype(np.float32))
        user = torch.from_numpy(recommender.user_vector(asked[0]))
        median, worst = percentiles(lambda _: top_rows(all_scores(wide, user), K), requests)
        rows.append(result(f"scan alone, {size:,} articles, float32, p50", median, "ms", "float32 matrix"))
        half = torch.from_numpy(catalogue.vectors)
        median, worst = percentiles(lambda _: top_rows(all_scores(half, user), K), requests)
        rows.append(result(f"scan alone, {size:,} articles, float16, p50", median, "ms", "float16 matrix"))
    return rows


def measure_graph(model: LoadedModel, size: int, log: Log) -> list[Result]:
    """A whole answer with the graph in memory, and how many of the exact ten it finds."""
    recommender = Recommender(model, make_catalogue(model, size))
    began = time.process_time()
    graph = GraphSearch(recommender.state.source.catalogue)  # type: ignore[attr-defined]
    built = time.process_time() - began
    recommender.swap(source=graph)
    asked = histories(size, 203)
    median, worst, cpu = timed(lambda i: recommender.recommend(asked[i], K), 200)
    recall = graph.recall(np.stack([recommender.user_vector(h) for h in asked[:100]]), K)
    log(f"graph, {size:,} articles: {median:.2f} / {worst:.2f} ms, recall {recall:.3f}")
    name = f"usearch, {size:,} articles"
    return [
        result(f"{name}, p50", median, "ms", "in process, HNSW", 15.0),
        result(f"{name}, p99", worst, "ms", "in process, HNSW"),
        result(f"{name}, processor time", cpu, "CPU-ms", "mean of 200", 15.0),
        result(f"{name}, recall@10", recall, "share", "of the exact ten, 100 readers", 0.95, "more"),
        result(f"{name}, build", built, "CPU-s", "once"),
    ]


def fill(store: Store, model: LoadedModel, folder: Path, size: int) -> None:
    """A store of generated articles whose vectors are in place, active."""
    words = titles(size, 20_000, np.random.default_rng(0))
    add_articles(store, (News(f"N{i}", text, "news") for i, text in enumerate(words)))
    stored = store.models.register(model.model_id, model.config.dim, str(folder.resolve()))
    vectors = catalogue_vectors(model, size).astype(np.float32)
    for start in range(0, size, 5000):
        ids = [f"N{i}" for i in range(start, min(size, start + 5000))]
        store.embeddings.put(stored, ids, vectors[start : start + 5000])
    store.models.activate(model.model_id)


def measure_pgvector(store: Store, model: LoadedModel, size: int, log: Log) -> list[Result]:
    """A whole answer whose search is done by pgvector, exactly and through its graph."""
    stored = store.models.get(model.model_id)
    asked = histories(size, 103)
    scan = Recommender(model, DatabaseSource(store, stored, size, exact=True))
    exact, _ = percentiles(lambda i: scan.recommend(asked[i], K), 10, warm=1)
    began = time.perf_counter()
    store.embeddings.build_index(stored)
    built = time.perf_counter() - began
    graph = Recommender(model, DatabaseSource(store, stored, size))
    median, worst = percentiles(lambda i: graph.recommend(asked[i], K), 100)
    shares = []
    for read in asked[:30]:
        best = {item.id for item in scan.recommend(read, K).items}
        shares.append(len(best & {item.id for item in graph.recommend(read, K).items}) / K)
    log(f"pgvector, {size:,} articles: {median:.2f} / {worst:.2f} ms, recall {np.mean(shares):.3f}")
    name = f"pgvector, {size:,} articles"
    return [
        result(f"{name}, HNSW, p50", median, "ms", "search in PostgreSQL, reads looked up there"),
        result(f"{name}, HNSW, p99", worst, "ms", "search in PostgreSQL, reads looked up there"),
        result(f"{name}, HNSW, recall@10", float(np.mean(shares)), "share", "of the exact ten", 0.95, "more"),
        result(f"{name}, HNSW, build", built, "s", "once, wall time"),
        result(f"{name}, scan, p50", exact, "ms", "search in PostgreSQL without its graph"),
    ]


@contextmanager
def running_server(database: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``nrms serve`` as a process of its own: the process, and its port, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "nrms.cli", "serve", "--database", database, "--port", str(port), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 300  # a busy machine takes its time
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RunFailed("the server did not become ready", " ".join(command))
            time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def measure_http(database: str, kind: str, size: int, log: Log, requests: int = 300) -> list[Result]:
    """One client after another's answer over HTTP, 50 reads by id."""
    asked = [json.dumps({"history": read, "k": K}) for read in histories(size, requests + 3)]
    with running_server(database) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

        def ask(number: int) -> None:
            connection.request("POST", "/recommend", asked[number], {"content-type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RunFailed(f"the server answered {answer.status}: {body[:200]!r}")

        before = cpu_seconds(process.pid)
        median, worst = percentiles(ask, requests, warm=3)
        cpu = 1000 * (cpu_seconds(process.pid) - before) / (requests + 3)
        connection.close()
    log(f"HTTP, {kind}, {size:,} articles: {median:.2f} / {worst:.2f} ms, {cpu:.1f} ms of the server's processor time")
    name = f"HTTP, {kind}, {size:,} articles"
    return [
        result(f"{name}, p50", median, "ms", "one client, one worker, exact"),
        result(f"{name}, p99", worst, "ms", "one client, one worker, exact", 50.0),
        result(f"{name}, processor time", cpu, "CPU-ms", "of the server, mean"),
    ]
