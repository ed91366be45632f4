"""The training loop: updates in a fixed order, checkpoints, and a resume that ends where no stop would have ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clara_absa.configs.base_config import ClaraConfig, TrainConfig
from clara_absa.training.objectives import Objective
from clara_absa.training.processes import like, whole
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import atomic_path

Log = Callable[[int, dict[str, float]], None]
_FILE = Path("checkpoints") / "last.safetensors"


def updates_of(units: int, config: TrainConfig) -> int:
    """Updates of a whole training on so many units."""
    return math.ceil(units / config.batch_size) * config.epochs


def learning_rate_share(update: int, updates: int, warmup: float) -> float:
    """Share of the highest learning rate: a linear rise, then a cosine to a tenth of it."""
    rise = max(1, round(warmup * updates))
    if update < rise:
        return (update + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (update - rise) / max(1, updates - rise)))


def make_optimiser(model: nn.Module, schedule: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trainable; vectors and scales do not decay, a light encoder has a rate of its own."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *schedule.named_parameters()]:
        if parameter.requires_grad:
            key = (name.startswith("reader.encoder."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise UserError("nothing in this model is trainable", "lora.rank", "Give an adapter: --set lora.rank=16")
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "initial_lr": config.encoder_learning_rate if is_encoder else config.learning_rate,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (is_encoder, decays), parameters in groups.items()
        ],
        betas=(0.9, 0.95),
        lr=config.learning_rate,
    )


class Checkpoint:
    """Everything that decides the rest of a run, in one safetensors file.

    Args:
        modules: named; their trainable parameters are kept.
        optimiser: over these.
        config: saved, and compared at loading.

    Attributes:
        update: updates done.
        sums: what has been summed up for the log of the running epoch.
    """

    def __init__(self, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, config: ClaraConfig) -> None:
        self._modules, self._optimiser, self._config = modules, optimiser, config
        self.update = 0
        self.sums: dict[str, float] = {}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, module in self._modules.items():
            for key, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield f"{name}/{key}", parameter

    def save(self, run: Path, write: bool = True) -> None:
        """Write ``checkpoints/last.safetensors`` below a run folder, whole or not at all.

        Args:
            run: the folder.
            write: False for a process that only gives its part of a shared-out model.
        """
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {"rng/cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        tensors |= dict(self._parameters())
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{key}": value for key, value in state.items()}
        tensors = {key: whole(value.detach()).cpu().contiguous().clone() for key, value in tensors.items()}
        if not write:
            return
        plain = {"update": self.update, "sums": self.sums, "config": self._config.to_dict()}
        with atomic_path(run / _FILE) as temporary:
            save_file(tensors, temporary, metadata={"run": json.dumps(plain)})

    def load(self, run: Path) -> None:
        """Read what ``save`` wrote; without a checkpoint the run begins at the beginning.

        Raises:
            UserError: if the file is damaged or of another configuration.
        """
        from safetensors import SafetensorError, safe_open

        path = run / _FILE
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                plain: dict[str, Any] = json.loads((file.metadata() or {})["run"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError("the checkpoint is damaged", path, "Delete it to train from the start") from error
        if plain["config"] != json.loads(json.dumps(self._config.to_dict())):
            raise UserError("the checkpoint is of other settings", path, "Resume without changing them")
        missing = [name for name, _ in self._parameters() if name not in tensors]
        if missing:
            raise UserError(f"the checkpoint lacks {missing[0]}", path, "Delete it to train from the start")
        with torch.no_grad():
            for name, parameter in self._parameters():
                parameter.copy_(like(tensors[name], parameter))
        held = self._optimiser.state_dict()
        order = [p for group in self._optimiser.param_groups for p in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, index, name = key.split("/")
                owner = order[int(index)]
                states.setdefault(int(index), {})[name] = like(value, owner) if value.ndim else value
        self._optimiser.load_state_dict({**held, "state": states})
        torch.set_rng_state(tensors["rng/cpu"])
        if "rng/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng/cuda"])
        self.update, self.sums = int(plain["update"]), dict(plain["sums"])


def fit(
    model: nn.Module,
    schedule: nn.Module,
    objective: Objective,
    config: ClaraConfig,
    *,
    run: Path | None = None,
    resume: bool = False,
    log: Log = lambda epoch, values: None,
    after_epoch: Callable[[int], dict[str, float]] = lambda epoch: {},
    advance: Callable[[float], None] = lambda _: None,
    is_main: bool = True,
    device: str = "cpu",
) -> nn.Module:
    """Train a model in place.

    Args:
        model: with the parameters to train; the objective may hold a data-parallel wrapper of it.
        schedule: of the losses; its parameters, if any, are trained too.
        objective: the losses.
        config: of the run.
        run: folder for checkpoints; None for none.
        resume: go on from the checkpoint in ``run``.
        log: told the mean losses of every epoch, from 1.
        after_epoch: gives more to log, such as a validation score; the model is in evaluation mode meanwhile.
        advance: told of every update; at the start, of those that a resumed run has behind it.
        is_main: whether this process writes.
        device: type of device, for autocast.

    Returns:
        The model, in evaluation mode.
    """
    settings = config.train
    per_epoch = math.ceil(objective.units / settings.batch_size)
    updates = updates_of(objective.units, settings)
    optimiser = make_optimiser(model, schedule, settings)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    torch.manual_seed(settings.seed)  # of dropout; building a model leaves the generator as it was
    state = Checkpoint({"model": model, "schedule": schedule}, optimiser, config)
    saves = run is not None and (is_main or hasattr(parameters[0], "full_tensor"))  # a shared-out model: all give
    if run is not None and resume:
        state.load(run)
        advance(state.update)
    model.train()
    for epoch in range(state.update // per_epoch, settings.epochs):
        order = objective.order(epoch)
        for number in range(state.update - epoch * per_epoch, per_epoch):
            units = order[number * settings.batch_size : (number + 1) * settings.batch_size].tolist()
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate_share(state.update, updates, settings.warmup)
            optimiser.zero_grad(set_to_none=True)
            with _autocast(settings.precision, device):
                for loss, values in objective.parts(units, state.update, state.update / updates):
                    loss.backward()  # type: ignore[no-untyped-call]
                    for name, value in values.items():
                        state.sums[name] = state.sums.get(name, 0.0) + value / per_epoch
            norm = whole(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
            if not torch.isfinite(norm):
                raise RunFailed(
                    f"the gradient is not finite at update {state.update}", "train.learning_rate", "Lower it"
                )
            optimiser.step()
            state.update += 1
            advance(1)
            if run is not None and saves and state.update % settings.checkpoint_every == 0:
                state.save(run, is_main)
        if not all(torch.isfinite(whole(p.detach().sum())) for p in parameters):  # the last step went too far
            raise RunFailed(f"the weights are not finite after epoch {epoch + 1}", "train.learning_rate", "Lower it")
        model.eval()
        found = {**state.sums, **after_epoch(epoch + 1)}
        if is_main:
            log(epoch + 1, found)
        state.sums = {}
        model.train()
        if run is not None and saves:
            state.save(run, is_main)
    return model.eval()


def _autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16)
