"""Run many command lines of one command in one fresh process: what each printed, its exit code, what it loaded."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAVY = ("torch", "tensorflow", "keras", "transformers", "peft", "sklearn", "scipy", "matplotlib", "pyarrow", "pandas")


@dataclass(frozen=True)
class Said:
    """What one command line answered."""

    arguments: list[str]
    code: int
    stdout: str
    stderr: str

    @property
    def one_line(self) -> bool:
        """Nothing on stdout, one line on stderr."""
        return self.stdout == "" and self.stderr.endswith("\n") and self.stderr.strip().count("\n") == 0


@dataclass(frozen=True)
class Session:
    """The answers, in order, and the heavy modules that the process had loaded at its end."""

    said: list[Said]
    loaded: list[str]


def call(
    target: str,
    name: str,
    lines: list[list[str]],
    cwd: Path,
    timeout: float = 250,
    file_bytes: int | None = None,
    **env: str,
) -> Session:
    """Run the entry point ``module:function`` of command ``name`` once for each line of arguments, in one process.

    ``file_bytes`` is the largest file that the process may write: a disk that is full.
    """

    def limited() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    asked = json.dumps({"target": target, "name": name, "lines": lines})
    done = subprocess.run(
        [sys.executable, __file__],
        input=asked,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        preexec_fn=limited,
        env={**os.environ, "COLUMNS": "200", **env},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answered = json.loads(done.stdout)
    return Session([Said(**one) for one in answered["said"]], answered["loaded"])


def _one(main: Any, name: str, arguments: list[str]) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [name, *arguments]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return {"arguments": arguments, "code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    module, function = wanted["target"].split(":")
    entry = getattr(importlib.import_module(module), function)
    said = [_one(entry, wanted["name"], line) for line in wanted["lines"]]
    print(json.dumps({"said": said, "loaded": [m for m in HEAVY if m in sys.modules]}))
