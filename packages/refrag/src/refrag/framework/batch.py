"""Requests to AWS Batch, each made by one pure function, and the one call that sends them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from latentlab_shared.errors import NeedsExtra, RunFailed
from latentlab_shared.files import to_json
from refrag.framework.overlay import Overlay, upload

OVERLAY = "REFRAG_OVERLAY"  # variables of the container, that hold an overlay's address
RESULTS = "REFRAG_RESULTS"  # and where the run's folder is copied
_ENTRY = ("-m", "refrag.framework.run")
_PLACE = "/tmp/overlay"  # in the container
# The main node is not told its own address: it is the one to be met.
_MEET = (
    "--nnodes $AWS_BATCH_JOB_NUM_NODES --node_rank $AWS_BATCH_JOB_NODE_INDEX "
    "--master_addr ${AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:-$(hostname -i)} --master_port ${MASTER_PORT:-29500}"
)
_FETCH = (
    f'python -m refrag.framework.overlay "${OVERLAY}" {_PLACE} && '
    f"export PYTHONPATH={_PLACE}/packages/refrag/src:{_PLACE}/shared/src && "
)

_KEEP = f'python -m refrag.framework.results runs "${RESULTS}"'


def batch_request(env: Mapping[str, Any], overrides: Sequence[str], overlay: str | None = None) -> dict[str, Any]:
    """The request of ``batch.submit_job``: a container, or a multi-node parallel job whose nodes meet in torchrun.

    Args:
        env: the group ``env``'s choice ``awsbatch``.
        overrides: of the run, as it is in the container.
        overlay: address of the files that are laid over those of the image.
    """
    results = env.get("results")
    command = node_command(env["nnodes"], env["nproc_per_node"], overrides, bool(overlay), bool(results))
    container: dict[str, Any] = {"command": command}
    given = [{"name": name, "value": value} for name, value in ((OVERLAY, overlay), (RESULTS, results)) if value]
    if given:
        container["environment"] = given
    target: dict[str, Any] = {"containerOverrides": container}
    if env["nnodes"] > 1:
        nodes = {"targetNodes": "0:", "containerOverrides": container}
        target = {"nodeOverrides": {"numNodes": env["nnodes"], "nodePropertyOverrides": [nodes]}}
    names = {"jobName": env["job_name"], "jobQueue": env["job_queue"], "jobDefinition": env["job_definition"]}
    return {**names, **target}


def node_command(
    nodes: int, processes: int, overrides: Sequence[str], overlay: bool = False, results: bool = False
) -> list[str]:
    """What each node runs: torchrun alone, or in a shell where variables have to be read or work comes before or after.

    Args:
        nodes: of the job.
        processes: of each node.
        overrides: of the configuration.
        overlay: whether files are laid over those of the image first.
        results: whether the run's folder is copied at the end, however it ended.
    """
    if nodes == 1 and not overlay and not results:
        return ["torchrun", "--standalone", "--nproc_per_node", str(processes), *_ENTRY, *overrides]
    where = "--standalone" if nodes == 1 else _MEET
    start = f'torchrun {where} --nproc_per_node {processes} {" ".join(_ENTRY)} "$@"'
    line = f"{start}; code=$?; {_KEEP}; exit $code" if results else f"exec {start}"
    return ["bash", "-c", (_FETCH if overlay else "") + line, "refrag", *overrides]


def job_definition(
    name: str, image: str, nodes: int, vcpus: int, memory_mib: int, gpus: int, secret_arn: str | None
) -> dict[str, Any]:
    """The request of ``batch.register_job_definition`` for an image; a secret is named by its ARN, never by value.

    Args:
        name: of the definition.
        image: of the container.
        nodes: more than one make a multi-node parallel definition, which wants on-demand instances.
        vcpus: of a node.
        memory_mib: of a node.
        gpus: of a node.
        secret_arn: of HF_TOKEN in Secrets Manager.
    """
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


def submit(
    request: Mapping[str, Any], overlay: Overlay | None = None, definition: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Send the overlay (if S3 has it not), the job definition (if one is given) and the job; prints the job's id.

    Raises:
        NeedsExtra: if boto3 is not installed.
        RunFailed: if AWS refuses, with its reason.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise NeedsExtra("boto3", "aws", "latentlab-refrag") from None
    try:
        if overlay is not None:
            upload(overlay, boto3.client("s3"))
        batch = boto3.client("batch")
        if definition is not None:
            batch.register_job_definition(**definition)
        reply = batch.submit_job(**request)
    except (BotoCoreError, ClientError) as error:
        raise RunFailed(str(error), "AWS") from None
    found = {"jobId": reply["jobId"], "jobName": reply["jobName"]}
    sys.stdout.write(to_json(found) + "\n")
    return found
