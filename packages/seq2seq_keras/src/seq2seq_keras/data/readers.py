"""Files of many kinds as examples: caption CSV folders, Reuters SGML, AG News, tables by column name, plain text."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from latentlab_shared.errors import UserError
from latentlab_shared.files import check_gzip
from seq2seq_keras.data.text import clean
from seq2seq_keras.data.types import Example

KINDS = ("captions", "reuters", "agnews", "table", "text")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".sgm", ".sgml", ".txt")
_TEXT_COLUMNS = ("text", "Snippet", "article", "document", "source", "body", "description")
_SUMMARY_COLUMNS = ("summary", "highlights", "headline", "headlines", "title", "target")
_GROUP_COLUMNS = ("show", "IAShowID", "group")
_DATE_COLUMNS = ("time", "MatchDateTime", "date")
_ID_COLUMNS = ("id", "URL")

csv.field_size_limit(2**24)


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; an empty name takes the first well-known one that is there."""

    text: str = ""
    summary: str = ""


@dataclass
class Account:
    """What was left out while reading."""

    read: int = 0
    empty: int = 0
    malformed: int = 0
    duplicates: int = 0
    made: int = 0  # training examples without a summary, which get a made label


def read_examples(
    source: str | Path,
    *,
    columns: Columns | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    account: Account | None = None,
    unique: bool = True,
) -> list[Example]:
    """All examples of a file or of the files of a folder, cleaned, each text once.

    Captions (CSV with a ``Snippet`` column), Reuters-21578 (``.sgm``), AG News (``class, title, description`` without a
    header), other CSV, TSV and JSONL tables, and ``.txt`` files are told apart by name and content; ``.gz`` is fine.

    Args:
        source: the file or folder.
        columns: of tables.
        limit: examples at most.
        skip_bad: count malformed rows instead of stopping at the first.
        account: filled with what was left out.
        unique: leave out texts that came before.

    Raises:
        UserError: for a source that does not exist or holds no text, and for a malformed row, with its line.
    """
    if not str(source):
        raise UserError("the name of the file or folder is empty", "--data or --source", "Give an existing path")
    path, account = Path(source), account if account is not None else Account()
    files = _files(path)
    chosen = columns or Columns()
    seen: set[str] = set()

    def usable() -> Iterator[Example]:
        for file in files:
            for raw in _read_file(file, chosen, skip_bad, account):
                account.read += 1
                example = replace(raw, text=clean(raw.text), summary=clean(raw.summary))
                key = " ".join(example.text.lower().split())
                if not any(c.isalnum() for c in key):
                    account.empty += 1
                elif unique and key in seen:
                    account.duplicates += 1
                else:
                    seen.add(key)
                    yield example

    found = list(islice(usable(), limit))
    if not found:
        raise UserError("there is no text here", path, "Give a file or folder of .csv, .tsv, .jsonl, .sgm or .txt")
    return found


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError("there is no such file or folder", path, "Give an existing path")
    if path.is_file():
        return [path]
    files = sorted(f for f in path.iterdir() if f.is_file() and _kind_of_name(f) in _SUFFIXES)
    sgml = [f for f in files if _kind_of_name(f) in (".sgm", ".sgml")]
    tables = [f for f in files if _kind_of_name(f) in (".csv", ".tsv", ".jsonl")]
    return sgml or tables or files  # a README.txt or classes.txt beside them is no text to summarize


def _kind_of_name(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _read_file(file: Path, columns: Columns, skip_bad: bool, account: Account) -> Iterator[Example]:
    kind = _kind_of_name(file)
    if kind in (".sgm", ".sgml"):
        yield from _reuters(file)
    elif kind == ".txt":
        with _open(file) as opened:
            yield Example(id=file.name, text=opened.read())
    elif kind in (".csv", ".tsv", ".jsonl"):
        rows = _jsonl(file) if kind == ".jsonl" else _csv(file, "\t" if kind == ".tsv" else ",")
        for number, row in rows:
            try:
                yield _row(row, file, number, columns)
            except UserError:
                if not skip_bad:
                    raise
                account.malformed += 1
    else:
        raise UserError("this kind of file is not known", file, f"Give one of: {', '.join(_SUFFIXES)}, also as .gz")


@contextmanager
def _open(file: Path, encoding: str = "utf-8-sig") -> Iterator[TextIO]:
    """A text file, gzipped or not; what is not text in the encoding is a ``UserError``."""
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    try:
        if opener is gzip.open:
            check_gzip(file)
        with opener(file, "rt", encoding=encoding, newline="") as opened:
            yield opened
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", file) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read ({error})", file) from None


def _jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    with _open(file) as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) and _is_text(line, row) else None


def _is_text(line: str, row: dict[str, Any]) -> bool:
    """Whether a row's strings are Unicode text: an escape can name half of a character."""
    if "\\u" not in line:
        return True
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv(file: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    with _open(file) as opened:
        reader = csv.reader(opened, delimiter=delimiter)
        first = next(reader, None)
        if first is None:
            return
        if len(first) == 3 and first[0].strip().isdigit():  # AG News has no header
            header, rows = ["class", "title", "description"], [(1, first)]
        else:
            header, rows = [name.strip() for name in first], []
        for line in rows:
            yield line[0], dict(zip(header, line[1], strict=True))
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:  # a cell of more than 16 MiB
                yield reader.line_num, None
                continue
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True)) if len(row) == len(header) else None


def _row(row: dict[str, Any] | None, file: Path, number: int, columns: Columns) -> Example:
    where = f"{file}:{number}"
    if row is None:
        raise UserError("this row is malformed", where, "Mend it, or leave such rows out with --skip-bad")
    text_name = _column(row, columns.text, _TEXT_COLUMNS)
    if not text_name:
        wanted = columns.text or " or ".join(_TEXT_COLUMNS[:3])
        raise UserError(f"there is no column {wanted}", where, f"--text-column takes one of: {', '.join(row)}")
    if columns.summary and columns.summary not in row:
        fix = f"--summary-column takes one of: {', '.join(row)}"
        raise UserError(f"there is no column {columns.summary}", where, fix)
    if columns.summary == text_name:
        raise UserError(f"text and summary are both {text_name}", where, "Give two columns")
    # Captions carry the name of the show in a title-like column; it is no summary.
    known = () if text_name == "Snippet" else tuple(c for c in _SUMMARY_COLUMNS if c != text_name)
    summary_name = _column(row, columns.summary, known)
    values = {name: _text(row[name], where, name) if name else "" for name in (text_name, summary_name)}
    named = _column(row, "", _ID_COLUMNS)
    group, date = _column(row, "", _GROUP_COLUMNS), _column(row, "", _DATE_COLUMNS)
    return Example(
        id=str(row[named]) if named else f"{file.name}:{number}",
        text=values[text_name].replace("\\", " ") if "class" in row else values[text_name],
        summary=values[summary_name],
        group=str(row[group]) if group else "",
        date=_date(str(row[date])) if date else "",
    )


def _column(row: dict[str, Any], wanted: str, known: tuple[str, ...]) -> str:
    return wanted if wanted in row else next((name for name in known if not wanted and name in row), "")


def _text(value: Any, where: str, name: str) -> str:
    """A cell's text; a list of sentences is joined."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    if not isinstance(value, str):
        raise UserError(f"{name} is not text", where, "Mend the row, or leave such rows out with --skip-bad")
    return value


def _date(text: str) -> str:
    """A date in sortable form; empty if its form is not known."""
    for form in ("%m/%d/%Y %H:%M:%S", "%d-%b-%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"):
        try:
            return datetime.strptime(text.strip().split(".")[0], form).isoformat()
        except ValueError:
            continue
    day = _DAY.search(text)  # a few of Reuters' times are garbled; the day is enough to split by
    try:
        return datetime.strptime(day[0], "%d-%b-%Y").isoformat() if day else ""
    except ValueError:  # such as the 99th of January
        return ""


_DAY = re.compile(r"\d{1,2}-(?:JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)-\d{4}")
_NEWID = re.compile(r'NEWID="(\d+)"')
# "&lt;Dunhill Classics Inc>" is a name, "&lt;DCLS.O>" a ticker: an instrument code that no summary says.
_TICKER = re.compile(r"&lt;[A-Z0-9]{1,6}(?:\.[A-Z0-9]{1,4})?>")
_NAME = re.compile(r"&lt;([^<>&]{1,60})>")
_SIGN_OFF = re.compile(r"(?<!\s)\s*+(?:&#3;|\bREUTER\b|\bReuter\b)[\s\S]{0,20}\Z")


def _reuters(file: Path) -> Iterator[Example]:
    """The documents of one Reuters-21578 file that have a title and a body; the title is the summary."""
    with _open(file, encoding="latin-1") as opened:
        content = opened.read()
    for document in _between(content, "<REUTERS", "</REUTERS>"):
        title, body, date = (
            next(_between(document, f"<{name}>", f"</{name}>"), None) for name in ("TITLE", "BODY", "DATE")
        )
        if title is None or body is None:
            continue
        title, body = (_NAME.sub(r" \1 ", _TICKER.sub(" ", part)) for part in (title, body))
        number = _NEWID.search(document)
        yield Example(
            id=number[1] if number else "",
            text=_SIGN_OFF.sub("", body.replace("&#3;", " ")),
            summary=title,
            date=_date(date) if date else "",
        )


def _between(text: str, start: str, end: str) -> Iterator[str]:
    """What stands between each ``start`` and the next ``end``, in one pass."""
    at = 0
    while (begin := text.find(start, at)) >= 0 and (stop := text.find(end, begin)) >= 0:
        yield text[begin + len(start) : stop]
        at = stop + len(end)


def digest(examples: list[Example]) -> str:
    """A hash of what was read: ids, texts and summaries, in order."""
    found = hashlib.sha256()
    for example in examples:
        found.update("\x1f".join((example.id, example.text, example.summary, "\x1e")).encode())
    return found.hexdigest()


def data_folder(name: str) -> Path:
    """``name`` below the folder that the environment variable LATENTLAB_DATA gives.

    Raises:
        UserError: if the variable is not set.
    """
    root = os.environ.get("LATENTLAB_DATA")
    if not root:
        raise UserError("the variable LATENTLAB_DATA is not set", name, "Set it to the folder of data sets")
    return Path(root) / name
