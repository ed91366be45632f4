"""The training loop: it learns, stops, resumes to the same numbers, and begins coverage at the best weights."""

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import OPTIONS, SMALL, TINY, VOCABULARY

from latentlab_shared.errors import RunFailed
from latentlab_shared.runs import RunFolder
from seq2seq_keras.config import TrainConfig
from seq2seq_keras.data.encode import Encoded, pad
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.training import Trainer, fit

CONFIG = TrainConfig(batch_size=8, epochs=3, learning_rate=0.01, optimizer="adam", checkpoint_minutes=0)


def pairs(count=32, seed=0):
    """Texts whose summary is their second and third word, some unknown."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.arange(5, VOCABULARY + 4))[: rng.integers(4, 8)].tolist() for _ in range(count)]
    return Encoded(pad(rows), pad([row[1:3] for row in rows]), VOCABULARY)


def weights_of(model):
    return [w.numpy() for w in model.weights]


def made(config=SMALL, seed=0):
    keras.utils.set_random_seed(seed)
    return Seq2Seq(VOCABULARY, config)


def test_one_batch_is_learned_by_heart():
    model, data = made(replace(SMALL, units=16)), pairs(8)
    rows = fit(model, data, data, replace(CONFIG, epochs=150, patience=150))
    assert rows[0]["valid_loss"] > 2 and rows[-1]["valid_loss"] < 0.1


@pytest.mark.parametrize("option", ["seed", "keras_additive", "tied", "pointer"])
@pytest.mark.parametrize("optimizer", ["rmsprop"])
def test_every_option_learns(option, optimizer):
    model, data = made(OPTIONS[option]), pairs(16)
    rows = fit(model, data, data, replace(CONFIG, epochs=4, optimizer=optimizer))
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"]
    assert rows[0]["examples_per_second"] > 0


def test_training_is_the_same_twice():
    found = []
    for _ in range(2):
        model = made(replace(SMALL, dropout=0.3))
        fit(model, pairs(), pairs(16, 1), CONFIG)
        found.append(weights_of(model))
    assert all((a == b).all() for a, b in zip(*found, strict=True))


def interrupt_after(run, batches):
    """A log that stops training, as Ctrl-C does, once a checkpoint holds so many batches of the second epoch."""

    class Stop(RunFolder):
        def save_checkpoint(self, name, write):
            path = super().save_checkpoint(name, write)
            progress = json.loads((path / "progress.json").read_text())
            if (progress["epoch"], progress["batch"]) == (1, batches) and not stopped.is_set():
                stopped.set()
                raise KeyboardInterrupt
            return path

    stopped = threading.Event()
    return Stop(run.path, run._lock)


@pytest.mark.parametrize("batches", [0, 2])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, batches):
    config, settings = replace(SMALL, dropout=0.3), replace(CONFIG, checkpoint_minutes=1e-9)
    whole = made(config)
    rows = fit(whole, pairs(), pairs(16, 1), settings)

    run = RunFolder.create(tmp_path / "run", {"a": 1}, seed=0)
    model = made(config)
    with pytest.raises(KeyboardInterrupt):
        fit(model, pairs(), pairs(16, 1), settings, run=interrupt_after(run, batches))
    run.close()

    again = RunFolder.resume(tmp_path / "run")
    other = made(config, seed=99)  # whatever it begins with is replaced
    rest = fit(other, pairs(), pairs(16, 1), settings, run=again, resume=True)
    assert all((a == b).all() for a, b in zip(weights_of(whole), weights_of(other), strict=True))
    assert rest[-1]["valid_loss"] == rows[-1]["valid_loss"] and rest[-1]["loss"] == pytest.approx(rows[-1]["loss"])
    assert [row["step"] for row in again.metrics()] == [1, 2, 3]
    again.close()


def test_training_stops_early_and_keeps_the_best_weights():
    model = made(replace(SMALL, units=16))
    # Validation pairs with other words as summaries: what is learned makes them worse.
    wrong = Encoded(pairs(16, 1).source_ext, pad([[VOCABULARY - 1, 6]] * 16), VOCABULARY)
    rows = fit(model, pairs(), wrong, replace(CONFIG, epochs=40, learning_rate=0.03))
    losses = [row["valid_loss"] for row in rows]
    assert len(losses) < 40 and np.argmin(losses) == len(losses) - 3
    assert Trainer(model, CONFIG).validate(wrong) == pytest.approx(min(losses), rel=1e-6)


def test_coverage_is_a_second_phase_from_the_best_weights(tmp_path):
    config = replace(CONFIG, epochs=2, coverage_epochs=1)
    plain, covered = made(OPTIONS["small"]), made(OPTIONS["coverage"])
    first = fit(plain, pairs(), pairs(16, 1), config)
    run = RunFolder.create(tmp_path / "run", {}, seed=0)
    rows = fit(covered, pairs(), pairs(16, 1), config, run=run)
    run.close()
    assert [r["valid_loss"] for r in rows[:2]] == pytest.approx([r["valid_loss"] for r in first], rel=1e-3)
    assert len(rows) == 3 and covered.covering and np.abs(covered.attention.w_coverage.numpy()).max() > 0
    assert Trainer(covered, config).validate(pairs(16, 1)) == pytest.approx(rows[-1]["valid_loss"], rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_run():
    model = made()
    model.attention.v.assign(np.full(8, np.nan))
    with pytest.raises(RunFailed, match="not a number"):
        fit(model, pairs(), pairs(8), CONFIG)


def test_masked_and_unmasked_losses_train_differently():
    found = []
    for mask in (True, False):
        model = made(TINY)
        fit(model, pairs(), pairs(8), replace(CONFIG, epochs=1, mask_loss=mask))
        found.append(weights_of(model))
    assert any((a != b).any() for a, b in zip(*found, strict=True))


def test_progress_is_told(tmp_path):
    said: list[str] = []
    fit(made(), pairs(8), pairs(8), replace(CONFIG, epochs=1), log=said.append)
    assert len(said) == 1 and said[0].startswith("epoch 1: loss ") and "examples/s" in said[0]
    assert math.isfinite(float(said[0].split()[3].rstrip(",")))
    assert not list(Path(tmp_path).iterdir())
