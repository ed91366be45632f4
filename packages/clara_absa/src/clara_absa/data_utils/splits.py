"""Parts of a data set: where they lie in a folder, and how training is kept apart from what is held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from clara_absa.configs.schema import Example
from clara_absa.data_utils.readers import SUFFIXES, read_file
from latentlab_shared.errors import UserError

Part = Literal["train", "val", "test"]
Kind = Literal["atsa", "acsa", "joint"]
PARTS: tuple[Part, ...] = get_args(Part)
KINDS: tuple[Kind, ...] = get_args(Kind)
MIN_SENTENCES = 3
_OTHER_NAMES = {"val": ("val", "valid", "dev"), "train": ("train",), "test": ("test",)}
# The published layout, the one with raw/ inside, and a plain folder of parts.
_HOMES = {
    "atsa": ("ATSA", "MAMS-ATSA/raw", "data/MAMS-ATSA/raw"),
    "acsa": ("ACSA", "MAMS-ACSA/raw", "data/MAMS-ACSA/raw"),
}


def find_part(folder: Path, part: Part, kind: Kind = "atsa") -> Path | None:
    """The file of one part in a folder, or None.

    A folder holds ``train.xml``, ``val.xml`` … itself, or below ``ATSA/`` and ``ACSA/`` as MAMS does.
    """
    for home in (*_HOMES["acsa" if kind == "acsa" else "atsa"], "."):
        for name in _OTHER_NAMES[part]:
            for suffix in SUFFIXES:
                path = folder / home / f"{name}{suffix}"
                if path.is_file():
                    return path
    return None


def read_part(source: Path, part: Part, kind: Kind = "atsa", *, limit: int | None = None) -> list[Example]:
    """One part of a data set.

    With ``kind="joint"`` the training part holds the sentences of both tasks, each once with the aspects of both,
    without any sentence that either task holds out: 294 of MAMS's 500 ATSA test sentences stand in its ACSA train
    part. Other parts of "joint" are those of "atsa".

    Args:
        source: a folder, or a file, which is split: see `split_file`.
        part: "train", "val" or "test".
        kind: "atsa" for terms, "acsa" for categories, "joint".
        limit: sentences at most.

    Raises:
        UserError: if there is no such part, or one is malformed.
    """
    source = Path(source).expanduser()
    if kind not in KINDS or part not in PARTS:
        raise UserError(f"{kind!r}, {part!r}: no such task or part", "--task", f"Use {', '.join(KINDS)}")
    if source.is_file():
        return split_file(read_file(source), source)[part][:limit]
    if not source.is_dir():
        raise UserError("there is no such file or folder", source, "Give --data a folder with train.xml and val.xml")
    path = find_part(source, part, kind)
    if path is None:
        raise UserError(
            f"there is no {part} part for {kind}", source, f"Expected such as {part}.xml or ATSA/{part}.xml"
        )
    if kind != "joint" or part != "train":
        return read_file(path, limit=limit)
    categories = find_part(source, "train", "acsa")
    if categories is None or categories == path:
        raise UserError("joint training needs the categories too", source, "Expected ATSA/train.xml and ACSA/train.xml")
    held_out = [
        example
        for task in KINDS[:2]
        for held in PARTS[1:]
        if (file := find_part(source, held, task)) is not None
        for example in read_file(file)
    ]
    kept, _ = drop_held_out(merge_sentences([*read_file(path), *read_file(categories)]), held_out)
    return kept[:limit]


def split_file(examples: Sequence[Example], source: Path) -> dict[Part, list[Example]]:
    """The parts of a lone file, each in the file's order: a tenth of its sentences for val, a tenth for test.

    Sentences are ranked by a hash of their words, so the parts are the same in every run, whatever the file's order;
    sentences that differ in case, blanks or punctuation only fall into one part.

    Args:
        examples: all of the file.
        source: the file, for the error.

    Raises:
        UserError: for fewer than three different sentences.
    """
    keys = [" ".join(re.findall(r"\w+", example.text.casefold())) or example.text for example in examples]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    if len(ranked) < MIN_SENTENCES:
        what = (
            f"{len(ranked)} different sentence{'' if len(ranked) == 1 else 's'} cannot be parted in train, val and test"
        )
        raise UserError(what, source, "Give more, or a folder with train and val files")
    held = max(1, len(ranked) // 10)
    part_of: dict[str, Part] = dict.fromkeys(ranked, "train")
    part_of.update(dict.fromkeys(ranked[:held], "val"))
    part_of.update(dict.fromkeys(ranked[held : 2 * held], "test"))
    parts: dict[Part, list[Example]] = {part: [] for part in PARTS}
    for key, example in zip(keys, examples, strict=True):
        parts[part_of[key]].append(example)
    return parts


def sentence_key(text: str) -> str:
    """What two sentences have in common when they differ in case, blanks or punctuation only."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def drop_held_out(train: Sequence[Example], held_out: Iterable[Example]) -> tuple[list[Example], int]:
    """The training examples whose sentence is not held out, and how many were dropped."""
    keys = {sentence_key(example.text) for example in held_out}
    kept = [example for example in train if sentence_key(example.text) not in keys]
    return kept, len(train) - len(kept)


def merge_sentences(examples: Iterable[Example]) -> list[Example]:
    """Examples of exactly the same text become one with the aspects of all, in order of first appearance."""
    merged: dict[str, Example] = {}
    for example in examples:
        earlier = merged.get(example.text)
        if earlier is not None:
            new = tuple(a for a in example.aspects if a not in earlier.aspects)
            example = replace(earlier, aspects=earlier.aspects + new)
        merged[example.text] = example
    return list(merged.values())


def digest(examples: Iterable[Example]) -> str:
    """A hash of what was read: texts, aspects, spans and polarities, in order."""
    found = hashlib.sha256()
    for example in examples:
        spans = (f"{a.term}\x1f{a.polarity}\x1f{a.start}\x1f{a.end}" for a in example.aspects)
        found.update("\x1e".join((example.text, *spans, "\x1d")).encode())
    return found.hexdigest()
