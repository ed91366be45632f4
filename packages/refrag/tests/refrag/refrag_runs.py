"""Configurations as Hydra composes them, and runs of the package's scripts."""

import subprocess
import sys
from pathlib import Path

from refrag.framework.schemas import check_keys, register_schemas

HOME = Path(__file__).parents[2]


def composed(line, name="config", plain=True):
    """The configuration of a command line."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    register_schemas()
    with initialize_config_module("refrag.conf", version_base="1.3"):
        config = compose(name, [word.replace('"', "") for word in line.split()])
    check_keys(config)
    return OmegaConf.to_container(config, resolve=True) if plain else config


def started(script, *overrides, cwd, code=0):
    """Run a script of the package; its output, or its errors if it should fail."""
    given = [*script] if isinstance(script, tuple) else [HOME / script]
    done = subprocess.run([sys.executable, *given, *overrides], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr
