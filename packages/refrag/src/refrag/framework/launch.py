"""Where a run runs: here, in several processes, in a container, or on AWS Batch.

Everything but ``local`` only makes a command line (or a request) of the same overrides with ``env=local``; one pure
function makes it, ``env.dry_run=true`` prints it. The folder is resolved once, here, and given to all processes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import to_json
from refrag.framework.apps import check_app, run_app
from refrag.framework.batch import batch_request, submit
from refrag.framework.overlay import make_overlay
from refrag.framework.run import QUIET

ENTRY = ("-m", "refrag.framework.run")
_LAUNCHERS = ("env=", "env.", "driver=", "driver.")
_HOME = "/app"  # in the container
_LEAST = {"nproc_per_node": 1, "nnodes": 1, "node_rank": 0, "master_port": 1}


def launch(config: Mapping[str, Any], overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a composed configuration where it says.

    Args:
        config: composed and resolved.
        overrides: it was composed with.
        folder: of the run, inside of Hydra's.

    Raises:
        UserError: for a place that is unknown.
        RunFailed: if a process of the run fails.
    """
    check_place(config)
    env, driver = config["env"], config["driver"]
    name = env["name"]
    if name == "awsbatch":
        overlay = make_overlay(env["overlay"]) if env["overlay"] else None
        request = batch_request(
            env, inner_overrides(overrides, elsewhere(folder)), overlay.address if overlay else None
        )
        if env["dry_run"]:
            print(to_json(request))  # noqa: T201  (what was asked for)
            return {"request": request}
        return submit(request, overlay)
    if name == "docker":
        return _run(docker_command(env, inner_overrides(overrides, elsewhere(folder))), env["dry_run"])
    if name == "torchrun" or driver["name"] == "torchrun" or env["nproc_per_node"] > 1:
        sizes = {**env, **driver} if driver["name"] == "torchrun" and name == "local" else env
        return _run(torchrun_command(sizes, inner_overrides(overrides, folder)), env["dry_run"])
    if env["dry_run"]:
        return _run([sys.executable, *ENTRY, *inner_overrides(overrides, folder)], True)
    return run_app(config, folder)


def check_place(config: Mapping[str, Any]) -> None:
    """Refuse a place that nothing can be started at.

    Raises:
        UserError: for one that is unknown, or counts that are none.
    """
    env, driver = config["env"], config["driver"]
    if env["name"] not in ("local", "torchrun", "docker", "awsbatch"):
        raise UserError(f"{env['name']!r} is no env", "env", "Use local, torchrun, docker or awsbatch")
    if driver["name"] not in ("inline", "torchrun"):
        raise UserError(f"{driver['name']!r} is no driver", "driver", "Use inline or torchrun")
    for where, sizes in (("env", env), ("driver", driver)):
        for key, least in _LEAST.items():
            if sizes.get(key, least) < least:
                raise UserError(f"must be at least {least}, not {sizes[key]}", f"{where}.{key}")
    if env["name"] == "torchrun":
        if env["rdzv_backend"] == "static" and not env["standalone"] and env["node_rank"] >= env["nnodes"]:
            raise UserError(f"{env['nnodes']} nodes have no rank {env['node_rank']}", "env.node_rank", "Begin at 0")
        torchrun_command(env, ())


def check_job(config: Mapping[str, Any]) -> None:
    """Find the mistakes of a composed configuration that need no data to be read.

    Raises:
        UserError: for a place, a setting, a file or a model that cannot be.
    """
    check_place(config)
    env = config["env"]
    if env["dry_run"] or env["name"] in ("docker", "awsbatch"):  # its files may be elsewhere, or not be yet
        config = {**config, "app": {**config["app"], "dataset": None, "from_model": ""}, "dataset": {"path": None}}
    check_app(config)


def inner_overrides(overrides: Sequence[str], folder: Path) -> list[str]:
    """The same run in one place: its overrides without those of the launcher, and its folder."""
    kept = [item for item in overrides if not item.lstrip("+~").startswith((*_LAUNCHERS, "hydra."))]
    # The process that starts the others has written Hydra's files.
    return [*kept, "env=local", "driver=inline", f"hydra.run.dir='{folder.parent}'", *QUIET]


def elsewhere(folder: Path) -> Path:
    """A run's folder as another machine knows it: below its working directory, which has the same ``runs``."""
    here = Path.cwd()
    absolute = here / folder
    return absolute.relative_to(here) if absolute.is_relative_to(here) else Path("runs", *absolute.parts[-3:])


def torchrun_command(sizes: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The command of ``torchrun``, on one machine or several."""
    where = ["--standalone"]
    if not sizes.get("standalone", True):
        where = ["--nnodes", str(sizes["nnodes"])]
        if sizes["rdzv_backend"] == "c10d":  # the nodes agree on their ranks
            meeting = f"{sizes['master_addr']}:{sizes['master_port']}"
            where += ["--rdzv_backend", "c10d", "--rdzv_endpoint", meeting, "--rdzv_id", str(sizes["rdzv_id"])]
        elif sizes["rdzv_backend"] == "static":
            where += ["--node_rank", str(sizes["node_rank"])]
            where += ["--master_addr", str(sizes["master_addr"]), "--master_port", str(sizes["master_port"])]
        else:
            raise UserError(f"{sizes['rdzv_backend']!r} is no rendezvous", "env.rdzv_backend", "Use static or c10d")
    count = str(sizes["nproc_per_node"])
    return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc_per_node", count, *ENTRY, *overrides]


def docker_command(env: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The command of ``docker``; secrets are passed by name, so no value is in it."""
    command = ["docker", "run", "--rm"]
    if env.get("gpus"):
        command += ["--gpus", str(env["gpus"])]
    for name in env["env_passthrough"]:
        command += ["-e", str(name)]
    for mount in env["mounts"]:
        command += ["-v", f"{Path(mount).resolve()}:{_HOME}/{Path(mount).name}"]
    process = ["python", *ENTRY]
    if env["nproc_per_node"] > 1:
        process = ["torchrun", "--standalone", "--nproc_per_node", str(env["nproc_per_node"]), *ENTRY]
    return [*command, "-w", _HOME, str(env["image"]), *process, *overrides]


def _run(command: list[str], dry_run: bool) -> dict[str, Any]:
    if dry_run:
        print(shlex.join(command))  # noqa: T201  (what was asked for)
        return {"command": command}
    sources = str(Path(__file__).parents[2])  # a checkout that is not installed
    paths = [sources, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed", "env", "Choose another env") from None
    if done.returncode:
        raise RunFailed(f"a process ended with code {done.returncode}", command[0])
    return {"command": command}
