"""Training, validation and test parts between which nothing leaks."""

from __future__ import annotations

import hashlib
from pathlib import Path

from latentlab_shared.errors import UserError
from seq2seq_keras.data.readers import Account, Columns, read_examples
from seq2seq_keras.data.types import Example

PARTS = ("train", "valid", "test")
_FILES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_KEPT_SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".csv.gz", ".tsv")

Parts = dict[str, list[Example]]


def split_by_hash(examples: list[Example], valid: float = 0.1, test: float = 0.1) -> Parts:
    """Split by a stable hash of the group (of the id where there is none): a group stands in one part only."""
    parts: Parts = {part: [] for part in PARTS}
    for example in examples:
        key = hashlib.sha256((example.group or example.id).encode()).digest()
        place = int.from_bytes(key[:8], "big") / 2**64
        parts["test" if place < test else "valid" if place < test + valid else "train"].append(example)
    return parts


def split_by_date(examples: list[Example], valid: int, test: int) -> Parts:
    """Split by time: the last ``test`` examples, the ``valid`` before them, and the rest to train on.

    A summary or text that comes again later is left out of the later part, so that none was seen in training.

    Raises:
        UserError: if an example has no date, or nothing is left to train on.
    """
    if any(not example.date for example in examples):
        raise UserError("some examples have no date", "--split date", "Use --split hash")
    if valid + test >= len(examples):
        raise UserError(f"{len(examples)} examples are too few for {valid} + {test} held out", "--split date")
    ordered = sorted(examples, key=lambda e: (e.date, e.id))
    cut = len(ordered) - test - valid
    return {"train": ordered[:cut], "valid": ordered[cut : cut + valid], "test": ordered[cut + valid :]}


def read_parts(
    source: str,
    *,
    split: str = "auto",
    columns: Columns | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    account: Account | None = None,
) -> Parts:
    """The parts of a source: a folder with ``train`` and ``val`` files, or what ``read_examples`` reads.

    Args:
        source: where.
        split: "files" (by file name; without a test file the validation file is the test part, and validation comes
            from a few groups of the training file), "date" (the last 1,000, or a tenth, for test), "hash" (by group),
            or "auto": files where they are, date for Reuters, else hash.
        columns: of tables.
        limit: training examples at most, and a tenth as many (at least 10) for validation and test.
        skip_bad: count malformed rows.
        account: filled with what was left out.

    Raises:
        UserError: for what cannot be read or split.
    """
    if split not in ("auto", "files", "date", "hash"):
        raise UserError(f"{split!r} is not a split", "--split", "Use one of: auto, files, date, hash")
    path, account = Path(source), account if account is not None else Account()
    files = _part_files(path) if split in ("auto", "files") and path.is_dir() else {}
    if split == "files" and "train" not in files:
        raise UserError("there is no train file here", path, "Name the files train.jsonl.gz and val.jsonl.gz")
    if "train" in files:
        parts = {
            part: read_examples(file, columns=columns, skip_bad=skip_bad, account=account)
            for part, file in files.items()
        }
        if "test" not in parts:
            # The held-out file is for the figures; what chooses the epoch is taken from the training file.
            inner = split_by_hash(parts["train"], valid=0.03, test=0.0)
            parts = {"train": inner["train"], "valid": inner["valid"], "test": parts.get("valid", inner["valid"])}
    else:
        examples = read_examples(path, columns=columns, skip_bad=skip_bad, account=account)
        by_date = split == "date" or (split == "auto" and _is_reuters(path))
        held_out = min(1_000, len(examples) // 10)
        parts = split_by_date(examples, held_out, held_out) if by_date else split_by_hash(examples)
    few = None if limit is None else max(10, limit // 10)
    held = {part: found[:few] for part, found in parts.items() if part != "train"}
    # What is tested must not have been trained on, whoever split the files.
    known = {e.text.lower() for found in held.values() for e in found}
    kept = [e for e in parts["train"] if e.text.lower() not in known]
    account.duplicates += len(parts["train"]) - len(kept)
    return {"train": kept[:limit], **held}


def _part_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for part, names in _FILES.items():
        for name in names:
            for suffix in _KEPT_SUFFIXES:
                if (folder / f"{name}{suffix}").is_file():
                    found.setdefault(part, folder / f"{name}{suffix}")
    return found


def _is_reuters(path: Path) -> bool:
    names = [path.name] if path.is_file() else [f.name for f in path.iterdir()]
    return any(".sgm" in name for name in names)
