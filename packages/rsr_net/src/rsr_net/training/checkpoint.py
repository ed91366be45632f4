"""The state of a training run in one file: safetensors, with the plain values as JSON in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path
from rsr_net.config import RsrConfig
from rsr_net.model.refiner import Refiner
from rsr_net.tensor_files import write_tensors

_FILE = Path("checkpoints") / "last" / "state.safetensors"


class Checkpoint:
    """Everything that decides the rest of a run: three sets of weights, the optimiser, both random generators.

    Args:
        model: the weights being trained.
        averaged: their running mean.
        best: the running mean of the best epoch.
        optimiser: over the model's parameters.
        rng: numpy's generator of the loop; torch's is the global one.
        config: saved, and compared at loading.

    Attributes:
        epoch: epochs done.
        updates: updates done.
        best_score: of the best epoch, on validation.
        best_epoch: 0 while no epoch beat the start.
    """

    def __init__(
        self,
        model: Refiner,
        averaged: Refiner,
        best: Refiner,
        optimiser: torch.optim.Optimizer,
        rng: np.random.Generator,
        config: RsrConfig,
    ) -> None:
        self._models = {"model": model, "averaged": averaged, "best": best}
        self._optimiser, self._rng, self._config = optimiser, rng, config
        self.epoch = self.updates = self.best_epoch = 0
        self.best_score = float("-inf")

    def save(self, run: Path) -> None:
        """Write ``checkpoints/last/state.safetensors`` below a run folder, whole or not at all."""
        tensors: dict[str, Tensor] = {"torch_rng": torch.get_rng_state()}
        for name, model in self._models.items():
            tensors |= {f"{name}/{key}": value.contiguous() for key, value in model.state_dict().items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{key}": value for key, value in state.items()}
        tensors = {key: value.detach().cpu() for key, value in tensors.items()}
        plain = {
            "epoch": self.epoch,
            "updates": self.updates,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "numpy_rng": self._rng.bit_generator.state,
            "config": self._config.to_dict(),
        }
        text = json.dumps(plain)
        with atomic_path(run / _FILE) as temporary:
            write_tensors(temporary, tensors, {"run": text, "sha256": _checksum(text, tensors)})

    def load(self, run: Path) -> None:
        """Read what ``save`` wrote; without a checkpoint the run begins at the beginning.

        Raises:
            UserError: if the file is damaged or of another configuration.
        """
        path = run / _FILE
        if not path.exists():
            return
        plain, tensors = _read(path, self._config)
        for name, model in self._models.items():
            own = {key.removeprefix(f"{name}/"): v for key, v in tensors.items() if key.startswith(f"{name}/")}
            model.load_state_dict(own)
        known = self._optimiser.state_dict()
        known["state"] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, index, name = key.split("/")
                known["state"].setdefault(int(index), {})[name] = value
        self._optimiser.load_state_dict(known)
        torch.set_rng_state(tensors["torch_rng"])
        self._rng.bit_generator.state = plain["numpy_rng"]
        self.epoch, self.updates = plain["epoch"], plain["updates"]
        self.best_score, self.best_epoch = plain["best_score"], plain["best_epoch"]


def check_checkpoint(run: Path, config: RsrConfig) -> None:
    """Refuse a run folder whose checkpoint cannot be gone on from; one without a checkpoint is fine.

    Raises:
        UserError: if the checkpoint is damaged or of another configuration.
    """
    if (run / _FILE).exists():
        _read(run / _FILE, config)


def _read(path: Path, config: RsrConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plain values and the tensors of a checkpoint, whole as they were saved."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            held = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        if held["sha256"] != _checksum(held["run"], tensors):
            raise ValueError("its checksum is wrong")
        plain: dict[str, Any] = json.loads(held["run"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"the checkpoint is damaged ({error})", path, "Start the run again") from None
    if RsrConfig.from_dict(plain["config"]) != config:
        raise UserError("the checkpoint is of another configuration", path, "Use the settings it began with")
    return plain, tensors


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of everything in the file: a damaged number could not be told from a trained one."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()
