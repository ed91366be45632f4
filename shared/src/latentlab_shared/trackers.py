"""Trackers: where metrics go besides the run folder."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlab_shared.errors import NeedsExtra, UserError
from latentlab_shared.files import plain


class Tracker:
    """Receives what ``RunFolder.log`` writes; the base class ignores it."""

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Take the values of one step."""

    def close(self) -> None:
        """Flush and leave."""


class _TensorBoard(Tracker):
    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise NeedsExtra("tensorboard", "tracking") from error
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        numbers = [(k, float(v)) for k, v in values.items() if isinstance(v, (int, float))]
        summary = self._summary(value=[self._summary.Value(tag=k, simple_value=v) for k, v in numbers])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()


class _Wandb(Tracker):
    def __init__(self, folder: Path, config: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise NeedsExtra("wandb", "tracking") from error
        folder.mkdir(parents=True, exist_ok=True)
        # Without a key the run is kept in the folder, to be uploaded later with `wandb sync`.
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(
            project="latent-text-lab", name=folder.name, dir=str(folder), config=plain(config), mode=mode
        )

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def check_tracker(name: str) -> None:
    """See that there is such a tracker, before anything is written for it.

    Raises:
        UserError: if there is none.
        NeedsExtra: if its library is not installed.
    """
    if name not in ("tensorboard", "wandb"):
        raise UserError(f"unknown tracker {name!r}", "--track", "Choose tensorboard or wandb")
    if importlib.util.find_spec(name) is None:
        raise NeedsExtra(name, "tracking")


def make_tracker(name: str, folder: Path, config: Any) -> Tracker:
    """``"tensorboard"`` or ``"wandb"`` (offline unless WANDB_API_KEY is set)."""
    if name == "tensorboard":
        return _TensorBoard(folder)
    if name == "wandb":
        return _Wandb(folder, config)
    raise UserError(f"unknown tracker {name!r}", "--track", "Choose tensorboard or wandb")
