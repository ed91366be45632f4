"""The grammar, through a real command in a real process."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentlab_shared.cli import input_text
from latentlab_shared.errors import UserError

PROGRAM = '''
from typing import Annotated
import typer
from latentlab_shared.cli import ConfigFile, Device, DeviceName, Limit, Output, Seed, Sets, new_app, run, table, verb
from latentlab_shared.errors import RunFailed, UserError

app = new_app("demo-net", "latentlab-shared", "A demonstration.")

@verb(app)
def train(out: Output, what: Annotated[str, typer.Argument()] = "ok", config: ConfigFile = None, sets: Sets = None,
          seed: Seed = 0, device: Device = DeviceName.auto, limit: Limit = None) -> None:
    """Train a model."""
    if what == "wrong":
        raise UserError("the label is missing", "data.tsv:3", "Add a third column")
    if what == "failed":
        raise RunFailed("the loss is not finite", "step 7", "Lower the learning rate")
    if what == "bug":
        raise ZeroDivisionError("line one\\nline two")
    if what == "wait":
        import time
        out.stderr.print("ready")
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("go on with: demo-net train --resume runs/x") from None
    if what == "many":
        for i in range(100000):
            print(i)
    out.log("a log line")
    for _ in out.track([1, 2], "working"):
        pass
    out.result({"r2": 0.5, "nan": float("nan"), "seed": seed, "sets": sets}, table([{"name": "x", "r2": 0.51234567}]))

@verb(app, "bench")
def measure(out: Output) -> None:
    """Measure ratios."""
    out.result({"results": []})

run(app, "demo-net")
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "demo.py"
    path.write_text(PROGRAM)
    return path


def call(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=60)


def test_result_goes_to_stdout_and_logs_to_stderr(program: Path) -> None:
    done = call(program, "train", "--seed", "3", "--set", "a=1", "--set", "b=2")
    assert done.returncode == 0
    assert "0.5123" in done.stdout and "a log line" not in done.stdout
    assert done.stderr.strip() == "a log line"  # and no progress bar: stderr is not a terminal


def test_json_is_one_object_with_null_for_nan(program: Path) -> None:
    done = call(program, "train", "--json", "--quiet", "--set", "a=1")
    assert json.loads(done.stdout) == {"r2": 0.5, "nan": None, "seed": 0, "sets": ["a=1"]}
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["train", "wrong"], 2, "error: data.tsv:3: the label is missing. Add a third column"),
        (["train", "failed"], 1, "error: step 7: the loss is not finite. Lower the learning rate"),
        (["train", "bug"], 1, "failed: ZeroDivisionError: line one line two (run again with -v for the traceback)"),
        (["trian"], 2, "error: No such command 'trian'. Did you mean 'train'? Try: demo-net --help"),
        (["train", "--sed", "1"], 2, "--sed"),
        (["train", "--seed", "x"], 2, "--seed"),
        (["train", "--seed", "-1"], 2, "--seed"),
        (["train", "--limit", "0"], 2, "--limit"),
        (["train", "--device", "tpu"], 2, "--device"),
        ([], 2, "error: Missing command. Try: demo-net --help"),
    ],
)
def test_a_failure_is_one_line_and_the_right_code(program: Path, arguments: list[str], code: int, line: str) -> None:
    done = call(program, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1 and line in done.stderr


def test_verbose_adds_the_traceback(program: Path) -> None:
    done = call(program, "train", "bug", "-v")
    assert done.returncode == 1 and "Traceback" in done.stderr and "failed: ZeroDivisionError" in done.stderr


def test_version_and_help(program: Path) -> None:
    assert call(program, "--version").stdout == "demo-net 0.1.0\n"
    helped = call(program, "train", "--help")
    assert helped.returncode == 0
    for flag in ("--config", "--set", "--seed", "--device", "--limit", "--json", "--quiet", "-q", "--verbose", "-v"):
        assert flag in helped.stdout


def test_ctrl_c_leaves_with_130_and_says_how_to_go_on(program: Path) -> None:
    command = [sys.executable, str(program), "train", "wait"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().strip() == "ready"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest == "interrupted: go on with: demo-net train --resume runs/x\n"


def test_a_closed_pipe_is_no_error(program: Path) -> None:
    line = f"{sys.executable} {program} train many | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n" and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_the_grammar_loads_no_framework() -> None:
    modules = [
        "cli",
        "config",
        "errors",
        "files",
        "runs",
        "provenance",
        "tables",
        "plots",
        "metrics",
        "text",
        "embeddings",
    ]
    code = (
        f"import sys\nfor m in {modules!r}: __import__('latentlab_shared.' + m)\n"
        "heavy = {'torch', 'tensorflow', 'transformers', 'sklearn', 'matplotlib', 'pyarrow', 'scipy'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("latentlab_shared.cli._EVERY_S", 0.0)
    from latentlab_shared.cli import Output

    with Output().progress("embedding", 3) as advance:
        advance(1)
        advance(2)
    with Output(quiet=True).progress("embedding", 3) as advance:
        advance(1)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.splitlines() == ["embedding: 1 of 3", "embedding: 3 of 3"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(36, "File name too long", "x" * 5000), 2, "error: " + "x" * 200 + "…: file name too long"),
        (FileNotFoundError(2, "No such file or directory", "/nowhere/a"), 2, "error: /nowhere/a: no such file"),
        (OSError(28, "No space left on device"), 1, "failed: the disk: the disk is full"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, code, line, capsys):
    from latentlab_shared.cli import guarded

    def work():
        raise error

    assert guarded(work) == code
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1


def test_text_is_utf8_whatever_the_locale_says(program):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIO"))}
    env = {**clean, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, str(program), "train", "--set", "å=é"], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "──" in done.stdout.decode("utf-8")


def test_threads_that_wait_do_not_spin(monkeypatch):
    import latentlab_shared.cli as cli

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pytest.raises(SystemExit):
        cli.run(cli.new_app("demo-net", "latentlab-shared", "A demonstration."), "demo-net", ["--version"])
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"


def test_a_closed_stdout_is_no_fault(program):
    done = subprocess.run(f"{sys.executable} {program} train >&-", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "a log line"


def test_an_error_cannot_command_the_terminal():
    error = UserError("has \x1b[31mred\x1b[0m words", "a\u202eb\nc.txt")
    assert str(error) == "a\ufffdb c.txt: has \ufffd[31mred\ufffd[0m words"


def test_text_that_is_no_utf8_and_a_closed_stdin_are_named(tmp_path, monkeypatch):
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"), input_text(str(tmp_path / "latin1.txt")) as file:
        file.read()
    bytes_in = io.BytesIO("\ufeffcaf\u00e9".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(bytes_in, encoding="utf-8", errors="surrogateescape"))
    with input_text("-") as file:
        assert file.read() == "caf\u00e9"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8", errors="surrogateescape"))
    with pytest.raises(UserError, match="stdin: is not UTF-8 text"), input_text("-") as file:
        file.read()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="stdin is closed"), input_text("-"):
        pass
