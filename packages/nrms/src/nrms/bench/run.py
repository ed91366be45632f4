"""The suites of ``nrms bench``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from latentlab_shared.errors import RunFailed, UserError
from nrms.bench.data import Size, paper_model
from nrms.bench.latency import fill, measure_exact, measure_graph, measure_http, measure_pgvector
from nrms.bench.load import measure_load, restart_pgserver
from nrms.bench.measure import Result, load_average
from nrms.bench.memory import measure_memory
from nrms.bench.quality import measure_quality
from nrms.bench.work import measure_embedding, measure_work
from nrms.server.store import Store

SUITES = ("quality", "work", "memory", "latency", "graph", "http", "pgvector", "embed", "load")
_SMALL = Size(news=400, train=200, dev=60, words=500)
_PEER = ("recommenders==1.2.1", "tensorflow-cpu==2.15.1", "numpy<2", "pandas<3", "setuptools<81")


def run_bench(
    suites: Iterable[str] = SUITES,
    *,
    quick: bool = False,
    sizes: Iterable[int] = (),
    seconds: float = 60.0,
    threads: int = 1,
    peer: str = "",
    peer_home: Path = Path("runs/nrms/peers"),
    work_home: Path = Path("runs/nrms/bench"),
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure.

    Args:
        suites: which of `SUITES`.
        quick: small sizes: to see that everything runs, not for figures.
        sizes: catalogues instead of the suite's own.
        seconds: of each phase of the load.
        threads: of torch.
        peer: "recommenders" to run it beside ours.
        peer_home: where the peer's environment is made.
        work_home: where generated data are kept.
        log: told what happens.

    Returns:
        ``{"results": [...]}``, one line per number.

    Raises:
        UserError: for an unknown suite or peer.
    """
    chosen = tuple(suites)
    for name in chosen:
        if name not in SUITES:
            raise UserError(f"{name!r} is no suite", "--suite", f"The suites are: {', '.join(SUITES)}")
    if peer not in ("", "recommenders"):
        raise UserError(f"{peer!r} is no peer", "--peer", "The peer is recommenders")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Result] = []
    try:
        for name in chosen:
            busy = load_average()
            log(f"{name}: load average {busy:.1f}")
            given = tuple(sizes)
            with tempfile.TemporaryDirectory(prefix="nrms-bench-") as scratch:
                home = Path(scratch)
                home.chmod(0o755)  # a PostgreSQL that root starts runs as another user
                found = _suite(name, home, quick, given, seconds, peer, peer_home, work_home, log)
            rows += [replace(row, against=f"{row.against}; load average {busy:.1f}".lstrip("; ")) for row in found]
    finally:
        torch.set_num_threads(before)
    return {"results": [asdict(row) for row in rows]}


def _suite(
    name: str,
    home: Path,
    quick: bool,
    sizes: tuple[int, ...],
    seconds: float,
    peer: str,
    peer_home: Path,
    work_home: Path,
    log: Callable[[str], None],
) -> list[Result]:
    if name == "work":
        log_size, steps, rounds = (_SMALL, 2, 1) if quick else (Size(), 12, 3)
        folder = work_home / ("small" if quick else "demo")
        return measure_work(folder, log_size, steps, rounds, _peer_python(peer_home, log) if peer else None, log)
    if name == "quality":
        seeds = (0,) if quick else (0, 1, 2)
        return measure_quality(home, seeds, quick, _peer_python(peer_home, log) if peer else None, log)
    if name == "memory":
        return measure_memory(home, quick, log)
    model = paper_model(home / "model")
    if name == "latency":
        return [row for n in sizes or ((2000,) if quick else (10_000, 100_000, 1_000_000))
                for row in measure_exact(model, n, log)]  # fmt: skip
    if name == "graph":
        return [
            row for n in sizes or ((2000,) if quick else (100_000, 1_000_000)) for row in measure_graph(model, n, log)
        ]
    size = sizes[0] if sizes else 2000 if quick else 100_000
    if name == "pgvector":
        with _store(_postgres(home)) as store:
            fill(store, model, home / "model", size)
            return measure_pgvector(store, model, size, log)
    if name == "load":
        address = _postgres(home)
        with _store(address) as store:
            fill(store, model, home / "model", size)
            url = store.database.url
        return measure_load(url, size, log, seconds=seconds, restart=lambda: restart_pgserver(home / "pg"))
    rows = []
    for kind, address in (("SQLite", f"sqlite:///{home / 'news.db'}"), ("PostgreSQL", _postgres(home))):
        with _store(address) as store:
            if name == "embed":
                rows += measure_embedding(store, kind, model, 500 if quick else 40_000, log)
            else:
                fill(store, model, home / "model", size)
                rows += measure_http(store.database.url, kind, size, log, 20 if quick else 300)
    return rows


@contextmanager
def _store(address: str) -> Iterator[Store]:
    store = Store(address)
    try:
        yield store
    finally:
        store.close()


def _postgres(home: Path) -> str:
    return f"pgserver:{home / 'pg'}"


def _peer_python(home: Path, log: Callable[[str], None]) -> Path:
    """The Python of the peer's own environment, made with uv when it is not there yet.

    Raises:
        RunFailed: if it cannot be made.
    """
    folder = home / "recommenders"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if (folder / "complete").is_file():
        return python.absolute()
    log("making an environment for recommenders 1.2.1")
    uv = shutil.which("uv") or os.environ.get("UV", "uv")  # `uv run` tells where it lies itself
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", "3.11", str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *_PEER],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"UV_NO_CONFIG": "1"})
        except FileNotFoundError:
            raise UserError("uv is not installed", "--peer recommenders", "Install it: pip install uv") from None
        if done.returncode:
            raise RunFailed("the environment of recommenders cannot be made", folder, done.stderr.strip()[-300:])
    (folder / "complete").write_text("\n".join(_PEER) + "\n", encoding="utf-8")
    return python.absolute()
