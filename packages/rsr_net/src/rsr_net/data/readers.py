"""One door for every source: ``read_examples`` streams stories, JSONL, text files and the hub."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from latentlab_shared.errors import UserError
from rsr_net.data.stories import SPLITS, hashed_split, listed_ids, make_example, parse_story, printable, story_files
from rsr_net.data.types import Example

MAX_TEXT_BYTES = 4 * 2**20  # one article or one row; the longest of CNN/DailyMail has 20 KiB
MAX_RATIO = 100  # unpacked to packed: news text compresses about threefold
MIN_BUDGET = 64 * 2**20  # bytes that may always be unpacked: small archives are mostly padding
_MAX_BLANK = 10_000  # empty lines in a row
_SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
_SPLIT_FILE = re.compile(rf"({'|'.join(_SPLIT_NAMES)})(?:[-_.][\w-]*\d)?\.jsonl(?:\.gz)?")
_ONE_FILE = "Give a UTF-8 text file of one article"
_FILES = "Correct the file, or leave such files out with --skip-bad"
_ROWS = "Correct the row, or leave such rows out with --skip-bad"
_ROW_FORMS = "id, article, highlights (a string with one sentence per line, or a list), or SciTLDR's source, target"


@dataclass
class BadRows:
    """What is done with rows that cannot be read.

    Attributes:
        skip: count them and go on, instead of stopping at the first.
        count: rows that were skipped.
        first: the first few, as the lines a user would have seen.
        without_article: stories without article text; those are always left out (CNN/DailyMail has 114).
    """

    skip: bool = False
    count: int = 0
    first: list[str] = field(default_factory=list)
    without_article: int = 0

    def report(self, error: UserError, fix: str = _ROWS) -> None:
        """Raise the error, with what to do about it unless it says so itself; or count it."""
        if not self.skip:
            raise UserError(error.what, error.where, error.fix or fix) from error
        self.count += 1
        if len(self.first) < 5:
            self.first.append(printable(str(error)))


def read_examples(
    source: str | Path,
    split: str | None = "train",
    *,
    limit: int | None = None,
    bad: BadRows | None = None,
) -> Iterator[Example]:
    """Stream the examples of one part of a source.

    Args:
        source: ``hub:NAME``, a file, or a folder of ``.story``, ``.jsonl(.gz)`` or ``.txt`` files.
        split: "train", "valid" or "test"; None reads everything.
        limit: stop after so many examples.
        bad: what to do with malformed rows; by default the first one stops the reading.

    Raises:
        UserError: for a source that is missing, empty or of no known form, and for a malformed row, by file and line.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"{split!r} is not a part", "--split", f"Use one of: {', '.join(SPLITS)}")
    bad = BadRows() if bad is None else bad
    return islice(_source(str(source), split, bad), limit)


def _source(source: str, split: str | None, bad: BadRows) -> Iterator[Example]:
    if source.startswith("hub:"):
        from rsr_net.data.hub import read_hub

        return read_hub(source.removeprefix("hub:"), split, bad)
    path = Path(source)
    if not _exists(path):
        raise UserError("there is no such file or folder", source[:200], "Give a file, a folder or hub:NAME")
    if path.is_dir():
        return _folder(path, split, bad)
    if path.suffix == ".story":
        return _stories([path], bad, _ONE_FILE)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = _jsonl(path, bad)
        return rows if split is None else (e for e in rows if hashed_split(e.id) == split)
    return _texts([path], bad, _ONE_FILE)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long: a text where a file was meant
        return False


def source_files(source: Path) -> list[Path]:
    """The files that ``read_examples`` reads of a file or a folder, all parts together, and the lists that split it."""
    if not source.is_dir():
        return [source]
    if named := split_files(source):
        return [path for part in SPLITS for path in named.get(part, [])]
    if stories := story_files(source):
        return [*stories, *sorted(source.glob("url_lists/*.txt"))]
    return sorted(source.glob("*.txt"))


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The JSONL files of a folder that are named by their part, by part."""
    named: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if found := _SPLIT_FILE.fullmatch(path.name):
            named.setdefault(_SPLIT_NAMES[found[1]], []).append(path)
    return named


def _folder(folder: Path, split: str | None, bad: BadRows) -> Iterator[Example]:
    try:
        named = split_files(folder)
    except PermissionError:
        raise UserError("may not be read", folder) from None
    if named:
        if split is not None and split not in named:
            raise UserError(f"there is no {split} part; it has: {', '.join(sorted(named))}", folder)
        wanted = [path for name in SPLITS if split in (None, name) for path in named.get(name, [])]
        return (example for path in wanted for example in _jsonl(path, bad))
    if stories := story_files(folder):
        return _stories(_of_split(folder, stories, split), bad, _FILES)
    if texts := sorted(folder.glob("*.txt")):
        return _texts(texts, bad, _FILES)
    raise UserError(
        "holds no data that is known", folder, "Known are .story files, train/valid/test.jsonl(.gz) and .txt files"
    )


def _of_split(folder: Path, stories: list[Path], split: str | None) -> Iterator[Path]:
    """The story files of one part."""
    ids = listed_ids(folder, split) if split is not None else None
    for path in stories:
        name = printable(path.stem)
        if split is None or ((name in ids) if ids is not None else (hashed_split(name) == split)):
            yield path


def _stories(paths: Iterator[Path] | list[Path], bad: BadRows, fix: str) -> Iterator[Example]:
    for path in paths:
        try:
            article, highlights = parse_story(read_text(path))
            if not article:
                bad.without_article += 1
                continue
            yield make_example(printable(path.stem), article, highlights, path)
        except UserError as error:
            bad.report(error, fix)


def _texts(paths: list[Path], bad: BadRows, fix: str) -> Iterator[Example]:
    for path in paths:
        try:
            yield make_example(printable(path.stem), read_text(path), [], path)
        except UserError as error:
            bad.report(error, fix)


def read_text(path: Path) -> str:
    """A text file as UTF-8.

    Raises:
        UserError: if it is missing, no regular file, empty, too large, binary or not UTF-8.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            return read_stream(file, path)
    except PermissionError:
        raise UserError("may not be read", path) from None


