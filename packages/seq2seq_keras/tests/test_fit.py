"""The training loop: it learns, stops, resumes to the same numbers, and begins coverage at the best weights."""

import json
import threading
from dataclasses import replace

import keras
import numpy as np
import pytest
from tiny import OPTIONS, SMALL, VOCABULARY

from latentlab_shared.errors import RunFailed
from latentlab_shared.runs import RunFolder
from seq2seq_keras.config import TrainConfig
from seq2seq_keras.data.encode import Encoded, pad
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.training import Trainer, fit

CONFIG = TrainConfig(batch_size=8, epochs=3, learning_rate=0.01, optimizer="adam", checkpoint_minutes=0)
OFTEN, DROPPING = replace(CONFIG, checkpoint_minutes=1e-9), replace(SMALL, dropout=0.3)


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
    trainer, batch = Trainer(model, CONFIG), data.batch(np.arange(8))
    before = trainer.validate(data)
    for _ in range(200):
        trainer.train_step(*batch)
    assert before > 2 and trainer.validate(data) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_learns(option):
    model, data = made(OPTIONS[option]), pairs(16)
    rows = fit(model, data, data, replace(CONFIG, epochs=4, coverage_epochs=0, optimizer="rmsprop"))
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"]
    assert rows[0]["examples_per_second"] > 0


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


@pytest.fixture(scope="module")
def uninterrupted():
    model = made(DROPPING)
    return fit(model, pairs(), pairs(16, 1), OFTEN), weights_of(model)


@pytest.mark.parametrize("batches", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, batches, uninterrupted):
    config, settings = DROPPING, OFTEN
    run = RunFolder.create(tmp_path / "run", {"a": 1}, seed=0)
    model = made(config)
    with pytest.raises(KeyboardInterrupt):
        fit(model, pairs(), pairs(16, 1), settings, run=interrupt_after(run, batches))
    run.close()

    again = RunFolder.resume(tmp_path / "run")
    other = made(config, seed=99)  # whatever it begins with is replaced
    rest = fit(other, pairs(), pairs(16, 1), settings, run=again, resume=True)
    rows, weights = uninterrupted
    assert all((a == b).all() for a, b in zip(weights, weights_of(other), strict=True))
    assert rest[-1]["valid_loss"] == rows[-1]["valid_loss"] and rest[-1]["loss"] == pytest.approx(rows[-1]["loss"])
    assert [row["step"] for row in again.metrics()] == [1, 2, 3]
    again.close()


def test_a_finished_run_goes_on_for_more_epochs_to_the_same_weights(tmp_path, uninterrupted):
    with RunFolder.create(tmp_path / "run", {}, seed=0) as run:
        fit(made(DROPPING), pairs(), pairs(16, 1), replace(OFTEN, epochs=2), run=run)
    with RunFolder.resume(tmp_path / "run") as run:
        assert fit(made(DROPPING), pairs(), pairs(16, 1), replace(OFTEN, epochs=2), run=run, resume=True) == []
        model = made(DROPPING, seed=99)
        rest = fit(model, pairs(), pairs(16, 1), OFTEN, run=run, resume=True)
    assert len(rest) == 1 and all((a == b).all() for a, b in zip(uninterrupted[1], weights_of(model), strict=True))


def test_training_stops_early_and_keeps_the_best_weights():
    model = made(replace(SMALL, units=16))
    # Validation pairs with other words as summaries: what is learned makes them worse.
    wrong = Encoded(pairs(16, 1).source_ext, pad([[VOCABULARY - 1, 6]] * 16), VOCABULARY)
    said: list[str] = []
    rows = fit(model, pairs(), wrong, replace(CONFIG, epochs=40, learning_rate=0.03), log=said.append)
    losses = [row["valid_loss"] for row in rows]
    epochs = [line for line in said if "validation" in line]  # a slow machine tells of batches, too
    assert len(epochs) == len(rows) and epochs[0].startswith("epoch 1: loss ") and "examples/s" in epochs[0]
    assert len(losses) < 40 and np.argmin(losses) == len(losses) - 3
    assert Trainer(model, CONFIG).validate(wrong) == pytest.approx(min(losses), rel=1e-6)


def test_coverage_is_a_second_phase_from_the_best_weights(tmp_path):
    config = replace(CONFIG, epochs=2, coverage_epochs=1)
    covered = made(OPTIONS["coverage"])
    run = RunFolder.create(tmp_path / "run", {}, seed=0)
    rows = fit(covered, pairs(), pairs(16, 1), config, run=run)
    run.close()
    assert len(rows) == 3 and covered.covering and np.abs(covered.attention.w_coverage.numpy()).max() > 0
    assert Trainer(covered, config).validate(pairs(16, 1)) == pytest.approx(rows[-1]["valid_loss"], rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_run():
    model = made()
    model.attention.v.assign(np.full(8, np.nan))
    with pytest.raises(RunFailed, match="not a number"):
        fit(model, pairs(), pairs(8), CONFIG)
