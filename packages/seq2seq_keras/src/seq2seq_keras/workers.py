"""Several workers that train one model: a process each, joined by ``TF_CONFIG``, which end with equal weights."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from latentlab_shared.errors import RunFailed, UserError

_GRACE_S = 20.0  # that the other workers have to leave in after the first one
_SAYS_IT_ITSELF_S = 3.0


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Attributes:
        strategy: ``tf.distribute.MultiWorkerMirroredStrategy``.
        index: which worker this is; worker 0 writes the run folder.
        count: how many there are.
    """

    strategy: Any
    index: int
    count: int


def join() -> Workers | None:
    """Join the workers that ``TF_CONFIG`` lists; None where it is not set or lists one. To be called first of all.

    Raises:
        UserError: for a ``TF_CONFIG`` that names no workers.
    """
    given = os.environ.get("TF_CONFIG")
    if not given:
        return None
    try:
        held = json.loads(given)
        count, index = len(held["cluster"]["worker"]), int(held["task"]["index"])
    except (ValueError, KeyError, TypeError):
        form = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        raise UserError("the variable lists no workers", "TF_CONFIG", f"Its form is {form}") from None
    if count < 2:
        return None
    import tensorflow as tf

    return Workers(tf.distribute.MultiWorkerMirroredStrategy(), index, count)


def launch(count: int, command: Sequence[str]) -> int:
    """Run ``count`` processes of one command on this machine, joined by ``TF_CONFIG``; worker 0 alone is heard.

    Args:
        count: of workers.
        command: what each runs.

    Returns:
        Worker 0's exit code.

    Raises:
        RunFailed: if another worker fails while worker 0 is at work.
    """
    addresses = [f"localhost:{port}" for port in _free_ports(count)]
    with ExitStack() as stack:
        started, said = [], []
        for index in range(count):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            faults = stack.enter_context(tempfile.TemporaryFile())
            worker = subprocess.Popen(
                command,
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.DEVNULL if index else None,
                stderr=faults if index else None,
                start_new_session=True,  # Ctrl-C reaches worker 0 through us alone: the others wait for it to save
            )
            stack.callback(_end, worker)
            started.append(worker)
            said.append(faults)
        first, *others = started
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda *_: first.send_signal(signal.SIGINT))
            stack.callback(signal.signal, number, before)
        while first.poll() is None and not any(worker.poll() for worker in others):
            time.sleep(0.1)
        if first.poll() is None:  # what is wrong with one may be wrong with all: worker 0 says it better
            with suppress(subprocess.TimeoutExpired):
                first.wait(_SAYS_IT_ITSELF_S)
        if first.poll() is None:
            lost = next(i for i, worker in enumerate(started) if worker.poll())
            said[lost].seek(0)
            lines = said[lost].read().decode(errors="replace").strip().splitlines()
            raise RunFailed(lines[-1] if lines else f"exit code {started[lost].returncode}", f"worker {lost}")
        deadline = time.monotonic() + (0.0 if first.returncode else _GRACE_S)
        for worker in others:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, deadline - time.monotonic()))
        return int(first.returncode)


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.kill()
    worker.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("localhost", 0))
        return [int(one.getsockname()[1]) for one in taken]
