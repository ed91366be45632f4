"""Workers: each holds the model and answers one question at a time, in this process or in one of its own."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from latentlab_shared.errors import RunFailed, UserError
from refrag.inference.generator import RefragGenerator, greedy
from refrag.model.documents import Doc, Message
from refrag.model.folder import read_model_config
from refrag.model.gate import Budget
from refrag.model.window import Window

Job = dict[str, Any]
"""JSON: question, history, docs, budget, expand, exclude, compression, max_new_tokens, sides."""
Tell = Callable[[str, dict[str, Any]], None]
SIDES = ("refrag", "full")

_POLL_S = 0.02
_PINNED = 1e9  # a score beyond all of the gate's


class WorkerDied(RunFailed):
    """A worker ended while it answered."""


class Worker(Protocol):
    """What answers jobs."""

    restarts: int

    def about(self) -> dict[str, Any]:
        """The model: encoder, decoder, compression."""

    def run(self, job: Job, tell: Tell, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Answer; ``tell`` gets plan, token, citation and metrics events; the result is by side."""

    def ready(self) -> None:
        """Start again if it has ended."""

    def close(self) -> None:
        """Free what it holds."""


class ThreadWorker:
    """A worker in this process.

    Args:
        generator: the model.
    """

    def __init__(self, generator: RefragGenerator) -> None:
        self.generator, self.restarts = generator, 0

    def about(self) -> dict[str, Any]:
        """The model."""
        return describe(self.generator)

    def run(self, job: Job, tell: Tell, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Answer a job here."""
        return run_job(self.generator, job, tell, stopped)

    def ready(self) -> None:
        """It always is."""

    def close(self) -> None:
        """Nothing is held."""


class ProcessWorker:
    """A worker in a process of its own, which is started again when it dies.

    Args:
        model: a folder that ``RefragGenerator.save_pretrained`` wrote.
        cache: a folder for chunk vectors.
        device: "auto" or a device.

    Raises:
        UserError: if there is no model in the folder.
        RunFailed: if it cannot load the model.
    """

    def __init__(self, model: Path, cache: Path, device: str = "auto") -> None:
        read_model_config(model)  # here, where a mistake is the user's and not a worker's
        self.model, self.cache, self.device, self.restarts = model, cache, device, 0
        self._number = 0
        self._start()

    def _start(self) -> None:
        context: Any = _context()
        self._stop = context.RawValue("Q", 0)  # no lock: a process killed with one would stop us for ever
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_answer_jobs, args=(theirs, self._stop, str(self.model), str(self.cache), self.device), daemon=True
        )
        self.process.start()
        theirs.close()
        name, data = self._receive(lambda: False)
        if name != "ready":
            raise RunFailed(f"a worker cannot start: {data['error']}", self.model)
        self._about = data

    def about(self) -> dict[str, Any]:
        """The model."""
        return self._about

    def run(self, job: Job, tell: Tell, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Answer a job in the worker's process.

        Raises:
            UserError: for a fault of the job's.
            WorkerDied: if the process ends; ``ready`` starts another.
        """
        self.ready()
        self._number += 1
        number = self._number

        def halted() -> bool:
            if stopped():
                self._stop.value = number
            return False

        try:
            _send(self._pipe, "job", {**job, "number": number})
            while True:
                name, data = self._receive(halted)
                if name == "result":
                    return data
                if name == "refused":
                    raise UserError(data["error"])
                if name == "failed":
                    raise RuntimeError(data["error"])
                tell(name, data)
        except (EOFError, OSError):
            self.close()
            raise WorkerDied("the worker ended while it answered. Ask again") from None

    def ready(self) -> None:
        """Start a process in the place of one that ended.

        Raises:
            RunFailed: if it cannot load the model.
        """
        if not self.process.is_alive():
            self.close()
            self.restarts += 1
            self._start()

    def _receive(self, check: Callable[[], bool]) -> tuple[str, dict[str, Any]]:
        """The next message; asks ``check`` every now and then."""
        while True:
            check()
            if wait([self._pipe], _POLL_S):
                name, data = json.loads(self._pipe.recv_bytes())
                return str(name), data

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _context() -> Any:
    """How processes start: from one that has loaded torch already, where the system has such; it answers nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["refrag.serving.preload"])
    return context


def _send(pipe: Connection, name: str, data: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps([name, data]).encode())


def _answer_jobs(pipe: Connection, stop: Any, model: str, cache: str, device: str) -> None:
    """What a worker's process does until its pipe is closed."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    try:
        generator = RefragGenerator.from_pretrained(model, cache=cache, device=device)
        generator.answer("?", [Doc("1", "A first answer is slow.")], generation=greedy(1))  # nobody waits for this one
    except Exception as error:
        _send(pipe, "failed", {"error": str(error)})
        return
    _send(pipe, "ready", describe(generator))
    while True:
        try:
            _, job = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        number = job.pop("number")
        try:
            done = run_job(generator, job, lambda name, data: _send(pipe, name, data), lambda: stop.value == number)  # noqa: B023
            _send(pipe, "result", done)
        except UserError as error:
            _send(pipe, "refused", {"error": str(error)})
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            traceback.print_exc()
            _send(pipe, "failed", {"error": type(error).__name__})


def describe(generator: RefragGenerator) -> dict[str, Any]:
    """What is known of a model, as JSON."""
    config = generator.model.config
    return {
        "id": "refrag",
        "encoder": Path(config.encoder_name_or_path).name,
        "decoder": Path(config.decoder_name_or_path).name,
        "compression": config.compression,
        "positions": generator.model.room,
        "kv_bytes_per_position": kv_bytes(generator),
    }


def kv_bytes(generator: RefragGenerator) -> int:
    """Bytes of keys and values that the decoder keeps for a position: 2 · layers · key heads · width · bytes."""
    config: Any = generator.model.decoder.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    element = next(generator.model.decoder.parameters()).element_size()
    return int(2 * config.num_hidden_layers * heads * width * element)


def run_job(generator: RefragGenerator, job: Job, tell: Tell, stopped: Callable[[], bool]) -> dict[str, Any]:
    """Answer a job on every side it asks for: ``refrag`` as its budget says, ``full`` with everything as tokens.

    Returns:
        By side: text, citations, slots and metrics. What was stopped ends where it was.

    Raises:
        UserError: as ``RefragGenerator.answer``.
    """
    docs = [Doc(d["id"], d["text"], d["title"]) for d in job["docs"]]
    messages: list[Message] = [*job["history"], {"role": "user", "content": job["question"]}]
    per_position, found = kv_bytes(generator), {}
    for side in job["sides"]:
        if stopped():
            break
        found[side] = _run_side(generator, side, job, docs, messages, per_position, tell, stopped)
    return found


def _run_side(
    generator: RefragGenerator,
    side: str,
    job: Job,
    docs: list[Doc],
    messages: list[Message],
    per_position: int,
    tell: Tell,
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    full = side == "full"
    budget = Budget(fraction=1.0) if full else Budget(**job["budget"])
    scores = None if full else job_scores(generator, messages, docs, job)
    began = time.perf_counter()
    first: list[float] = []

    def on_window(window: Window) -> None:
        nonlocal began
        plan = {
            "side": side,
            "positions": len(window.embeddings),
            "full_positions": window.full_length,
            "kv_bytes_per_position": per_position,
        }
        tell("plan", plan | ({} if full else {"slots": [asdict(slot) for slot in window.slots]}))
        if full:  # to its favour: reading all tokens needs neither chunks nor the gate, so its clock starts here
            began = time.perf_counter()

    def on_text(piece: str) -> None:
        first.append(time.perf_counter() - began)
        tell("token", {"side": side, "text": piece, "n": len(first)})

    answer = generator.answer(
        messages,
        docs,
        budget=budget,
        scores=scores,
        compression=job["compression"],
        generation=greedy(job["max_new_tokens"]),
        on_window=on_window,
        on_text=on_text,
        stopped=stopped,
    )
    seconds = time.perf_counter() - began
    for citation in answer.citations:
        tell("citation", {"side": side, **asdict(citation)})
    metrics = {
        "ttft_s": first[0] if first else None,
        "seconds": seconds,
        "new_tokens": answer.new_tokens,
        "positions": answer.window_length,
        "full_positions": answer.full_length,
        "kv_bytes": per_position * answer.window_length,
        "full_kv_bytes": per_position * answer.full_length,
        "encoded_rows": answer.encoded_rows,
    }
    tell("metrics", {"side": side, **metrics})
    citations, slots = [asdict(c) for c in answer.citations], [asdict(s) for s in answer.slots]
    return {"text": answer.text, "citations": citations, "slots": slots, "metrics": metrics}


def job_scores(generator: RefragGenerator, messages: list[Message], docs: list[Doc], job: Job) -> list[float] | None:
    """The gate's scores with the chunks that were pinned or excluded moved to its ends; None if none were."""
    pinned, excluded = ({(c["doc"], c["chunk"]) for c in job[name]} for name in ("expand", "exclude"))
    if not pinned and not excluded:
        return None
    window = generator.window(messages, docs, budget=Budget(fraction=0.0), compression=job["compression"])
    return [
        _PINNED if (s.doc, s.chunk) in pinned else -_PINNED if (s.doc, s.chunk) in excluded else float(s.score or 0.0)
        for s in window.slots
    ]
