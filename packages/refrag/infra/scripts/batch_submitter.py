"""Submit a run to AWS Batch: ``--image … --queue … --overrides "app=train model=gemma_1b train.steps=1000"``."""

import argparse
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from refrag.framework.launch import batch_request, job_definition  # noqa: E402  (after the path)


def main() -> int:
    """Register the image's job definition and submit the job, unless ``--dry-run``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="Of the container.")
    parser.add_argument("--queue", required=True, help="Job queue.")
    parser.add_argument("--overrides", default="", help="Of the configuration, as for run.py.")
    parser.add_argument("--name", default="refrag", help="Of the job and its definition.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="Of each node.")
    parser.add_argument("--vcpus", type=int, default=4, help="Of each node.")
    parser.add_argument("--memory", type=int, default=16_384, help="MiB of each node.")
    parser.add_argument("--gpus", type=int, default=0, help="Of each node.")
    parser.add_argument("--secret-arn", help="Of HF_TOKEN in Secrets Manager, for gated models.")
    parser.add_argument("--dry-run", action="store_true", help="Print both requests.")
    given = parser.parse_args()
    env = {"job_name": given.name, "job_queue": given.queue, "job_definition": given.name}
    env |= {"nnodes": given.nodes, "nproc_per_node": given.processes}
    request = batch_request(env, [*shlex.split(given.overrides), "env=local", "driver=inline"])
    definition = job_definition(
        given.name, given.image, given.nodes, given.vcpus, given.memory, given.gpus, given.secret_arn
    )
    if given.dry_run:
        sys.stdout.write(json.dumps({"register": definition, "submit": request}, indent=2) + "\n")
        return 0
    try:
        import boto3
    except ImportError:
        sys.stderr.write('error: boto3 is not installed. Install it: pip install "latentlab-refrag[aws]"\n')
        return 2
    batch = boto3.client("batch")
    batch.register_job_definition(**definition)
    sys.stdout.write(json.dumps({"jobId": batch.submit_job(**request)["jobId"]}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
