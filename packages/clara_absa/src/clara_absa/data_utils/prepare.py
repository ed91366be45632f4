"""Data on disk: MAMS from its repository, or any known file as JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clara_absa.data_utils.readers import read_file, write_jsonl
from clara_absa.data_utils.splits import PARTS, Kind, digest, find_part, read_part
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import sha256_file

MAMS_URL = "https://raw.githubusercontent.com/siat-nlp/MAMS-for-ABSA/master/data/MAMS-{task}/raw/{part}.xml"
MAMS_SHA256 = {
    ("ATSA", "train"): "26ba39142b28169ebc80408294f4e27493bd1e127c6aa2e85ab4bc750bf8017a",
    ("ATSA", "val"): "5b7d225e2f9482a3814f15aed04ff8323105171a47d22d9899d871c4e0ba86ca",
    ("ACSA", "train"): "24c6a1a9f769ec5a9a1fc9a63077001339cec65317e3e72cf053d8055ec5f1ac",
    ("ACSA", "val"): "d4536b0ced8e77f53f88ff1835fcf561e0de02e41a509982f76eb9b8a375b2ed",
}
"""Of the published files; the test parts are downloaded too and checked by their counts."""


def prepare_data(
    source: str,
    folder: Path,
    task: Kind | str = "atsa",
    *,
    limit: int | None = None,
    flag: str = "--source",
    advance: Callable[[float], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Download MAMS, or convert a file or a folder to ``train.jsonl`` and so on; a failure leaves no folder.

    Args:
        source: "mams", a file or a folder.
        folder: to write to.
        task: "atsa", "acsa" or "joint".
        limit: sentences of each part at most.
        flag: option that takes a folder of one's own, named where there is no network.
        advance: told of downloaded bytes.

    Returns:
        Of each part its sentences, aspects and a hash of both.

    Raises:
        NeedsNetwork: if MAMS cannot be fetched.
        RunFailed: if a downloaded file is not the published one.
        UserError: if there is nothing to convert, or it is malformed.
    """
    if source == "mams":
        with _no_empty_folders(folder / "ATSA", folder / "ACSA"):
            _download(folder, flag, advance)
        origin, convert = folder, False
    else:
        origin, convert = Path(source).expanduser(), True
    chosen: Any = task
    parts = [part for part in PARTS if origin.is_dir() and find_part(origin, part, chosen)]
    if not parts and not origin.is_file():
        raise UserError("there is nothing to prepare", origin, "Give mams, a file, or a folder with train.xml, val.xml")
    # All, before anything is written; a lone file stays one file.
    read = {part: read_part(origin, part, chosen, limit=limit) for part in parts}
    if origin.is_file():
        read = {"train": read_file(origin, limit=limit)}
    account: dict[str, dict[str, Any]] = {}
    for part, examples in read.items():
        if convert:
            write_jsonl(examples, folder / f"{origin.stem if origin.is_file() else part}.jsonl")
        aspects = sum(len(example.aspects) for example in examples)
        account[part] = {"sentences": len(examples), "aspects": aspects, "sha256": digest(examples)}
    return account


@contextmanager
def _no_empty_folders(*made: Path) -> Iterator[None]:
    """Take away folders that were made in the block, if it fails and they hold nothing that a rerun goes on with."""
    new = sorted({p for path in made for p in (path, *path.parents) if not p.exists()}, reverse=True)
    try:
        yield
    except BaseException:
        for path in new:  # the deepest first
            with suppress(OSError):
                path.rmdir()
        raise


def _download(folder: Path, flag: str, advance: Callable[[float], None]) -> None:
    from latentlab_shared.download import download

    for task in ("ATSA", "ACSA"):
        for part in PARTS:
            target = folder / task / f"{part}.xml"
            download(
                MAMS_URL.format(task=task, part=part),
                target,
                offline=f"Fetch siat-nlp/MAMS-for-ABSA elsewhere and give its folder with {flag}",
                advance=advance,
            )
            expected = MAMS_SHA256.get((task, part))
            if expected and sha256_file(target) != expected:
                raise RunFailed("this is not the published file (sha256 differs)", target, "Delete it and try again")
