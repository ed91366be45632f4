"""A checkout's files over those of an image: the tracked files, in an archive that is named by its content.

``python -m refrag.framework.overlay s3://BUCKET/KEY FOLDER`` unpacks one inside of a container.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab_shared.cli import guarded
from latentlab_shared.errors import NeedsExtra, RunFailed, UserError

_PARTS = ("packages/refrag", "shared")  # of the repository: what a run needs


@dataclass(frozen=True)
class Overlay:
    """An archive of files.

    Attributes:
        bucket: where it goes.
        key: its name there, with the hash of its content.
        content: the bytes, a gzipped tar.
    """

    bucket: str
    key: str
    content: bytes

    @property
    def address(self) -> str:
        """Such as ``s3://bucket/refrag/overlays/HASH.tar.gz``."""
        return f"s3://{self.bucket}/{self.key}"


def make_overlay(bucket: str, root: Path | None = None, parts: tuple[str, ...] = _PARTS) -> Overlay:
    """Pack the files that git tracks, as they are in the working tree: untracked ones, secrets say, stay here.

    Args:
        bucket: for the archive.
        root: of the repository; this package's by default.
        parts: folders to take.

    Raises:
        UserError: if this is no git checkout.
    """
    home = root or Path(__file__).parents[5]
    listed = subprocess.run(["git", "ls-files", "-z", "--", *parts], cwd=home, capture_output=True, text=True)
    names = sorted(name for name in listed.stdout.split("\0") if name)
    if listed.returncode or not names:
        raise UserError("no files that git tracks", home, "Run from a checkout, or leave env.overlay out")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            path = home / name
            if not path.is_symlink() and not path.is_file():  # removed, but still tracked
                continue
            entry = archive.gettarinfo(str(path), name)
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            if entry.isreg():
                archive.addfile(entry, io.BytesIO(path.read_bytes()))
            else:
                archive.addfile(entry)
    content = gzip.compress(packed.getvalue(), mtime=0)
    return Overlay(bucket, f"refrag/overlays/{hashlib.sha256(content).hexdigest()}.tar.gz", content)


def upload(overlay: Overlay, s3: Any) -> bool:
    """Put an overlay into its bucket, unless it is there; says whether it was sent."""
    found = s3.list_objects_v2(Bucket=overlay.bucket, Prefix=overlay.key, MaxKeys=1)
    if found.get("KeyCount"):
        return False
    s3.put_object(Bucket=overlay.bucket, Key=overlay.key, Body=overlay.content)
    return True


def unpack(content: bytes, key: str, folder: Path) -> None:
    """Write an overlay's files below a folder; nothing can leave it.

    Raises:
        RunFailed: if the content is not what its name says.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest not in key:
        raise RunFailed(f"the overlay is damaged (its hash is {digest[:12]})", key)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")


def main(address: str, folder: str) -> None:
    """Fetch and unpack an overlay."""
    try:
        import boto3
    except ImportError:
        raise NeedsExtra("boto3", "aws", "latentlab-refrag") from None
    bucket, _, key = address.removeprefix("s3://").partition("/")
    reply = boto3.client("s3").get_object(Bucket=bucket, Key=key)
    unpack(reply["Body"].read(), key, Path(folder))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:3])))
