"""One command-line grammar for all packages: verbs, flags, exit codes, ``--json``, lazy imports.

A package writes::

    app = new_app("rsr-net", "latentlab-rsr-net", "Summaries by refining an embedding.")

    @verb(app)
    def train(out: Output, config: ConfigFile = None, sets: Sets = None, seed: Seed = 0) -> None:
        '''Train a model into a run folder.'''
        from rsr_net.training import fit  # heavy imports stay inside the verb
        ...
        out.result({"r2": 0.3}, "R² 0.300")

    def main() -> None:
        run(app, "rsr-net")

stdout holds the result and nothing else (one JSON object with ``--json``); logs and progress go to stderr, and
progress only to a terminal. Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from latentlab_shared.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_EVERY_S = 15.0  # between two lines of progress, where there is no terminal
VERBS = ("prepare", "train", "evaluate", "predict", "serve", "export", "bench")


class DeviceName(StrEnum):
    """Where tensors live."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML or JSON file with configuration keys.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value; may be given many times.", metavar="K=V")]
OutputDir = Annotated[Path | None, typer.Option("--output-dir", "-o", help="Folder to write to.")]
Resume = Annotated[Path | None, typer.Option("--resume", help="Go on in this run folder.", metavar="DIR")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of every random choice.")]
Device = Annotated[DeviceName, typer.Option("--device", help="Where to compute.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Read at most this many examples.", metavar="N")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]

_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No logs and no progress.")]
_VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="More logs; a traceback when something fails.")]


