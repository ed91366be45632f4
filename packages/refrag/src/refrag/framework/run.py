"""The entry of ``run.py`` and ``refrag run``: Hydra composes a configuration, ``launch`` runs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from itertools import product
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
    from refrag.framework.launch import check_job, launch
    from refrag.framework.schemas import check_keys, register_schemas

    refuse_secrets(arguments)
    forget_marker()
    register_schemas()

    def job(config: Any, overrides: Sequence[str], folder: str) -> tuple[dict[str, Any], list[str], Path]:
        check_keys(config)
        values: Any = OmegaConf.to_container(config, resolve=True)
        check_job(values)
        named = [f"app={values['app']['name']}"] if config_name != "config" else []
        return values, [*named, *overrides], Path(folder).absolute() / "run"

    def checked(config: Any) -> None:
        held = HydraConfig.get()
        launch(*job(config, held.overrides.task, held.runtime.output_dir))

    def run(config: Any) -> None:
        codes.append(guarded(lambda: checked(config)))

    try:  # a mistake is found before Hydra makes a folder, and what is only printed needs none
        jobs = [job(*composed) for composed in _composed(config_name, arguments)]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_line(error), "configuration") from None
    if jobs and all(values["env"]["dry_run"] for values, *_ in jobs):
        for given in jobs:
            launch(*given)
        return

    quiet = QUIET if any(map(_NEXT_NODE.match, arguments)) else ()  # the first node keeps the files of a run
    sys.argv = [sys.argv[0], *arguments, *quiet]
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, in place of printing and leaving
    main: Any = hydra.main(version_base="1.3", config_path="pkg://refrag.conf", config_name=config_name)
    try:
        main(run)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_line(error), "configuration") from None
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _composed(config_name: str, arguments: Sequence[str]) -> list[tuple[Any, list[str], str]]:
    """Configuration, overrides and folder of every job of a command line; nothing is written.

    There are none where an option asks Hydra for something else, such as ``--help``.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import open_dict

    options = {word for word in arguments if word.startswith("-")}
    if options - {"-m", "--multirun"}:
        return []
    found = []
    with initialize_config_module("refrag.conf", version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        ways = [
            [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
            if options and item.is_discrete_sweep()
            else [str(item.input_line)]
            for item in parser.parse_overrides([word for word in arguments if word not in options])
        ]
        for number, overrides in enumerate(product(*ways)):
            numbered = [f"hydra.job.num={number}"] if options else []
            config = compose(config_name, [*overrides, *numbered], return_hydra_config=True)
            held = config.hydra
            folder = str(Path(held.sweep.dir, held.sweep.subdir) if options else held.run.dir)
            task = list(held.overrides.task)
            with open_dict(config):
                del config["hydra"]
            found.append((config, task, folder))
    return found


def _line(error: Exception) -> str:
    """Hydra's message without what repeats it."""
    told = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    lines = [line.strip() for text in told for line in text.partition("Config search path")[0].splitlines()]
    kept = dict.fromkeys(
        line for line in lines if line and not line.startswith("object_type=") and "_schema" not in line
    )
    return " ".join(kept).rstrip(".")[:400]


def check_overrides(overrides: Sequence[str]) -> None:
    """Find the mistakes of a run that another machine will compose; its files are not looked for.

    Raises:
        UserError: as a run with these overrides would.
        NeedsExtra: without Hydra.
    """
    try:
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        raise NeedsExtra("hydra-core", "launch", "latentlab-refrag") from None
    from refrag.framework.launch import check_job
    from refrag.framework.schemas import check_keys, register_schemas

    register_schemas()
    try:
        for config, *_ in _composed("config", [*overrides, "env.dry_run=true"]):
            check_keys(config)
            values: Any = OmegaConf.to_container(config, resolve=True)
            check_job(values)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_line(error), "configuration") from None


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
