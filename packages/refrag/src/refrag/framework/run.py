"""The entry of ``run.py`` and ``refrag run``: Hydra composes a configuration, ``launch`` runs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.cli import guarded
from latentlab_shared.errors import NeedsExtra, UserError
from refrag.model.hub import MARKER

QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none")  # Hydra writes no files
_SECRET = re.compile(r"[+~]*(?:[\w.]*[._])?(?:token|secret|password|api_?key)=.", re.IGNORECASE)
_NEXT_NODE = re.compile(r"\+*env\.node_rank=['\"]?[1-9]")


def main(config_name: str = "config", arguments: Sequence[str] | None = None) -> None:
    """Run what the command line says: ``app=alignment env=torchrun trainer.epochs=2``; leaves with an exit code.

    Args:
        config_name: the primary configuration in ``conf/``.
        arguments: in place of the command line's.
    """
    codes: list[int] = []
    failed = guarded(lambda: _main(config_name, list(sys.argv[1:] if arguments is None else arguments), codes))
    sys.exit(max([failed, *codes]))


def _main(config_name: str, arguments: list[str], codes: list[int]) -> None:
    try:
        import hydra
        from hydra.core.hydra_config import HydraConfig
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        raise NeedsExtra("hydra-core", "launch", "latentlab-refrag") from None
    from refrag.framework.launch import launch
    from refrag.framework.schemas import check_keys, register_schemas

    refuse_secrets(arguments)
    forget_marker()
    register_schemas()

    def checked(config: Any) -> None:
        held = HydraConfig.get()
        check_keys(config)
        values: Any = OmegaConf.to_container(config, resolve=True)
        overrides = list(held.overrides.task)
        if config_name != "config":
            overrides.insert(0, f"app={values['app']['name']}")
        launch(values, overrides, Path(held.runtime.output_dir) / "run")

    def run(config: Any) -> None:
        codes.append(guarded(lambda: checked(config)))

    quiet = QUIET if any(map(_NEXT_NODE.match, arguments)) else ()  # the first node keeps the files of a run
    sys.argv = [sys.argv[0], *arguments, *quiet]
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, in place of printing and leaving
    composed: Any = hydra.main(version_base="1.3", config_path="pkg://refrag.conf", config_name=config_name)
    try:
        composed(run)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_line(error), "configuration") from None
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _line(error: Exception) -> str:
    """Hydra's message without what repeats it."""
    told = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    lines = [line.strip() for text in told for line in text.partition("Config search path")[0].splitlines()]
    kept = dict.fromkeys(
        line for line in lines if line and not line.startswith("object_type=") and "_schema" not in line
    )
    return " ".join(kept).rstrip(".")[:400]


def refuse_secrets(arguments: Sequence[str]) -> None:
    """Secrets have no place in a command line, which every user of the machine can read and Hydra keeps in a file.

    Raises:
        UserError: naming the key, never the value.
    """
    for argument in arguments:
        if _SECRET.match(argument):
            key = argument.partition("=")[0].lstrip("+~")
            raise UserError("a secret is no part of a configuration", key, "Set the environment variable HF_TOKEN")


def forget_marker() -> None:
    """Take the seed's stand-in for a token out of the environment, so that no library sends it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name) == MARKER:
            del os.environ[name]


if __name__ == "__main__":
    main()
