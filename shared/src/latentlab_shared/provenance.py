"""Where a figure came from: versions, machine, commit, command, inputs; and the tables written from measurements."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from latentlab_shared.files import write_json

_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "tensorflow", "keras", "transformers", "tokenizers", "peft")


def environment(seed: int, data: Mapping[str, str] | None = None, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, machine, commit, command and inputs of this process."""
    versions = {}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": today(),
        "command": command_line(),
        "seed": seed,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions,
        "machine": machine(),
        "data": dict(data or {}),
    }


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def command_line() -> str:
    """The command that started this process, with the program's name instead of its path."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def commit(file: Path = Path(__file__)) -> str | None:
    """The commit of the checkout that tracks ``file``, with ``+`` if tracked files differ from it; None outside one."""
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        head = _git(file.parent, "rev-parse", "--short=12", "HEAD")
        changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def machine() -> str:
    """Processor, cores and memory in words; no host name."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    try:
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        memory = ""
    return f"{model}, {cores} cores{memory}"


def write_table(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    command: str,
    data: str,
    seeds: Iterable[int] = (),
    **more: Any,
) -> None:
    """Write a results table (``results/<table>.json``), from which READMEs are filled."""
    table = {
        "command": command,
        "data": data,
        "commit": commit(),
        "date": today(),
        "machine": machine(),
        "seeds": list(seeds),
        **more,
        "rows": list(rows),
    }
    write_json(path, table)
