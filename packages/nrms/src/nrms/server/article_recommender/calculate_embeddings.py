"""Embed the articles that the database has and the model has not embedded yet; once, or every so many seconds.

Several of these may run at once, on one machine or many: each takes other rows. What is embedded is committed batch by
batch, so a run that was killed goes on where it stopped. ``nrms embed`` is the same with more options.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentlab_shared.cli import guarded
from nrms.data.types import Floats, News
from nrms.model.folder import LoadedModel
from nrms.server.store import Store, StoredModel, Unavailable

BATCH = 2048

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """What one pass did.

    Attributes:
        model_id: whose vectors.
        done: articles embedded by this worker.
        live: articles that have not expired.
        left: those of them without a vector now; other workers may have them in hand.
        seconds: wall time.
        cpu_seconds: processor time of this process.
    """

    model_id: str
    done: int
    live: int
    left: int
    seconds: float
    cpu_seconds: float


def embed_pending(
    store: Store,
    model: LoadedModel,
    folder: str,
    *,
    batch_size: int = BATCH,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], Any] = lambda _: None,
) -> Embedded:
    """Embed everything that is missing, or of an older text, for one model.

    Args:
        store: the database.
        model: the encoders.
        folder: where the model's files are, noted in the store for the processes that will serve it.
        batch_size: articles per transaction.
        stop: asked between batches.
        advance: told how many articles a batch had.
    """
    stored = register(store, model, folder)
    began, cpu = time.monotonic(), time.process_time()
    job = store.embeddings.start(stored)

    def encode(news: list[News]) -> Floats:
        vectors: Floats = model.encode_articles(news).numpy()
        return vectors

    try:
        while not stop() and (count := store.embeddings.embed_batch(job, batch_size, encode)):
            advance(count)
    except BaseException as error:
        store.embeddings.finish(job, f"{type(error).__name__}: {error}")
        raise
    store.embeddings.finish(job)
    coverage = store.models.coverage(stored)
    left = coverage.live - coverage.embedded
    _log.info("embedded", extra={"done": job.done, "left": left, "model_id": model.model_id})
    spent = time.monotonic() - began, time.process_time() - cpu
    return Embedded(model.model_id, job.done, coverage.live, left, *spent)


def register(store: Store, model: LoadedModel, folder: str) -> StoredModel:
    """Make a model known to the store; it answers when it is activated."""
    return store.models.register(model.model_id, model.config.dim, folder)


def embed_every(
    seconds: float,
    work: Callable[[], dict[str, Any]],
    stop: threading.Event,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Run ``work`` now and then every ``seconds``, until ``stop`` is set; a database that is away is waited for."""
    while not stop.is_set():
        try:
            report(work())
        except Unavailable as error:
            _log.warning("database away", extra={"reason": str(error)})
        stop.wait(seconds)


@dataclass(frozen=True)
class EmbedOptions:
    """One call of ``nrms embed``.

    Attributes:
        model: a run or model folder.
        database: an address that `Store` understands.
        data: articles to add first: "sample", a ``news.tsv`` or a folder; None for none.
        events: a ``behaviors.tsv`` or a folder, whose clicks are added as reads.
        vectors: a cache of `nrms.server.precompute` to take vectors from before anything is computed.
        activate: make the model the one that answers.
        min_coverage: what activation asks for.
        every: seconds between two passes; 0 for one.
        batch_size: articles per transaction.
        skip_bad: count malformed rows and go on.
    """

    model: Path = Path("runs/nrms/sample")
    database: str = "sqlite:///runs/nrms/nrms.db"
    data: str | None = None
    events: Path | None = None
    vectors: Path | None = None
    activate: bool = False
    min_coverage: float = 1.0
    every: float = 0.0
    batch_size: int = BATCH
    skip_bad: bool = False


def run_embed(
    options: EmbedOptions,
    device: str,
    report: Callable[[dict[str, Any]], None],
    advance: Callable[[int], Any] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Add what is to be added, then embed once or every so many seconds; a signal ends it behind the batch in hand.

    Args:
        options: what to do.
        device: of the model.
        report: told what each pass did.
        advance: told how many articles a batch had.
        log: told what was added.

    Raises:
        KeyboardInterrupt: if a signal ended it before it was done.
    """
    from nrms.data.rows import BadRows
    from nrms.model.folder import load_model_dir
    from nrms.server.corpus import add_articles, add_events, read_articles, read_events

    model = load_model_dir(options.model, device)
    store, stop = Store(options.database), threading.Event()
    bad = BadRows(skip=options.skip_bad)
    if options.data is not None:
        added = add_articles(store, read_articles(options.data, bad))
        log(f"articles: {', '.join(f'{count} {what}' for what, count in added.items())}")
    if options.events is not None:
        log(f"reads: {add_events(store, read_events(options.events, bad))} new")
    if bad.count:
        log(f"malformed rows left out: {bad.count}")
    folder = str(options.model.resolve())
    if options.vectors is not None:
        from nrms.server.precompute import load_vectors

        log(f"vectors taken: {load_vectors(store, model, register(store, model, folder), options.vectors)}")

    def once() -> dict[str, Any]:
        done = embed_pending(store, model, folder, batch_size=options.batch_size, stop=stop.is_set, advance=advance)
        if options.activate and not stop.is_set():
            store.models.activate(model.model_id, options.min_coverage)
        active = store.models.active()
        return asdict(done) | {"active": active is not None and active.id == model.model_id}

    with _ends_behind_batch(stop):
        if options.every:
            embed_every(options.every, once, stop, report)
        else:
            done = once()
            report(done)
            if stop.is_set() and (done["left"] or (options.activate and not done["active"])):
                raise KeyboardInterrupt(f"{done['left']} articles left; run the same command again to go on")
    store.close()


@contextmanager
def _ends_behind_batch(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set ``stop``; a second one acts as usual."""

    def set_stop(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for watched in (signal.SIGTERM, signal.SIGINT):
            before[watched] = signal.signal(watched, set_stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed with the options ``--model``, ``--database``, ``--every``, ``--batch-size``; the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="calculate_embeddings", description=__doc__)
    parser.add_argument("--model", type=Path, default=EmbedOptions.model, help="a run or model folder")
    parser.add_argument("--database", default=os.environ.get("NRMS_DATABASE", EmbedOptions.database))
    parser.add_argument("--every", type=float, default=0.0, metavar="SECONDS", help="go on, once per so many seconds")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="articles per transaction")
    given = parser.parse_args(arguments)
    options = EmbedOptions(given.model, given.database, every=given.every, batch_size=given.batch_size)

    def report(done: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()

    return guarded(lambda: run_embed(options, "auto", report))


if __name__ == "__main__":
    sys.exit(main())