class Output:
    """Where a verb writes: its result to stdout, everything else to stderr.

    Args:
        json: print the result as one JSON object.
        quiet: no logs, no progress.
        verbose: debug lines and tracebacks.
    """

    def __init__(self, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose

    @functools.cached_property
    def stderr(self) -> Console:
        """The console of logs and progress."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True, quiet=self.quiet)

    def result(self, data: Mapping[str, Any], text: RenderableType | Sequence[RenderableType] | None = None) -> None:
        """Print the verb's result: ``data`` as JSON with ``--json``, else ``text``: strings or Rich renderables."""
        if self.json or text is None:
            from latentlab_shared.files import to_json

            sys.stdout.write(to_json(data, indent=None if self.json else 2) + "\n")
        elif isinstance(text, str):
            sys.stdout.write(text + "\n")
        else:
            from rich.console import Console

            wide = {} if sys.stdout.isatty() else {"width": 200}
            for part in text if isinstance(text, Sequence) else [text]:
                Console(highlight=False, **wide).print(part)  # type: ignore[arg-type]
        sys.stdout.flush()

    def log(self, message: str) -> None:
        """One line on stderr, unless quiet."""
        self.stderr.print(message, markup=False)

    def replaces(self, folder: Path, own: bool) -> bool:
        """Whether ``folder`` is the quickstart's own, which is thrown away without asking; an earlier run is named."""
        if own and (folder / "config.json").is_file():
            self.log(f"{folder}: a new run replaces the quickstart's earlier one")
        return own

    def warn_of_sample(self, model: Path, train: str) -> None:
        """Say that a model has read generated examples only, where its run says so; ``train`` makes another."""
        from latentlab_shared.runs import trained_on

        if trained_on(model) == "sample":
            self.warn(f"{model} has read generated examples only; for real text: {train}")

    def debug(self, message: str) -> None:
        """One line on stderr, with ``--verbose`` only."""
        if self.verbose:
            self.log(message)

    def warn(self, message: str) -> None:
        """One line on stderr, in yellow on a terminal."""
        self.stderr.print(f"warning: {message}", style="yellow", markup=False)

    @contextmanager
    def progress(self, description: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """Show a progress bar while the block runs; the value given advances it.

        Where stderr is no terminal, a line every quarter of a minute takes its place.
        """
        if self.quiet or not sys.stderr.isatty():
            yield self._lines(description, total)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
        )
        with Progress(*columns, console=self.stderr, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda amount: bar.advance(task, amount)

    def _lines(self, description: str, total: float | None) -> Callable[[float], None]:
        import time

        done, said = 0.0, time.monotonic()

        def advance(amount: float) -> None:
            nonlocal done, said
            done += amount
            if time.monotonic() - said >= _EVERY_S:
                said = time.monotonic()
                self.log(f"{description}: {done:,.0f}" + (f" of {total:,.0f}" if total else ""))

        return advance

    def track(self, items: Sequence[Any] | Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        """Iterate with a progress bar."""
        size = total if total is not None else (len(items) if isinstance(items, Sequence) else None)
        with self.progress(description, size) as advance:
            for item in items:
                yield item
                advance(1)


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None, title: str | None = None) -> Any:
    """A Rich table of dictionaries; floats get four significant digits, numbers stand right."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    listed = list(rows)
    names = list(columns or (listed[0] if listed else []))
    # A title wider than its table would be wrapped.
    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", min_width=len(title) + 2 if title else None)
    for name in names:
        numeric = all(isinstance(r.get(name), (int, float, type(None))) for r in listed)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        made.add_row(*(escape(_cell(row.get(name))) for name in names))  # "[a]" is no markup
    return made


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def new_app(name: str, distribution: str, summary: str) -> typer.Typer:
    """A Typer application with ``--version`` and the house's behaviour.

    Args:
        name: the command, such as ``rsr-net``.
        distribution: the installed distribution whose version is printed.
        summary: one sentence for ``--help``.
    """
    app = typer.Typer(
        name=name, help=summary, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            sys.stdout.write(f"{name} {version(distribution)}\n")
            raise typer.Exit()

    def root(version: bool = False) -> None:
        pass

    option = typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    root.__annotations__["version"] = Annotated[bool, option]  # set by hand: a string could not name a local
    root.__doc__ = summary
    app.callback()(root)
    return app


def verb(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a verb; its first parameter is the ``Output`` made from --json, -q and -v."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
        first, *rest = signature.parameters.values()
        if hints.get(first.name) is not Output:
            raise TypeError(f"{function.__name__}: the first parameter of a verb is `out: Output`")
        common = {"json": _JSON, "quiet": _QUIET, "verbose": _VERBOSE}
        parameters = [
            inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=hints[p.name])
            for p in rest
        ] + [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for key, kind in common.items()
        ]

        @functools.wraps(function)
        def call(**given: Any) -> None:
            out = Output(given.pop("json"), given.pop("quiet"), given.pop("verbose"))
            code = guarded(lambda: function(out, **given), out.verbose)
            if code:
                raise typer.Exit(code)

        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        app.command(name)(call)
        return function

    return register


def guarded(work: Callable[[], None], verbose: bool = False) -> int:
    """Run ``work`` and return the exit code; a failure is one line on stderr (and a traceback when verbose)."""
    raised: BaseException | None = None
    try:
        work()
    except UserError as error:
        raised, code, line = error, error.exit_code, f"error: {error}"
    except KeyboardInterrupt as error:
        code, line = 130, f"interrupted{f': {error}' if str(error) else ''}"
    except BrokenPipeError:
        # The reader of our stdout has left (`| head`); Python must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (typer.Exit, SystemExit):
        raise
    except OSError as error:
        raised, code, line = error, *_of_the_system(error)
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raised, code, line = error, 1, f"failed: {type(error).__name__}: {message}"
        if not verbose:
            line += " (run again with -v for the traceback)"
    else:
        return 0
    if verbose and raised is not None:
        import traceback

        traceback.print_exception(raised)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
    return code


def _of_the_system(error: OSError) -> tuple[int, str]:
    """The exit code and the line of a file or a folder that cannot be used: wrong input, unless the disk is full."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 1, f"failed: {error.filename or 'the disk'}: the disk is full. Free some space and run again"
    name = str(error.filename or "")
    where = f"{name[:200]}{'…' if len(name) > 200 else ''}: " if name else ""
    return (2 if name else 1), f"error: {where}{(error.strerror or type(error).__name__).lower()}"


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the application and leave with its exit code; a usage mistake is one line and exit code 2."""
    # Read when torch is first imported: threads that spin while they wait cost ten times the work on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for closed in ("stdout", "stderr"):  # closed by the caller
        if getattr(sys, closed) is None:
            setattr(sys, closed, open(os.devnull, "w"))  # noqa: SIM115  (open until the end)
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # text is UTF-8, whatever the locale says
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(encoding="utf-8")
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = command.main(args=given, prog_name=name, standalone_mode=False)
    except SystemExit:
        raise
    except Exception as error:
        # Typer's usage errors, whichever click it carries, have format_message() and the context they arose in.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else name
        message = " ".join(error.format_message().split())
        end = "" if message.endswith((".", "?", "!")) else "."
        sys.stderr.write(f"error: {message}{end} Try: {path} --help\n")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def input_text(source: str) -> Iterator[typing.TextIO]:
    """Open a file, or stdin for ``-``, as UTF-8 text; what cannot be read is a ``UserError``."""
    if source == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise UserError("stdin is closed", source, "Give a file, or text through a pipe")
        if hasattr(sys.stdin, "reconfigure"):  # a byte order mark is no text; half characters are no input
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
        with _clear_decoding("stdin"):
            yield sys.stdin
        return
    try:
        file = Path(source).open(encoding="utf-8-sig")  # noqa: SIM115  (closed by the with below)
    except FileNotFoundError:
        raise UserError("there is no such file", source, "Give a file, a folder, or - for stdin") from None
    except IsADirectoryError:
        raise UserError("this is a folder", source, "Give a file") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", source) from None
    with file, _clear_decoding(source):
        yield file


@contextmanager
def _clear_decoding(source: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", source, "Convert it to UTF-8") from None
