"""The entry of ``run.py``: Hydra composes a configuration, ``launch`` runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from latentlab_shared.cli import guarded


def main(config_name: str = "config") -> None:
    """Run what the command line says: ``app=alignment env=torchrun trainer.epochs=2``."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from refrag.framework.launch import launch

    codes: list[int] = []

    def run(config: Any) -> None:
        held = HydraConfig.get()
        values: Any = OmegaConf.to_container(config, resolve=True)
        folder = Path(held.runtime.output_dir)
        overrides = list(held.overrides.task)
        if config_name != "config":
            overrides.insert(0, f"app={values['app']['name']}")
        codes.append(guarded(lambda: _ignore(launch(values, overrides, folder / "run"))))

    composed: Any = hydra.main(version_base="1.3", config_path="pkg://refrag.conf", config_name=config_name)
    composed(run)()
    sys.exit(max(codes, default=0))


def _ignore(result: object) -> None:
    """What an app returns is for those who call it; a command has printed what it had to say."""


if __name__ == "__main__":
    main()
