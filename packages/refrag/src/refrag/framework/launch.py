"""Where a run runs: here, in several processes, in a container, or on AWS Batch.

Everything but ``local`` only makes a command line (or a request) of the same overrides with ``env=local``; one pure
function makes it, ``env.dry_run=true`` prints it. The folder is resolved once, here, and given to all processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.errors import NeedsExtra, RunFailed, UserError
from latentlab_shared.files import to_json
from refrag.framework.apps import run_app

_ENTRY = ("-m", "refrag.framework.run")
_LAUNCHERS = ("env=", "env.", "driver=", "driver.")


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
    env, driver = config["env"], config["driver"]
    name = env["name"]
    inner = inner_overrides(overrides, folder)
    if name == "awsbatch":
        request = batch_request(env, inner)
        if env["dry_run"]:
            print(to_json(request))  # noqa: T201  (what was asked for)
            return {"request": request}
        return _submit(request)
    if name == "docker":
        return _run(docker_command(env, inner), env["dry_run"])
    if name == "torchrun" or driver["name"] == "torchrun":
        sizes = env if name == "torchrun" else {**env, **driver}
        return _run(torchrun_command(sizes, inner), env["dry_run"])
    if name != "local":
        raise UserError(f"{name!r} is no env", "env", "Use local, torchrun, docker or awsbatch")
    return run_app(config, folder)


def inner_overrides(overrides: Sequence[str], folder: Path) -> list[str]:
    """The same run in one place: its overrides without those of the launcher, and its folder."""
    kept = [item for item in overrides if not item.lstrip("+~").startswith((*_LAUNCHERS, "hydra."))]
    quiet = ["hydra.output_subdir=null", "hydra/job_logging=none"]  # the first process has written these files
    return [*kept, "env=local", "driver=inline", f"hydra.run.dir='{folder.parent}'", *quiet]


def torchrun_command(sizes: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The command of ``torchrun``, on one machine or several."""
    where = ["--standalone"]
    if not sizes.get("standalone", True):
        where = ["--nnodes", str(sizes["nnodes"]), "--node_rank", str(sizes["node_rank"])]
        where += ["--master_addr", str(sizes["master_addr"]), "--master_port", str(sizes["master_port"])]
    count = str(sizes["nproc_per_node"])
    return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc_per_node", count, *_ENTRY, *overrides]


def docker_command(env: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The command of ``docker``; secrets are passed by name, so no value is in it."""
    command = ["docker", "run", "--rm"]
    for name in env["env_passthrough"]:
        command += ["-e", str(name)]
    for mount in env["mounts"]:
        command += ["-v", f"{Path(mount).resolve()}:/app/{mount}"]
    process = ["python", *_ENTRY]
    if env["nproc_per_node"] > 1:
        process = ["torchrun", "--standalone", "--nproc_per_node", str(env["nproc_per_node"]), *_ENTRY]
    return [*command, "-w", "/app", str(env["image"]), *process, *overrides]


def batch_request(env: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The request of ``batch.submit_job``: a container, or a multi-node parallel job whose nodes meet in torchrun."""
    node = ["torchrun", "--nproc_per_node", str(env["nproc_per_node"])]
    if env["nnodes"] == 1:
        command = [*node, "--standalone", *_ENTRY, *overrides]
        target: dict[str, Any] = {"containerOverrides": {"command": command}}
    else:
        # The main node is not told its own address: it is the one to be met.
        meet = (
            "exec torchrun --nnodes $AWS_BATCH_JOB_NUM_NODES --node_rank $AWS_BATCH_JOB_NODE_INDEX "
            f"--nproc_per_node {env['nproc_per_node']} "
            "--master_addr ${AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:-$(hostname -i)} --master_port 29500 "
            '-m refrag.framework.run "$@"'
        )
        command = ["bash", "-c", meet, "refrag", *overrides]
        nodes = {"targetNodes": "0:", "containerOverrides": {"command": command}}
        target = {"nodeOverrides": {"numNodes": env["nnodes"], "nodePropertyOverrides": [nodes]}}
    names = {"jobName": env["job_name"], "jobQueue": env["job_queue"], "jobDefinition": env["job_definition"]}
    return {**names, **target}


def job_definition(
    name: str, image: str, nodes: int, vcpus: int, memory_mib: int, gpus: int, secret_arn: str | None
) -> dict[str, Any]:
    """The request of ``batch.register_job_definition`` for an image; a secret is named by its ARN, never by value."""
    needs = [{"type": "VCPU", "value": str(vcpus)}, {"type": "MEMORY", "value": str(memory_mib)}]
    needs += [{"type": "GPU", "value": str(gpus)}] if gpus else []
    container: dict[str, Any] = {"image": image, "resourceRequirements": needs}
    if secret_arn:
        container["secrets"] = [{"name": "HF_TOKEN", "valueFrom": secret_arn}]
    if nodes == 1:
        return {"jobDefinitionName": name, "type": "container", "containerProperties": container}
    ranges = [{"targetNodes": "0:", "container": container}]
    properties = {"numNodes": nodes, "mainNode": 0, "nodeRangeProperties": ranges}
    return {"jobDefinitionName": name, "type": "multinode", "nodeProperties": properties}


def _run(command: list[str], dry_run: bool) -> dict[str, Any]:
    if dry_run:
        print(" ".join(command))  # noqa: T201  (what was asked for)
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


def _submit(request: dict[str, Any]) -> dict[str, Any]:
    try:
        import boto3
    except ImportError:
        raise NeedsExtra("boto3", "aws", "latentlab-refrag") from None
    reply = boto3.client("batch").submit_job(**request)
    print(to_json({"jobId": reply["jobId"]}))  # noqa: T201  (what was asked for)
    return {"jobId": reply["jobId"]}
