"""From a composed configuration to the settings of a run; every fault is one line that names its key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlab_shared.config import from_dict
from latentlab_shared.errors import UserError
from refrag.training.settings import RunSettings

_CONF = "configuration"


def run_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``RunSettings`` for the apps ``alignment`` and ``train``.

    Args:
        config: composed and resolved.

    Raises:
        UserError: for a value that cannot be used.
    """
    app, trainer, model = config["app"], config["trainer"], config["model"]
    training = {key: value for key, value in (app.get("training") or {}).items() if value is not None}
    merged = {**trainer, **training}
    loop = {k: v for k, v in merged.items() if k not in ("epochs", "steps_per_epoch", "training_model")}
    steps = config["train"]["steps"]
    steps = merged["epochs"] * merged["steps_per_epoch"] if steps is None else steps
    engine = config["engine"]["name"]
    loop |= {"steps": steps, "seed": config["seed"], "engine": "ddp" if engine == "single" else engine}
    values = {
        "stage": app.get("stage", "alignment"),
        "data": dataset_path(config),
        "model": app.get("from_model", ""),
        "encoder": app.get("model_name") or model["encoder"],
        "decoder": model["decoder"],
        "compression": model["compression"],
        "training_model": trainer["training_model"],
        "loop": loop,
    }
    if app["name"] == "alignment":
        values |= {"weights": app["weights"], "max_tokens": app["max_tokens"]}
    return values


def make_settings(config: Mapping[str, Any]) -> RunSettings:
    """``RunSettings`` of a configuration, checked."""
    return from_dict(RunSettings, run_settings(config), _CONF)


def dataset_path(config: Mapping[str, Any]) -> str:
    """What ``data`` of a run is: ``sample``, or a file that is there.

    ``app.dataset`` is a name of the group ``dataset`` or ``{path: FILE}``; without it the group's own choice is taken.

    Raises:
        UserError: for a name that is unknown or a file that is not there.
    """
    chosen = config["app"].get("dataset")
    if chosen is None:
        chosen = config["dataset"]
    if isinstance(chosen, str):
        chosen = _named(chosen)
    path = chosen.get("path")
    if path is None:
        return "sample"
    if not Path(path).is_file():
        fix = "Make it: refrag prepare --source FOLDER" if "refrag/corpus" in str(path) else "Give a file of texts"
        raise UserError("there is no such file", path, fix)
    return str(path)


def _named(name: str) -> dict[str, Any]:
    from importlib.resources import files

    from omegaconf import OmegaConf

    home = files("refrag.conf") / "dataset"
    names = sorted(entry.name.removesuffix(".yaml") for entry in home.iterdir() if entry.name.endswith(".yaml"))
    if name not in names:
        raise UserError(
            f"{name!r} is no dataset", "app.dataset", f"Use one of: {', '.join(names)}, or +app.dataset.path"
        )
    held: Any = OmegaConf.to_container(OmegaConf.create((home / f"{name}.yaml").read_text(encoding="utf-8")))
    return dict(held)
