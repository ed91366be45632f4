"""The training loop: cross-entropy over one clicked article and K that were not, AdamW, a checkpoint at every epoch."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import ceil, cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils.data import DataLoader

from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import sha256_file
from latentlab_shared.metrics.ranking import ranking_metrics
from latentlab_shared.runs import RunFolder
from nrms.config import NrmsConfig, TrainConfig
from nrms.data.log import ClickLog, open_log
from nrms.data.mind import BEHAVIORS_FILE, NEWS_FILE, read_news
from nrms.data.rows import BadRows
from nrms.data.types import Batch
from nrms.data.vectors import load_words, model_folder, tokenizer_of
from nrms.data.vocabulary import Vocabulary, load_vocabulary
from nrms.model.device import own_device
from nrms.model.folder import save_model
from nrms.model.nrms import NRMS
from nrms.model.scoring import score_log
from nrms.training.card import write_card
from nrms.training.checkpoint import Progress, random_state, read_checkpoint, write_checkpoint
from nrms.training.dataset import MindDataset, mind_collate_fn
from nrms.training.processes import Processes, join

__all__ = ["MindDataset", "TrainResult", "mind_collate_fn", "train"]

Log = Callable[[str], None]
_DIVERGED = "Start again with a lower train.learning_rate"


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run: its folder; ``checkpoints/best`` holds the model.
        best: best value of the monitored metric, None without a dev part.
        best_epoch: when it was, from 1.
        epochs: that were trained.
        updates: of the weights.
    """

    run: Path
    best: float | None
    best_epoch: int
    epochs: int
    updates: int


def train(
    data: Path,
    output: Path,
    config: NrmsConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    limit: int | None = None,
    skip_bad: bool = False,
    cache: Path | None = None,
    track: Sequence[str] = (),
    log: Log = lambda _: None,
    stop_after: int | None = None,
) -> TrainResult:
    """Train a model, or go on with a run; alone or, under `torchrun`, as one of several processes.

    Args:
        data: folder with ``train`` and perhaps ``dev``, each with ``news.tsv`` and ``behaviors.tsv``.
        output: the run folder.
        config: sizes and rates; when resuming those of the run are used, and a config that differs is refused.
        resume: go on after the last checkpoint.
        overwrite: throw an earlier run in this folder away.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        limit: train on at most so many impressions.
        skip_bad: count malformed rows instead of stopping at the first.
        cache: folder for the data as arrays; read again by later runs.
        track: ``"tensorboard"`` and/or ``"wandb"``.
        log: told what happens, a line at a time.
        stop_after: end after so many updates, with a checkpoint, as Ctrl-C does.

    Raises:
        UserError: for bad data, options, or a folder in use.
        RunFailed: if the loss is no longer a number.
        KeyboardInterrupt: on Ctrl-C or a termination signal, after a checkpoint was written.

    Source: the seed's `trainer.py`; Wu et al. 2019.
    """
    place = own_device(device)
    processes = join(place)
    try:
        say = log if processes.first else _silent
        settings = {"limit": limit, "skip_bad": skip_bad}
        run: RunFolder | None
        if resume:
            run = RunFolder.resume(output, track=track) if processes.first else RunFolder.read(output)
            held = run.config
            known = NrmsConfig.from_dict({k: held[k] for k in ("model", "train")}, output / "config.json")
            _refuse_other_data(run, data, held, settings)
            if config is not None and (other := _differing(known, config)):
                fix = "Resume without them, or start a new run in another folder"
                raise UserError(f"the run was started with other values of {', '.join(other[:5])}", output, fix)
            config = known
        else:
            config = config or NrmsConfig()
            if processes.first:
                RunFolder.ensure_free(output, overwrite=overwrite)
            run = None
        trainer = _Trainer(output, config, processes, place, say)
        try:
            trainer.prepare(data, run, limit, skip_bad, cache)
            if run is None:  # all that is read is good: now a folder may be made, or an earlier run thrown away
                if processes.first:
                    run = RunFolder.create(
                        output,
                        {**config.to_dict(), "data": {**settings, "folder": str(data.resolve())}},
                        seed=config.train.seed,
                        data=_data_hashes(data),
                        overwrite=overwrite,
                        track=track,
                    )
                processes.share(None)
                run = run or RunFolder.read(output)
            return trainer.fit(run, stop_after)
        finally:
            if run is not None:
                run.close()
    finally:
        processes.leave()


def _silent(_: str) -> None:
    """Processes other than the first say nothing."""


def _data_hashes(data: Path) -> dict[str, str]:
    files = [data / part / name for part in ("train", "dev") for name in (NEWS_FILE, BEHAVIORS_FILE)]
    return {path.relative_to(data).as_posix(): sha256_file(path) for path in files if path.is_file()}


