"""The benchmarks by name, for ``refrag bench``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError

SUITES = ("align", "ttft", "memory", "step", "serve")


@dataclass(frozen=True)
class Asked:
    """What a benchmark is asked for; each takes what concerns it.

    Attributes:
        data_dir: align: holds tokenizers/ and wikitext2/.
        chars: align: length of the measured text.
        cases: align: random texts to compare on.
        references: align: pairs with the seed's table beside them.
        context: ttft, memory: tokens of the documents.
        repeats: rounds.
        streams: serve: streams held at once.
        workers: serve: processes.
        seed: of weights and texts.
    """

    data_dir: Path | None
    chars: int
    cases: int
    references: int
    context: int
    repeats: int
    streams: int
    workers: int
    seed: int


@dataclass(frozen=True)
class Measured:
    """Rows of a benchmark, those of its pairs if it has any, and the columns to show (None for all)."""

    rows: Sequence[dict[str, Any]]
    pairs: Sequence[dict[str, Any]] = ()
    columns: Sequence[str] | None = None

    @property
    def met(self) -> bool:
        """Whether all that is demanded was met."""
        return all(row.get("ok", True) for row in self.rows)


def run_suite(what: str, asked: Asked, output_dir: Path | None, log: Callable[[str], None]) -> Measured:
    """Measure one of ``SUITES``; with a folder, write the tables of the README.

    Raises:
        UserError: for another name, or without the data.
    """
    if what not in SUITES:
        raise UserError(f"{what!r} is no benchmark", "refrag bench", f"Use {', '.join(SUITES)}")
    command = f"refrag bench {what}"
    columns: Sequence[str] | None = None
    if what == "align":
        return _align(asked, output_dir, command, log)
    if what == "serve":
        from refrag.bench import serve

        rows = serve.bench_serve(streams=asked.streams, workers=asked.workers, seed=asked.seed, log=log)
        command += f" --streams {asked.streams} --workers {asked.workers}"
        write, columns = serve.write_results, ("name", "value", "target", "ok")
    elif what == "step":
        from refrag.bench import training

        rows = training.bench_step(repeats=asked.repeats, seed=asked.seed, log=log)
        command += f" --repeats {asked.repeats}"
        write, columns = training.write_results, ("name", "value", "unit", "loss", "target", "ok")
    else:
        from refrag.bench import memory, ttft
        from refrag.bench.random_models import Sizes

        sizes = Sizes(context=asked.context, seed=asked.seed)
        measure: Any = memory.bench_memory if what == "memory" else ttft.bench_ttft
        rows = measure(sizes, repeats=asked.repeats, log=log)
        command += f" --context {asked.context} --repeats {asked.repeats}"
        write = (memory if what == "memory" else ttft).write_results
    if output_dir is not None:
        write(output_dir, rows, command, asked.seed)
    return Measured(rows, columns=columns)


def _align(asked: Asked, output_dir: Path | None, command: str, log: Callable[[str], None]) -> Measured:
    if asked.data_dir is None:
        raise UserError("no data", "--data-dir", "Give a folder with tokenizers/ and wikitext2/valid.txt")
    from refrag.bench.align import bench_align, write_results

    rows, pairs = bench_align(
        asked.data_dir / "tokenizers",
        asked.data_dir / "wikitext2" / "valid.txt",
        chars=asked.chars,
        cases=asked.cases,
        repeats=asked.repeats,
        references=asked.references,
        seed=asked.seed,
        log=log,
    )
    if output_dir is not None:
        command += f" --chars {asked.chars} --cases {asked.cases} --references {asked.references}"
        write_results(output_dir, rows, pairs, f"{command} --repeats {asked.repeats} --data-dir DATA", asked.seed)
    return Measured(rows, pairs)
