"""Several workers on this machine: they end with equal weights, and the launcher hears how they end."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from latentlab_shared.errors import RunFailed, UserError
from seq2seq_keras.workers import join, launch

PROGRAM = """
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from seq2seq_keras.workers import join

workers = join()
import keras
from tiny import SMALL, VOCABULARY

from seq2seq_keras.config import TrainConfig
from seq2seq_keras.data.encode import Encoded, pad
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.training import fit

rng = np.random.default_rng(0)
rows = [rng.permutation(np.arange(5, VOCABULARY + 4))[: rng.integers(4, 8)].tolist() for _ in range(30)]
pairs = Encoded(pad(rows), pad([row[1:3] for row in rows]), VOCABULARY)
keras.utils.set_random_seed(0)
with workers.strategy.scope() if workers else nullcontext():
    model = Seq2Seq(VOCABULARY, replace(SMALL, units=8))
strategy, shard = (workers.strategy, (workers.index, workers.count)) if workers else (None, (0, 1))
config = TrainConfig(batch_size=7, epochs=2, learning_rate=0.01, clip=0.5)
losses = [row["valid_loss"] for row in fit(model, pairs, pairs, config, strategy=strategy, shard=shard)]
found = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
np.savez(f"{sys.argv[1]}/{workers.index if workers else 'alone'}.npz", losses=losses, **found)
"""


def loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return dict(held)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_end_with_equal_weights_and_one_workers_losses(tmp_path, monkeypatch):
    # 30 pairs in batches of 7: the last batch holds two, the shares of the others are unequal.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    assert launch(2, command) == 0
    subprocess.run(command, check=True)
    first, second, alone = (loaded(tmp_path / f"{name}.npz") for name in (0, 1, "alone"))
    assert first.keys() == second.keys() and len(first) > 5
    assert all((first[name] == second[name]).all() for name in first)
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-3)
    assert alone["losses"][1] < alone["losses"][0]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_command_trains_with_two_workers(tmp_path):
    call = [
        sys.executable,
        "-m",
        "seq2seq_keras.cli",
        "train",
        "--workers",
        "2",
        "--limit",
        "60",
        "-o",
        "run",
        "--json",
    ]
    call += ["--set", "train.epochs=1", "--set", "model.units=16", "--set", "data.min_count=2"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and '"epochs": 1' in done.stdout
    assert (tmp_path / "run/model/model.safetensors").is_file() and (tmp_path / "run/results.json").is_file()


@pytest.mark.parametrize("given", ["{", "[]", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}, "task": {}}'])
def test_a_variable_without_workers_is_one_line(monkeypatch, given):
    monkeypatch.setenv("TF_CONFIG", given)
    with pytest.raises(UserError, match="TF_CONFIG: the variable lists no workers"):
        join()


def test_one_worker_needs_no_strategy(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert join() is None
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}')
    assert join() is None


ROLES = "import json, os, signal, sys, time; index = json.loads(os.environ['TF_CONFIG'])['task']['index'];"


def test_a_worker_that_fails_ends_all():
    program = ROLES + "index and sys.exit('error: no such thing'); time.sleep(120)"
    with pytest.raises(RunFailed, match="worker 1: error: no such thing"):
        launch(2, [sys.executable, "-c", program])


def test_ctrl_c_reaches_worker_0_and_its_code_is_returned():
    # Worker 1 never sees the signal; it is ended when worker 0 has left.
    program = ROLES + "signal.signal(signal.SIGINT, lambda *_: sys.exit(0 if index else 130)); time.sleep(120)"
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert launch(2, [sys.executable, "-c", program]) == 130
    timer.join()
