"""What a run left, to a bucket: ``python -m refrag.framework.results FOLDER s3://BUCKET/PREFIX`` in a container."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from latentlab_shared.cli import guarded
from latentlab_shared.errors import NeedsExtra, UserError


def keep(folder: Path, address: str, s3: Any) -> int:
    """Copy every file below a folder to a bucket; how many there were.

    Args:
        folder: of runs; one that does not exist holds nothing.
        address: ``s3://BUCKET/PREFIX``.
        s3: boto3's client.

    Raises:
        UserError: if the address is none.
    """
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not prefix:
        raise UserError("no address of a bucket", address, "Such as s3://bucket/refrag/runs/name")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path in files:
        s3.upload_file(str(path), bucket, f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}")
    return len(files)


def main(folder: str, address: str) -> None:
    """Copy, and say how many files there were."""
    try:
        import boto3
    except ImportError:
        raise NeedsExtra("boto3", "aws", "latentlab-refrag") from None
    count = keep(Path(folder), address, boto3.client("s3"))
    sys.stderr.write(f"{count} files of {folder} kept at {address}\n")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:3])))
