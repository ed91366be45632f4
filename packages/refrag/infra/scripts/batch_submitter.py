"""Submit a run to AWS Batch: ``--image … --queue … --overrides "app=train model=gemma_1b train.steps=1000"``."""

import argparse
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from latentlab_shared.cli import guarded  # noqa: E402
from refrag.framework.batch import batch_request, job_definition, submit  # noqa: E402  (after the path)
from refrag.framework.overlay import make_overlay  # noqa: E402
from refrag.framework.run import check_overrides, refuse_secrets  # noqa: E402


def main() -> None:
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
    parser.add_argument("--overlay", metavar="BUCKET", help="Lay this checkout's tracked files over the image's.")
    parser.add_argument("--results", metavar="S3_ADDRESS", help="Where the run's folder is copied when it ends.")
    parser.add_argument("--dry-run", action="store_true", help="Print both requests.")
    given = parser.parse_args()
    overrides = shlex.split(given.overrides)
    refuse_secrets(overrides)
    env = {"job_name": given.name, "job_queue": given.queue, "job_definition": given.name}
    env |= {"nnodes": given.nodes, "nproc_per_node": given.processes, "results": given.results}
    there = [*overrides, "env=local", "driver=inline"]
    check_overrides(there)
    overlay = make_overlay(given.overlay) if given.overlay else None
    request = batch_request(env, there, overlay.address if overlay else None)
    definition = job_definition(
        given.name, given.image, given.nodes, given.vcpus, given.memory, given.gpus, given.secret_arn
    )
    if given.dry_run:
        sys.stdout.write(json.dumps({"register": definition, "submit": request}, indent=2) + "\n")
    else:
        submit(request, overlay, definition)


if __name__ == "__main__":
    sys.exit(guarded(main))
