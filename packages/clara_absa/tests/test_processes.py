"""Two processes that share every batch end with the weights of one."""

import os
import subprocess
import sys

import pytest
import torch

TRAIN = ["-m", "clara_absa.cli", "train", "-q", "--limit", "16", "--set", "train.epochs=2"]
TRAIN += ["--set", "memory.start=matched", "--set", "memory.window=3", "--set", "loss.mark=0.5"]
TRAIN += ["--set", "train.word_dropout=0.2"]


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("parallel", ["copy", "shard"])
def test_two_processes_end_where_one_does(parallel, tmp_path):
    from safetensors.torch import load_file

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *TRAIN, "-o", "one"], cwd=tmp_path, check=True, env=environment, timeout=1200)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*launch, *TRAIN, "-o", "two", "--set", f"train.parallel={parallel}"],
        cwd=tmp_path,
        env=environment,
        timeout=1200,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ("memory.safetensors", "backbone/model.safetensors"):
        one, two = (load_file(tmp_path / folder / "model" / name) for folder in ("one", "two"))
        assert one.keys() == two.keys()
        for key in one:
            off = (one[key] - two[key]).abs()
            # Adam's first steps are as large as the learning rate, 2e-3, however small a gradient is: where one is
            # almost zero, rounding shows.
            assert float(off.mean()) < 1e-7 and float(off.max()) < 1e-3, key


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_processes_that_do_not_meet_are_told_so(tmp_path):
    """Asked for a GPU where there is none, the library would let each process train a model of its own."""
    (tmp_path / "join.py").write_text(
        "from clara_absa.training.processes import Workers\nWorkers.join('cuda', False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "join.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert "RunFailed: WORLD_SIZE: 2 processes were started and did not meet" in done.stderr
