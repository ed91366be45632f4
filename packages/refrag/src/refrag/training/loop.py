"""The training loop of every stage: steps that depend on nothing but their number, so that a stop changes nothing."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentlab_shared.devices import choose_device
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import atomic_path
from refrag.training.settings import LoopSettings

Log = Callable[[int, dict[str, float]], None]
CHECKPOINT = Path("checkpoints") / "last.safetensors"


class Batches(Protocol):
    """What a stage trains on."""

    def batch(self, step: int, rank: int, world: int) -> Any:
        """This process's share of the examples of a step; the same whenever it is asked."""
        ...


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate at a step: a linear rise, then a cosine to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def run_steps(
    objective: nn.Module,
    batches: Batches,
    settings: LoopSettings,
    *,
    folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    log: Log = lambda step, values: None,
    advance: Callable[[float], None] = lambda steps: None,
    stop_after: int | None = None,
) -> nn.Module:
    """Train what is trainable in an objective, in place.

    One process or several: under a launcher Accelerate averages the gradients, which are those of one process if every
    process gets as many examples and the loss is a mean over examples.

    Args:
        objective: called with a batch, gives losses by name, among them ``loss``.
        batches: of each step.
        settings: how to step.
        folder: for ``checkpoints/``; None keeps none.
        resume: go on from the checkpoint in ``folder``; the result is that of a run without a stop.
        log: told the losses of every step, from 1.
        advance: told of every step.
        device: "auto" or a kind of device; under a launcher each process has its own.
        stop_after: leave after so many steps in all, as a kill would, but with a checkpoint.

    Returns:
        The objective, in evaluation mode.

    Raises:
        UserError: if nothing is trainable, or the checkpoint is of other settings or damaged.
        RunFailed: if a gradient is not finite.
        KeyboardInterrupt: on Ctrl-C, after the step in hand and a checkpoint.
    """
    if not any(p.requires_grad for p in objective.parameters()):
        raise UserError("nothing is trainable", "training_model", "Name parts to train: p, e, d")
    accelerator = Accelerator(cpu=choose_device(device) == "cpu")
    rank, world = accelerator.process_index, accelerator.num_processes
    if settings.batch_size % world:
        raise UserError(f"{settings.batch_size} examples cannot be shared by {world} processes", "batch_size")
    sharded = settings.engine == "fsdp2" and world > 1
    if sharded:
        _shard(objective.to(accelerator.device))
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    torch.manual_seed(settings.seed)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
    )
    wrapped, stepped = (objective, optimiser) if sharded else accelerator.prepare(objective, optimiser)
    step = _load(folder / CHECKPOINT, trained, optimiser, settings) if folder is not None and resume else 0
    wrapped.train()
    # Of several processes each is interrupted at a step of its own: their checkpoints are the regular ones.
    with _patient_interrupt(world == 1) as interrupted:
        while step < min(settings.steps, stop_after or settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_share(step, settings.steps, settings.warmup)
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.bf16):
                losses: dict[str, Tensor] = wrapped(batches.batch(step, rank, world))
            stepped.zero_grad(set_to_none=True)
            accelerator.backward(losses["loss"])
            norm = _whole(nn.utils.clip_grad_norm_(trained.values(), settings.clip))
            if not torch.isfinite(norm):
                raise RunFailed(f"the gradient is not finite at step {step + 1}", "learning_rate", "Lower it")
            stepped.step()
            step += 1
            found = {name: float(value.detach()) for name, value in losses.items()}
            leave = interrupted.is_set()
            ends = leave or step in (settings.steps, stop_after)
            held = None
            if folder is not None and (ends or step % settings.checkpoint_every == 0):
                held = _gathered(trained, optimiser)  # by all processes
            if accelerator.is_main_process:
                log(step, found)
                if folder is not None and held is not None:
                    _save(folder / CHECKPOINT, held, settings, step)
            advance(1)
            if leave:
                break
    if interrupted.is_set():
        raise KeyboardInterrupt
    return objective.eval()


@contextmanager
def _patient_interrupt(wanted: bool) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is ended and kept; a second one interrupts at once."""
    asked = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def steps_done(folder: Path) -> int:
    """The step of a run folder's checkpoint; 0 if there is none, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / CHECKPOINT, "pt") as file:
            return int((file.metadata() or {})["step"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return 0


def load_trained(folder: Path, objective: nn.Module) -> None:
    """Read the weights of a run folder's checkpoint into another copy of what was trained.

    Raises:
        UserError: if the checkpoint is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(folder / CHECKPOINT)
        with torch.no_grad():
            for name, parameter in objective.named_parameters():
                if f"weights/{name}" in found:
                    parameter.copy_(found[f"weights/{name}"])
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError("the checkpoint is damaged", folder / CHECKPOINT) from error


def _shard(objective: nn.Module) -> None:
    """Have every process keep a share of each layer, gathered when the layer is computed; the rest as one more."""
    from torch.distributed.fsdp import fully_shard

    for stack in [module for module in objective.modules() if isinstance(module, nn.ModuleList)]:
        for layer in stack:
            if any(True for _ in layer.parameters()):
                fully_shard(layer)
    fully_shard(objective)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes, in one piece; every process has to ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, spread as a parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def _gathered(trained: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that decides the rest of the run: weights, the optimiser's state, the random generator."""
    tensors = {"rng": torch.get_rng_state(), **{f"weights/{name}": _whole(p.detach()) for name, p in trained.items()}}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{key}": _whole(value) for key, value in state.items()}
    return tensors


def _save(path: Path, tensors: dict[str, Tensor], settings: LoopSettings, step: int) -> None:
    """Write what ``_gathered`` gave."""
    from safetensors.torch import save_file

    own = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(own, temporary, {"step": str(step), "settings": json.dumps(asdict(settings), sort_keys=True)})


def _load(
    path: Path, trained: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, settings: LoopSettings
) -> int:
    """Read what ``_save`` wrote, and return its step; without a checkpoint the run begins at the beginning."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            held = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        step, before = int(held["step"]), json.loads(held["settings"])
        if before != asdict(settings):
            differing = sorted(key for key, value in asdict(settings).items() if before.get(key) != value)
            raise UserError(f"the run began with another {', '.join(differing)}", path, "Resume without changing it")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(_like(tensors[f"weights/{name}"], parameter))
        ordered = [p for group in optimiser.param_groups for p in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, index, name = key.split("/")
                states.setdefault(int(index), {})[name] = _like(value, ordered[int(index)])
        optimiser.load_state_dict({**optimiser.state_dict(), "state": states})
        torch.set_rng_state(tensors["rng"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise UserError("the checkpoint is damaged", path, "Delete it to train from the start") from error
    return step
