"""The desk: requests that are answered and those that wait, and the workers they wait for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import Any

from latentlab_shared.errors import UserError
from refrag.serving.worker import Job, Tell, Worker, WorkerDied

_log = logging.getLogger(__name__)
FAILED = "the server failed; its log says why"


class Full(Exception):
    """All places are taken."""


class Desk:
    """Hands jobs to workers.

    Args:
        workers: each answers one job at a time.
        waiting: jobs that may wait besides.
    """

    def __init__(self, workers: Sequence[Worker], waiting: int) -> None:
        self.workers, self.places = list(workers), len(workers) + waiting
        self._free: queue.Queue[int] = queue.Queue()
        for number in range(len(self.workers)):
            self._free.put(number)
        self._busy: set[int] = set()
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> threading.Event:
        """A place for a request; the event stops it.

        Raises:
            Full: if there is none.
            UserError: if a request of this name has one.
        """
        with self._lock:
            if name in self._stops:
                raise UserError("another request has this id", "id", "Choose another")
            if len(self._stops) >= self.places:
                raise Full
            stop = self._stops[name] = threading.Event()
            return stop

    def leave(self, name: str) -> None:
        """Give a place back."""
        with self._lock:
            del self._stops[name]

    def cancel(self, name: str) -> bool:
        """Stop a request; whether there was one."""
        with self._lock:
            stop = self._stops.get(name)
        if stop is not None:
            stop.set()
        return stop is not None

    def answer(self, job: Job, stop: threading.Event, tell: Tell) -> None:
        """Wait for a worker and answer; the last event is done, cancelled or error, whatever happens."""
        number = self._wait(stop)
        if number is None:
            tell("cancelled", {"sides": {}})
            return
        try:
            tell("assigned", {"worker": number})
            found = self.workers[number].run(job, tell, stop.is_set)
            tell("cancelled" if stop.is_set() else "done", {"sides": found, **found.get("refrag", {})})
        except WorkerDied as fault:
            _log.warning("worker %d ended; another takes its place", number)
            tell("error", {"error": str(fault), "retry": True})
            threading.Thread(target=self._give_back, args=(number,), daemon=True).start()  # the client need not wait
            number = None
        except UserError as fault:
            tell("error", {"error": str(fault)})
        except Exception:
            _log.exception("worker %d", number)
            tell("error", {"error": FAILED})
        finally:
            if number is not None:
                self._give_back(number)

    def _give_back(self, number: int) -> None:
        """A worker for the next request, started again if it ended."""
        try:
            self.workers[number].ready()
        except Exception:  # it is tried again with the next request, which is told
            _log.exception("worker %d cannot start", number)
        finally:
            self._busy.discard(number)
            self._free.put(number)

    def _wait(self, stop: threading.Event) -> int | None:
        """A free worker's number; None for a request that was stopped before its turn."""
        while not stop.is_set():
            try:
                number = self._free.get(timeout=0.1)
            except queue.Empty:
                continue
            self._busy.add(number)
            return number
        return None

    def state(self) -> dict[str, Any]:
        """What the workers do."""
        workers = [
            {"id": number, "busy": number in self._busy, "restarts": worker.restarts}
            for number, worker in enumerate(self.workers)
        ]
        return {"workers": workers, "in_hand": len(self._stops), "places": self.places}

    def close(self) -> None:
        """Stop every request and end the workers."""
        with self._lock:
            for stop in self._stops.values():
                stop.set()
        for worker in self.workers:
            worker.close()
