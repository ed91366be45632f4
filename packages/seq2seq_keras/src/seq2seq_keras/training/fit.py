"""The training loop: early stopping with the best weights, checkpoints, and a resume that changes nothing."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from latentlab_shared.config import from_dict
from latentlab_shared.errors import RunFailed
from latentlab_shared.files import read_json, write_json
from latentlab_shared.runs import RunFolder
from seq2seq_keras.config import TrainConfig
from seq2seq_keras.data.encode import Encoded, batch_rows, dataset
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.model.weights import load_variables, named_weights, save_variables, to_array, training_variables
from seq2seq_keras.training.loss import batch_loss

Log = Callable[[str], None]


@dataclass
class Progress:
    """Where training stands: what a checkpoint holds besides the variables.

    Attributes:
        epoch: the current one, from 0.
        batch: batches of it that are done.
        loss: sum of its losses so far.
        tokens: target tokens they are over.
        best: the best validation loss.
        waited: epochs since.
        covering: the coverage phase has begun.
        phase_start: the first epoch of the phase.
        done: training has ended.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    tokens: float = 0.0
    best: float = math.inf
    waited: int = 0
    covering: bool = False
    phase_start: int = 0
    done: bool = False


@dataclass
class Trainer:
    """A model, its optimizer and their compiled steps.

    Attributes:
        model: trained in place.
        config: how.
        strategy: of ``tf.distribute`` for several workers; None for one.
        shard: this worker's index, and how many there are.
    """

    model: Seq2Seq
    config: TrainConfig
    strategy: Any = None
    shard: tuple[int, int] = (0, 1)
    optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        kind = keras.optimizers.RMSprop if self.config.optimizer == "rmsprop" else keras.optimizers.Adam
        with self.strategy.scope() if self.strategy else nullcontext():
            self.optimizer = kind(self.config.learning_rate)
            self.optimizer.build(self.model.trainable_variables)
        self._compile()

    def _compile(self) -> None:
        ids = [tf.TensorSpec((None, None), tf.int32)] * 4
        # No autograph: it reads the source files anew when a step is traced, which may be an epoch after the start.
        self.train_step = tf.function(self._train_step, input_signature=ids, autograph=False)
        self.valid_step = tf.function(self._valid_step, input_signature=ids, autograph=False)

    def begin_coverage(self) -> None:
        """From here on the attention sees what it has read; the steps are traced anew."""
        self.model.covering = True
        self._compile()

    def _sums(self, batch: tuple[Any, ...], training: bool) -> Any:
        source, source_ext, target_in, target_out = batch
        memory, state = self.model.encode(source, training)
        decoded = self.model.decode_teacher_forced(target_in, state, memory, training)
        mask = self.config.mask_loss or not training  # validation always counts words alone
        return batch_loss(decoded, target_out, source_ext, self.model.vocabulary_size, mask)

    def _train_step(self, source: Any, source_ext: Any, target_in: Any, target_out: Any) -> Any:
        batch = (source, source_ext, target_in, target_out)
        if self.strategy is None:
            return self._update(*batch)
        sums = self.strategy.run(self._update, args=batch)
        return tuple(self.strategy.reduce(tf.distribute.ReduceOp.SUM, part, axis=None) for part in sums)

    def _update(self, source: Any, source_ext: Any, target_in: Any, target_out: Any) -> Any:
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            sums = self._sums((source, source_ext, target_in, target_out), training=True)
            total = sums.nll + self.config.coverage_weight * sums.overlap
        # The coverage weight has no part in the first phase.
        gradients = tape.gradient(total, [w.value for w in weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(g) for g in gradients]  # an embedding's are sparse
        tokens, replicas = sums.tokens, 1
        if self.strategy is not None:  # the gradient of the whole batch, whatever its shares' sizes
            context = tf.distribute.get_replica_context()
            *gradients, tokens = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, tokens])
            replicas = self.strategy.num_replicas_in_sync
        gradients = [g / tf.maximum(tokens, 1.0) for g in gradients]
        if self.config.clip:
            gradients, _ = tf.clip_by_global_norm(gradients, self.config.clip)
        self.optimizer.apply([g / replicas for g in gradients], weights)  # Keras sums over the replicas once more
        return sums.nll, sums.tokens

    def _valid_step(self, source: Any, source_ext: Any, target_in: Any, target_out: Any) -> Any:
        sums = self._sums((source, source_ext, target_in, target_out), training=False)
        return sums.nll, sums.tokens

    def validate(self, encoded: Encoded) -> float:
        """Mean loss per word of all pairs, (0 … ∞)."""
        rows = [np.arange(i, min(i + 256, len(encoded))) for i in range(0, len(encoded), 256)]
        sums = np.sum([[float(part) for part in self.valid_step(*batch)] for batch in dataset(encoded, rows)], axis=0)
        return float(sums[0] / sums[1])


