"""What a run needs to go on as if nothing had happened: weights, optimizer, random numbers, position."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlab_shared.errors import RunFailed
from latentlab_shared.files import read_json, write_json
from nrms.data.vocabulary import Vocabulary
from nrms.model.folder import WEIGHTS_FILE, save_model
from nrms.model.nrms import NRMS
from nrms.training.processes import Processes

_STATE_FILE, _PROGRESS_FILE = "training.safetensors", "progress.json"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: passes that are complete.
        position: clicks of the next pass that are done.
        updates: of the weights, in all.
        best: best value of the monitored metric, None before the first.
        best_epoch: when it was.
        since_best: epochs since.
        loss: summed over the clicks since the last line of metrics.
        reciprocal_rank: likewise, of the clicked article among 1 + K.
        auc: likewise, the share of negatives ranked below it.
        clicks: how many they are.
    """

    epoch: int = 0
    position: int = 0
    updates: int = 0
    best: float | None = None
    best_epoch: int = 0
    since_best: int = 0
    loss: float = 0.0
    reciprocal_rank: float = 0.0
    auc: float = 0.0
    clicks: int = 0

    def start_line(self) -> None:
        """Begin a new line of metrics."""
        self.loss = self.reciprocal_rank = self.auc = 0.0
        self.clicks = 0


def random_state(device: torch.device) -> Tensor:
    """The state of torch's generators, as bytes."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set what `random_state` gave."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)


def write_checkpoint(
    folder: Path,
    model: NRMS,
    vocabulary: Vocabulary,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    random_states: list[Tensor],
) -> None:
    """Write a model folder that a run can also go on from."""
    from safetensors.torch import save_file

    save_model(folder, model, vocabulary)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"rng.{rank}": state.cpu() for rank, state in enumerate(random_states)}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{key}:{names[id(parameter)]}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, folder / _STATE_FILE)
    write_json(folder / _PROGRESS_FILE, asdict(progress))


def read_checkpoint(
    folder: Path, model: NRMS, optimizer: torch.optim.Optimizer, processes: Processes, device: torch.device
) -> Progress:
    """Set weights, optimizer and random numbers; returns where the run is.

    Raises:
        RunFailed: if the checkpoint is of another model or another version.
    """
    from safetensors.torch import load_file

    weights, tensors = load_file(folder / WEIGHTS_FILE), load_file(folder / _STATE_FILE)
    try:
        model.load_state_dict(weights)
        parameters = dict(model.named_parameters())
        for name, value in tensors.items():
            key, _, owner = name.partition(":")
            if owner:
                # Counters stay on the CPU, moments go where the weights are.
                place = parameters[owner].device if value.ndim else torch.device("cpu")
                optimizer.state[parameters[owner]][key] = value.to(place)
        values: dict[str, Any] = read_json(folder / _PROGRESS_FILE)
        progress = Progress(**{f.name: values[f.name] for f in fields(Progress)})
    except (KeyError, RuntimeError, TypeError) as error:
        raise RunFailed(f"the checkpoint does not fit this run ({error})", folder, "Start a new run") from None
    state = tensors.get(f"rng.{processes.rank}")
    if state is not None:  # with another number of processes only dropout differs
        set_random_state(state, device)
    return progress
