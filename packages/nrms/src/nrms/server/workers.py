"""Server processes: one in place, or several on one port that are replaced when they die."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any

from latentlab_shared.errors import RunFailed
from latentlab_shared.serving import address_of, listen
from nrms.server.settings import Settings
from nrms.server.store import Store
from nrms.server.sync import load_stored

_log = logging.getLogger(__name__)

GRACE = 10  # seconds for requests in hand
_SHARED = "PROMETHEUS_MULTIPROC_DIR"


def serve(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    *,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; requests in hand are answered first.

    Args:
        settings: of every process.
        host: address to listen on.
        port: 0 takes a free one.
        workers: processes.
        log: told the address.

    Raises:
        UserError: if the port is taken, the address is not this machine's, or the active model's folder is gone.
        RunFailed: if workers die as soon as they start.
    """
    store = Store(settings.database)  # brings the tables to this version, and starts a database of a wheel
    settings = replace(settings, database=store.database.url)
    active = store.models.active()
    if active is not None:
        load_stored(active, settings.device)  # what a worker could only log is said here, before anyone connects
    store.close()
    listener = listen(host, port)
    listener.set_inheritable(True)
    log(f"{address_of(listener)} (Ctrl-C stops)")
    with listener:
        if workers == 1:
            run_worker(settings, listener)
        else:
            _Supervisor(settings, listener, workers).run()


def run_worker(settings: Settings, listener: socket.socket) -> None:
    """Serve in this process until it is told to stop."""
    import torch
    import uvicorn

    from nrms.server.app import create_app
    from nrms.server.observe import configure_logs

    configure_logs()
    torch.set_num_threads(1)  # one request, one core: requests run side by side
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, timeout_graceful_shutdown=GRACE, lifespan="on"
    )
    # uvicorn sends the signal that ended it once more, to whoever was there before; then we leave with 0.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.Server(config).run(sockets=[listener])


class _Supervisor:
    """Keeps n workers alive.

    Args:
        settings: of the workers.
        listener: the socket that all of them accept from.
        count: n.
    """

    def __init__(self, settings: Settings, listener: socket.socket, count: int) -> None:
        self._settings, self._listener, self._count = settings, listener, count
        self._stop = threading.Event()
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[BaseProcess, float]] = []

    def run(self) -> None:
        """Start the workers and replace those that die, until SIGTERM or SIGINT."""
        before: dict[int, Any] = {
            number: signal.signal(number, lambda *_: self._stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
        }
        folder = tempfile.mkdtemp(prefix="nrms-metrics-")
        os.environ[_SHARED] = folder
        failures = 0
        try:
            self._workers = [self._start() for _ in range(self._count)]
            while not self._stop.wait(0.1):
                for place, (process, began) in enumerate(self._workers):
                    if process.is_alive():
                        continue
                    self._bury(process)
                    failures = failures + 1 if time.monotonic() - began < 5 else 0
                    if failures > 2 * self._count:
                        raise RunFailed("the workers die as soon as they start", "nrms serve", "The log above says why")
                    self._workers[place] = self._start()
        finally:
            self._end()
            os.environ.pop(_SHARED, None)
            shutil.rmtree(folder, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> tuple[BaseProcess, float]:
        process = self._context.Process(target=run_worker, args=(self._settings, self._listener), name="nrms-worker")
        process.start()
        return process, time.monotonic()

    def _bury(self, process: BaseProcess) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        process.join()
        _log.warning("worker died", extra={"worker": process.pid, "exit_code": process.exitcode})
        mark_process_dead(process.pid)  # type: ignore[no-untyped-call]

    def _end(self) -> None:
        for process, _ in self._workers:
            process.terminate()
        limit = time.monotonic() + GRACE + 5
        for process, _ in self._workers:
            process.join(timeout=max(0.1, limit - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
