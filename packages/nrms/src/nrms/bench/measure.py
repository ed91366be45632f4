"""A measured number beside its target."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Result:
    """One line of the benchmark.

    Attributes:
        name: what was measured.
        value: the number.
        unit: its unit.
        against: what it is compared with, or how it was measured.
        target: what was aimed at; None where there is no target.
        ok: whether it was reached; None without a target.
    """

    name: str
    value: float
    unit: str
    against: str = ""
    target: float | None = None
    ok: bool | None = None


def result(
    name: str,
    value: float,
    unit: str,
    against: str = "",
    target: float | None = None,
    better: Literal["less", "more"] = "less",
) -> Result:
    """A line; with a target, less or more than it is good."""
    ok = None if target is None else value <= target if better == "less" else value >= target
    return Result(name, value, unit, against, target, ok)


def percentiles(work: Callable[[int], object], count: int, warm: int = 3) -> tuple[float, float]:
    """Median and 99th percentile of one call, in milliseconds."""
    median, worst, _ = timed(work, count, warm)
    return median, worst


def timed(work: Callable[[int], object], count: int, warm: int = 3) -> tuple[float, float, float]:
    """Median and 99th percentile of one call, and the mean processor time of one, in milliseconds.

    On a busy machine the first two are the machine's; the third stays ours.
    """
    for number in range(warm):
        work(number)
    times = []
    cpu = time.process_time()
    for number in range(count):
        began = time.perf_counter()
        work(number)
        times.append(1000 * (time.perf_counter() - began))
    cpu = time.process_time() - cpu
    return float(np.median(times)), float(np.percentile(times, 99)), 1000 * cpu / count


def cpu_seconds(pid: int) -> float:
    """Processor time that another process has used; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0


def load_average() -> float:
    """How busy the machine is: processes that want a core, over one minute; 0 where that is not known."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