def fit(
    model: Seq2Seq,
    train: Encoded,
    valid: Encoded,
    config: TrainConfig,
    *,
    run: RunFolder | None = None,
    resume: bool = False,
    log: Log = lambda _: None,
    strategy: Any = None,
    shard: tuple[int, int] = (0, 1),
) -> list[dict[str, float]]:
    """Train a model in place; it ends with the weights of the best epoch, of an interrupted run too.

    Args:
        model: newly made, under ``strategy.scope()`` if there is one.
        train: pairs to learn from.
        valid: pairs that choose the epoch.
        config: how.
        run: gets metrics and checkpoints; of several workers' runs the first one's alone is written to.
        resume: go on at the run's last checkpoint; the end is the same as without the break.
        log: told the loss, speed and remaining time now and then.
        strategy: of ``tf.distribute``; None for one worker.
        shard: this worker's index, and how many there are.

    Returns:
        One row per finished epoch of this call: losses, examples per second.

    Raises:
        RunFailed: if the loss is no longer a number.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    trainer, progress, rows = Trainer(model, config, strategy, shard), Progress(), []
    best = _values(model)
    if resume and run is not None:
        loaded = _restore(trainer, run)
        if loaded is not None:
            progress, best = loaded
    writer = run if shard[0] == 0 else None  # of several workers the first one writes
    with _interruptible() as stopping:
        try:
            while not progress.done:
                rows += _epoch(trainer, train, valid, config, progress, best, writer, log, stopping)
        finally:
            _assign(model, best)
    return rows


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, and training ends after the update in hand; a second Ctrl-C ends it at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(number: int, frame: Any) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _epoch(
    trainer: Trainer,
    train: Encoded,
    valid: Encoded,
    config: TrainConfig,
    progress: Progress,
    best: dict[str, NDArray[Any]],
    run: RunFolder | None,
    log: Log,
    stopping: threading.Event,
) -> list[dict[str, float]]:
    """The rest of one epoch, its validation, and what follows from it."""
    rows = batch_rows(train, config.batch_size, config.seed, progress.epoch)
    started, examples, saved, told = time.monotonic(), 0, time.monotonic(), time.monotonic()
    first, counted = started, 0  # when the first step had ended, which compiles, and what it had read
    since_start = progress.epoch - progress.phase_start
    trainer.optimizer.learning_rate = config.learning_rate / (1 + config.decay * since_start)
    for batch in dataset(train, rows[progress.batch :], shard=trainer.shard):
        nll, tokens = trainer.train_step(*batch)
        progress.loss, progress.tokens = progress.loss + float(nll), progress.tokens + float(tokens)
        examples += len(rows[progress.batch])
        progress.batch += 1
        if not math.isfinite(progress.loss):
            raise RunFailed("the loss is not a number", "train", "Lower train.learning_rate or set train.clip=2")
        now = time.monotonic()
        if not counted:
            first, counted = now, examples
        elif now - told > 20:
            told, rate = now, (examples - counted) / (now - first)
            mean = progress.loss / progress.tokens
            where = f"epoch {progress.epoch + 1}, batch {progress.batch}/{len(rows)}"
            log(f"{where}: loss {mean:.3f}, {rate:.0f} examples/s, {_left(progress, config, len(rows), rate)}")
        if run is not None and (stopping.is_set() or now - saved > 60 * config.checkpoint_minutes):
            _save(trainer, progress, best, run)
            saved = time.monotonic()
        if stopping.is_set():
            raise KeyboardInterrupt
    seconds = time.monotonic() - started
    row = {
        "loss": progress.loss / max(progress.tokens, 1.0),
        "valid_loss": trainer.validate(valid),
        "seconds": seconds,
        "examples_per_second": examples / max(seconds, 1e-9),
    }
    progress.epoch, progress.batch, progress.loss, progress.tokens = progress.epoch + 1, 0, 0.0, 0.0
    _judge(trainer, progress, row["valid_loss"], config, best)
    if run is not None:
        run.rewind(progress.epoch - 1)  # a kill between the figures and the checkpoint leaves an epoch that comes again
        run.log(progress.epoch, **row)
        _save(trainer, progress, best, run)
    losses = f"loss {row['loss']:.4f}, validation {row['valid_loss']:.4f}"
    log(f"epoch {progress.epoch}: {losses}, {row['examples_per_second']:.0f} examples/s")
    return [row]


def _left(progress: Progress, config: TrainConfig, batches: int, rate: float) -> str:
    """The time that is left, in words, at ``rate`` examples per second."""
    epochs = config.coverage_epochs if progress.covering else config.epochs
    epoch = (batches - progress.batch) * config.batch_size / rate / 60
    later = (progress.phase_start + epochs - progress.epoch - 1) * batches * config.batch_size / rate / 60
    return f"{epoch:.1f} min left of the epoch" + (f", {epoch + later:.0f} at most in all" if later > 0 else "")


def _judge(
    trainer: Trainer, progress: Progress, loss: float, config: TrainConfig, best: dict[str, NDArray[Any]]
) -> None:
    """Early stopping; the coverage phase begins where the first one ends."""
    if loss < progress.best:
        progress.best, progress.waited = loss, 0
        best.update(_values(trainer.model))
    else:
        progress.waited += 1
    if not _phase_is_over(progress, config):
        return
    if trainer.model.settings.coverage and not progress.covering and config.coverage_epochs:
        _assign(trainer.model, best)
        progress.covering, progress.phase_start = True, progress.epoch
        # The loss of this phase is another: its own best counts.
        progress.best, progress.waited = math.inf, 0
        trainer.begin_coverage()
    else:
        progress.done = True


def _phase_is_over(progress: Progress, config: TrainConfig) -> bool:
    epochs = config.coverage_epochs if progress.covering else config.epochs
    return progress.waited >= config.patience or progress.epoch - progress.phase_start >= epochs


def _values(model: Seq2Seq) -> dict[str, NDArray[Any]]:
    return {name: to_array(variable) for name, variable in named_weights(model).items()}


def _assign(model: Seq2Seq, values: dict[str, NDArray[Any]]) -> None:
    for name, variable in named_weights(model).items():
        variable.assign(values[name])


def _save(trainer: Trainer, progress: Progress, best: dict[str, NDArray[Any]], run: RunFolder) -> None:
    """Checkpoint ``last``: variables, the best weights so far, and the progress."""
    from safetensors.numpy import save_file

    def write(folder: Path) -> None:
        save_variables(training_variables(trainer.model, trainer.optimizer), folder / "training.safetensors")
        save_file(best, folder / "best.safetensors")
        write_json(folder / "progress.json", {**asdict(progress), "best": repr(progress.best)})

    run.save_checkpoint("last", write)


def _restore(trainer: Trainer, run: RunFolder) -> tuple[Progress, dict[str, NDArray[Any]]] | None:
    """The run's last checkpoint; None if it was stopped before its first."""
    from safetensors.numpy import load_file

    folder = run.checkpoint("last")
    if folder is None:
        return None
    held = read_json(folder / "progress.json")
    progress = from_dict(Progress, {**held, "best": float(held["best"])}, folder / "progress.json")
    progress.done &= _phase_is_over(progress, trainer.config)  # it may have been given more epochs
    if progress.covering:
        trainer.begin_coverage()
    load_variables(training_variables(trainer.model, trainer.optimizer), folder / "training.safetensors")
    return progress, load_file(folder / "best.safetensors")
