"""How much memory a training step and the reading of a log of MIND-large's size take, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from latentlab_shared.errors import RunFailed
from nrms.bench.data import MIND_LARGE, Size, make_log
from nrms.bench.measure import Result, result

Log = Callable[[str], None]
_GIB = 2**30
STEPS = 5


def measure_memory(folder: Path, quick: bool, log: Log) -> list[Result]:
    """Peak memory of steps at batch 128, and of reading and tokenising a whole log into its cache."""
    step_size = Size(news=400, train=400, dev=10, words=500) if quick else Size()
    large = Size(news=400, train=2000, dev=10, words=500, users=500) if quick else MIND_LARGE
    for name, size in (("demo", step_size), ("large", large)):
        log(f"a log of {size.train:,} impressions")
        make_log(folder / name, size)
    step = _run("step", folder / "demo")
    log(f"batch 128: {step['peak'] / _GIB:.2f} GiB")
    read = _run("read", folder / "large")
    log(f"{large.train:,} impressions: {read['peak'] / _GIB:.2f} GiB, {read['cpu']:.0f} CPU-s")
    name = f"reading {large.train:,} impressions, {large.news:,} articles"
    how = "peak resident memory of a process of its own"
    return [
        result("training step, batch 128, peak memory", step["peak"] / _GIB, "GiB", f"{how}, 16x16, K=4", 2.0),
        result(f"{name}, peak memory", read["peak"] / _GIB, "GiB", f"{how}, streamed into its cache", 4.0),
        result(f"{name}, processor time", read["cpu"], "CPU-s", "once; later runs map the cache"),
        result(f"{name}, cache", read["cache"] / _GIB, "GiB", "on disk"),
        result("opening that cache again, peak memory", _run("open", folder / "large")["peak"] / _GIB, "GiB", how),
    ]


def _run(task: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "nrms.bench.memory", task, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RunFailed("the measurement failed", task, done.stderr.strip()[-300:])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def peak_memory() -> int:
    """The most memory this process has had, in bytes."""
    try:
        # Not getrusage: its peak is inherited from the process that started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _step(folder: Path) -> None:
    """Some training steps as `train` makes them, at the paper's sizes."""
    import torch

    from nrms.bench.work import open_bench_log, our_step
    from nrms.config import ModelConfig
    from nrms.model.nrms import NRMS
    from nrms.training.dataset import MindDataset, mind_collate_fn

    torch.set_num_threads(1)
    train, _, vocabulary = open_bench_log(folder, ModelConfig())
    data, step = MindDataset(train), our_step(NRMS(ModelConfig(), len(vocabulary)))
    for number in range(STEPS):
        step(mind_collate_fn([data[i % len(data)] for i in range(128 * number, 128 * (number + 1))]))


def _read(folder: Path) -> None:
    """The train part, tokenised and cached."""
    from nrms.config import ModelConfig
    from nrms.data.log import open_log
    from nrms.data.mind import NEWS_FILE, read_news
    from nrms.data.vocabulary import WordVocabulary

    words = WordVocabulary.build(news.title for news in read_news(folder / "train" / NEWS_FILE))
    open_log(folder / "train", words, ModelConfig(), cache=folder / "cache")


def main() -> None:
    """Do one task, and print peak memory (bytes), processor time and the size of the cache (bytes)."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    if task == "read":
        import shutil

        shutil.rmtree(folder / "cache", ignore_errors=True)
    began = time.process_time()
    _step(folder) if task == "step" else _read(folder)
    cache = sum(file.stat().st_size for file in (folder / "cache").rglob("*.*") if file.is_file())
    found = {"peak": peak_memory(), "cpu": time.process_time() - began, "cache": cache}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