def _refuse_other_data(run: RunFolder, data: Path, held: dict[str, Any], settings: dict[str, Any]) -> None:
    from latentlab_shared.files import read_json

    known = read_json(run.path / "environment.json")["data"]
    fix = "Resume with the same --data, or start a new run"
    if known != _data_hashes(data):
        raise UserError("this is not the data the run was started with", data, fix)
    if {key: held.get("data", {}).get(key) for key in settings} != settings:
        raise UserError("the run was started with another --limit or --skip-bad", run.path, fix)


def _differing(a: NrmsConfig, b: NrmsConfig) -> list[str]:
    flat = [
        {f"{group}.{k}": v for group in ("model", "train") for k, v in asdict(getattr(c, group)).items()}
        for c in (a, b)
    ]
    # The width of pretrained vectors is theirs, whatever was asked for.
    return sorted(k for k in flat[0] if flat[0][k] != flat[1][k] and k != "model.word_dim")


class _Trainer:
    """One run: its data, its network and its loop."""

    run: RunFolder

    def __init__(self, output: Path, config: NrmsConfig, processes: Processes, device: torch.device, say: Log) -> None:
        self.output, self.config, self.processes, self.device, self.say = output, config, processes, device, say
        self.progress = Progress()
        self.stopping = False
        self._seconds = 0.0  # of the updates since the last line of metrics

    # -- before the first update -----------------------------------------------------------------------------------

    def prepare(
        self, data: Path, resumed: RunFolder | None, limit: int | None, skip_bad: bool, cache: Path | None
    ) -> None:
        """Read the data, build the network or load that of a resumed run; a new run's folder is not touched."""
        train_config = self.config.train
        torch.manual_seed(train_config.seed)
        last = resumed.checkpoint("last") if resumed is not None else None
        if last is not None:
            self.vocabulary, self.model = load_vocabulary(last), _network_of(last)
        else:
            self.vocabulary, self.model = self._new_network(data / "train", skip_bad)
            if train_config.start == "mean":
                self.model.start_as_mean()
        self.model.to(self.device)
        self.train_log = self._open(data / "train", skip_bad, cache, limit)
        has_dev = (data / "dev" / BEHAVIORS_FILE).is_file()
        self.dev_log = self._open(data / "dev", skip_bad, cache, None) if has_dev else None
        if self.dev_log is not None:
            self.dev_log.known_labels()
            if len(self.dev_log) and self.dev_log.times.max() < self.train_log.times.min():
                fix = "Are train and dev swapped?"
                raise UserError("all of the dev part is earlier than the train part", data, fix)
            self.dev_log = self.dev_log.thinned(train_config.validate)
        self.dataset = MindDataset(self.train_log, train_config.negatives, train_config.seed, train_config.balance)
        self.total_updates = train_config.epochs * ceil(len(self.dataset) / train_config.batch_size)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=train_config.learning_rate, weight_decay=train_config.weight_decay, fused=True
        )
        if last is not None:
            self.progress = read_checkpoint(last, self.model, self.optimizer, self.processes, self.device)
        else:
            # Dropout differs between processes, weights do not.
            torch.manual_seed(train_config.seed + self.processes.rank)
        if resumed is not None and self.processes.first:
            resumed.rewind(self.progress.updates)
        self._describe()

    def _new_network(self, part: Path, skip_bad: bool) -> tuple[Vocabulary, NRMS]:
        model, train_config = self.config.model, self.config.train
        news_file = part / NEWS_FILE
        if not part.is_dir():
            what = "there is no train part" if part.parent.is_dir() else "there is no such folder"
            raise UserError(what, part if part.parent.is_dir() else part.parent, "Make one with: nrms prepare")
        if model.encoder == "transformer":
            from nrms.model.transformer import TransformerNewsEncoder, load_backbone

            folder = model_folder(train_config.vectors or "minilm")
            vocabulary = tokenizer_of(folder, special=True)
            encoder = TransformerNewsEncoder(load_backbone(str(folder)), model.dim, model.freeze, model.dropout)
            return vocabulary, NRMS(model, len(vocabulary), news_encoder=encoder)
        news = read_news(news_file, BadRows(skip=skip_bad))
        words = load_words(train_config.vectors, news, train_config.min_count, train_config.seed)
        self.say(_counts("vocabulary", words.notes))
        vectors = None if words.vectors is None else torch.from_numpy(words.vectors)
        if vectors is not None:
            model = replace(model, word_dim=vectors.shape[1])
        try:
            return words.vocabulary, NRMS(model, len(words.vocabulary), vectors)
        except (MemoryError, RuntimeError) as error:
            fix = "Choose smaller model.heads, model.head_dim, model.word_dim or model.query_dim"
            raise UserError("a network of these sizes cannot be made here", "model", fix) from error

    def _open(self, part: Path, skip_bad: bool, cache: Path | None, limit: int | None) -> ClickLog:
        bad = BadRows(skip=skip_bad)
        log = open_log(part, self.vocabulary, self.model.config, cache=cache, bad=bad, limit=limit)
        counts = {"articles": len(log.articles) - 1, "impressions": len(log), "users": len(log.users)}
        self.say(_counts(part.name, {**counts, **log.notes}))
        return log

    def _describe(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        self.say(
            f"{len(self.dataset)} clicks to learn from ({self.dataset.left_out} left out), {parameters} parameters, "
            f"{self.device}, {self.processes.size} process(es), seed {self.config.train.seed}, {self.output}"
        )
        if self.progress.updates:
            self.say(f"going on after update {self.progress.updates} of {self.total_updates}")

    # -- the loop --------------------------------------------------------------------------------------------------

    def fit(self, run: RunFolder, stop_after: int | None) -> TrainResult:
        """Train until the last epoch, the end of patience, or an interruption."""
        self.run, config, progress = run, self.config.train, self.progress
        started = progress.updates
        with self._interruptible():
            while progress.epoch < config.epochs and not self._is_over():
                for indices, parts in self._batches():
                    self._update(indices, parts)
                    if self.stopping or (stop_after is not None and progress.updates - started >= stop_after):
                        self._save()
                        raise KeyboardInterrupt(f"go on with nrms train --resume {self.run.path}")
                    if config.save_every and progress.updates % config.save_every == 0:
                        self._save()
                self._finish_epoch()
        if self.processes.first:
            if self.run.checkpoint("best") is None:
                self._save_best()
            lines = [row for row in self.run.metrics() if "dev_auc" in row and row["epoch"] == progress.best_epoch]
            write_card(self.run, self.config, self.train_log, len(self.dataset), lines[-1] if lines else None)
        return TrainResult(self.run.path, progress.best, progress.best_epoch, progress.epoch, progress.updates)

    def _is_over(self) -> bool:
        return bool(self.config.train.patience) and self.progress.since_best >= self.config.train.patience

    def _batches(self) -> Iterator[tuple[int, list[Batch]]]:
        """What is left of the epoch: the size of each update's batch, and this process's parts of it."""
        config, processes = self.config.train, self.processes
        epoch = self.progress.epoch
        self.dataset.set_epoch(epoch)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(self.dataset))
        mine: list[NDArray[np.int64]] = []
        plan: list[tuple[int, int]] = []  # size of the batch, number of own parts
        for at in range(self.progress.position, len(order), config.batch_size):
            batch = order[at : at + config.batch_size]
            parts = np.array_split(batch, processes.size * config.accumulate)
            own = [p for p in parts[processes.rank * config.accumulate :][: config.accumulate] if len(p)]
            mine.extend(own)
            plan.append((len(batch), len(own)))
        loader: Any = DataLoader(
            self.dataset,
            batch_sampler=mine,  # type: ignore[arg-type]
            collate_fn=mind_collate_fn,
            num_workers=config.workers,
            generator=torch.Generator(),  # its own, so that reading draws nothing from the network's
        )
        batches = iter(loader) if mine else iter(())
        for size, own_count in plan:
            yield size, [next(batches) for _ in range(own_count)]

    def _update(self, size: int, parts: list[Batch]) -> None:
        """One step of the optimizer on a batch of ``size`` clicks over all processes."""
        config, progress = self.config.train, self.progress
        self.model.train()
        begun = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.tensor([0.0, 0.0, 0.0, float(self.stopping)], dtype=torch.float64)
        for part in parts:
            batch = part.to(self.device)
            with self._precision():
                scores = self.model(batch)
            assert batch.target is not None and batch.weight is not None
            loss = F.cross_entropy(scores.float(), batch.target, reduction="none") @ batch.weight
            (loss / size).backward()  # type: ignore[no-untyped-call]
            sums[:3] += torch.stack([loss.detach(), *_ranks(scores.detach().float())]).cpu()
        gradients = []
        for parameter in self.optimizer.param_groups[0]["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self.processes.sum(gradients)
        if self.processes.size > 1:
            sums = sums.to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
            self.processes.sum([sums])
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], config.clip)
        rate = learning_rate(config, progress.updates, self.total_updates)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        values = sums.tolist()
        if not np.isfinite(values[0]):
            raise RunFailed(
                "the loss is not a number any more", f"update {progress.updates + 1}",
                _DIVERGED,
            )  # fmt: skip
        progress.loss += values[0]
        progress.reciprocal_rank += values[1]
        progress.auc += values[2]
        self.stopping = self.stopping or values[3] > 0  # all processes stop after the same update
        progress.clicks += size
        progress.updates += 1
        progress.position += size
        self._seconds += time.perf_counter() - begun
        if progress.updates % config.log_every == 0:
            self._log_line(rate)

    def _log_line(self, rate: float) -> None:
        progress, n = self.progress, self.progress.clicks
        values = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss / n,
            "train_mrr": progress.reciprocal_rank / n,
            "train_auc": progress.auc / n,
            "learning_rate": rate,
        }
        speed = n / max(self._seconds, 1e-9)
        left = (self.total_updates - progress.updates) * self.config.train.batch_size / speed
        if self.processes.first:
            self.run.log(progress.updates, **values)
        self.say(
            f"epoch {progress.epoch + 1}, update {progress.updates}/{self.total_updates}: loss {values['loss']:.4f}, "
            f"MRR {values['train_mrr']:.3f}, AUC {values['train_auc']:.3f}, {speed:.0f} clicks/s, "
            f"{left / 60:.1f} min left"
        )
        progress.start_line()
        self._seconds = 0.0

    def _finish_epoch(self) -> None:
        """Validate, keep the best, write the checkpoint."""
        progress, config = self.progress, self.config.train
        progress.epoch += 1
        progress.position = 0
        values = self.processes.share(self._validate() if self.processes.first else None)
        improved = False
        if values:
            value = values[config.monitor]
            improved = progress.best is None or value > progress.best
            progress.since_best = 0 if improved else progress.since_best + 1
            if improved:
                progress.best, progress.best_epoch = value, progress.epoch
            if self.processes.first:
                self.run.log(progress.updates, epoch=progress.epoch, **{f"dev_{k}": v for k, v in values.items()})
            shown = ", ".join(f"{name} {values[name]:.4f}" for name in ("auc", "mrr", "ndcg@5", "ndcg@10"))
            self.say(f"epoch {progress.epoch}: dev {shown}; {values['skipped']} impressions of one class skipped")
        else:
            progress.best_epoch = progress.epoch
        if self.processes.first and (improved or not values):
            self._save_best()
        self._save()
        if self._is_over():
            self.say(f"no better {config.monitor} for {config.patience} epochs: the end")

    def _validate(self) -> dict[str, float] | None:
        if self.dev_log is None:
            return None
        scores = score_log(self.model, self.dev_log)
        if not np.isfinite(scores).all():
            raise RunFailed("the model gives scores that are not numbers", "dev", _DIVERGED)
        result = ranking_metrics(scores, self.dev_log.known_labels(), self.dev_log.candidates.lengths)
        means = result.means()
        return {name: means[name] for name in ("auc", "mrr", "ndcg@5", "ndcg@10")} | {"skipped": result.skipped}

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        states = self.processes.gather(random_state(self.device).to(self.device))
        if self.processes.first:
            self.run.save_checkpoint("last", lambda folder: write_checkpoint(
                folder, self.model, self.vocabulary, self.optimizer, self.progress, states
            ))  # fmt: skip

    def _save_best(self) -> None:
        def write(folder: Path) -> None:
            save_model(folder, self.model, self.vocabulary)

        self.run.save_checkpoint("best", write)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop after the update in hand; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            self.stopping = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _precision(self) -> Any:
        wanted = self.config.train.precision
        if wanted == "auto":
            wanted = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        return torch.autocast(self.device.type, torch.bfloat16) if wanted == "bf16" else nullcontext()


def _network_of(folder: Path) -> NRMS:
    from nrms.model.folder import load_model_dir

    return load_model_dir(folder).model


def _ranks(scores: torch.Tensor) -> list[torch.Tensor]:
    """Sums over clicks of 1/rank and of the share of negatives below, for candidate 0 of (B, C); a tie is one half."""
    clicked, others = scores[:, :1], scores[:, 1:]
    there = others > -torch.inf
    above = ((others > clicked) & there).sum(1) + ((others == clicked) & there).sum(1) / 2
    return [(1 / (1 + above)).sum(), (1 - above / there.sum(1).clamp(min=1)).sum()]


def learning_rate(config: TrainConfig, update: int, total: int) -> float:
    """The rate of an update, from 0: a linear rise over the warm-up, then the schedule down to 0."""
    rise = ceil(config.warmup * total)
    if update < rise:
        return config.learning_rate * (update + 1) / rise
    done = (update - rise) / max(1, total - rise)
    fall = {"linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2, "constant": 1.0}[config.schedule]
    return config.learning_rate * fall


def _counts(name: str, counts: dict[str, int]) -> str:
    return f"{name}: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