def read_stream(file: IO[bytes], where: object) -> str:
    """The text of a stream of one article, read no further than an article can be long; else as ``read_text``."""
    raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise UserError(
            f"too large for one article (over {MAX_TEXT_BYTES // 2**20} MiB)", where, "Split it into articles"
        )
    return decode(raw, where)


def check_regular(path: Path) -> None:
    """Refuse what is not a file to read to its end: a folder, a device, a pipe.

    Raises:
        UserError: for those, and for a file that is missing.
    """
    if path.is_dir():
        raise UserError("is a folder", path, "Give a file")
    if not _exists(path):
        raise UserError("there is no such file", path)
    if not path.is_file():
        raise UserError("is a device or a pipe, not a file", path, "Give a regular file, or - for stdin")


def decode(raw: bytes, where: object) -> str:
    """Bytes of one text as UTF-8; a ``UserError`` for empty, binary or wrongly encoded input."""
    if not raw.strip():
        raise UserError("is empty", where)
    if b"\x00" in raw:
        raise UserError("is not text (it has zero bytes)", where)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 (byte {error.start})", where, "Convert it: iconv -t UTF-8") from None


def _jsonl(path: Path, bad: BadRows) -> Iterator[Example]:
    """The rows of a JSONL file, plain or gzipped, in constant memory."""
    check_regular(path)
    packed, name = path.name.endswith(".gz"), printable(path.name.partition(".")[0])
    opener: Any = gzip.open if packed else open
    number = 0
    try:
        budget = max(MIN_BUDGET, MAX_RATIO * path.stat().st_size) if packed else math.inf
        with opener(path, "rb") as file:
            for number, raw in enumerate(_lines(file, path, budget), start=1):
                try:
                    if not raw.strip():
                        continue
                    if len(raw) > MAX_TEXT_BYTES:
                        raise UserError(f"the line is longer than {MAX_TEXT_BYTES // 2**20} MiB", f"{path}:{number}")
                    yield _row(raw, f"{path}:{number}", f"{name}-{number}")
                except UserError as error:
                    bad.report(error)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"is damaged after line {number} ({error})", path, "Fetch or make the file again") from None
    if number == 0:
        raise UserError("is empty", path)


def _lines(file: IO[bytes], path: Path, budget: float) -> Iterator[bytes]:
    """The lines of a file, of a line that is too long its beginning; ``budget`` is the bytes that may be unpacked."""
    blank, inside = 0, False  # inside: of a line whose beginning was given already
    while line := file.readline(MAX_TEXT_BYTES + 1):
        budget -= len(line)
        if budget < 0:
            raise UserError("is too large for news text when unpacked", path, "Do not trust this file")
        blank = 0 if line.strip() else blank + 1
        if blank > _MAX_BLANK:
            raise UserError(f"has more than {_MAX_BLANK} empty lines in a row", path, "This is not JSONL")
        if not inside:
            yield line
        inside = len(line) > MAX_TEXT_BYTES and not line.endswith(b"\n")


def _row(raw: bytes, where: str, fallback_id: str) -> Example:
    """One JSON row as an example."""
    try:
        row = json.loads(decode(raw, where))
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg}, column {error.colno})", where) from None
    except ValueError:
        raise UserError("not JSON that can be read (a number of thousands of digits)", where) from None
    except RecursionError:
        raise UserError("the JSON is nested too deeply", where) from None
    if not isinstance(row, dict):
        raise UserError("the row is not an object", where, f"Known: {_ROW_FORMS}")
    return example_of(row, where, fallback_id)


def example_of(row: dict[str, Any], where: str, fallback_id: str) -> Example:
    """The example of a row, from JSONL or from the hub.

    Raises:
        UserError: for columns that are not known, and for values of another type.
    """
    if "article" in row:
        article, summary = row["article"], row.get("highlights", [])
    elif "source" in row:  # SciTLDR: a list of sentences, and one or more one-sentence summaries
        article, summary = row["source"], row.get("target", [])
        summary = summary[:1] if isinstance(summary, list) else summary
    else:
        raise UserError("the row has neither article nor source", where, f"Known: {_ROW_FORMS}")
    identifier = row.get("id", row.get("paper_id"))
    if not isinstance(identifier, (str, int, float, type(None))):
        raise UserError("the id is neither a string nor a number", where)
    return make_example(
        fallback_id if identifier is None else str(identifier),
        "\n".join(_texts_of(article, "article", where)),
        _texts_of(summary, "highlights", where),
        where,
    )


def _texts_of(value: object, key: str, where: str) -> list[str]:
    """The lines of a field that is a string or a list of strings."""
    if isinstance(value, str):
        return value.splitlines()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [line for item in value for line in item.splitlines()]
    if value is None:
        return []
    raise UserError(f"{key} is neither a string nor a list of strings", where)
