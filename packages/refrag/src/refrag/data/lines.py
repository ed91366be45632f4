"""Files of lines, plain or gzipped, from strangers: a fault is told with its line, nothing is unpacked blindly."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError
from latentlab_shared.files import check_gzip

MAX_LINE_BYTES = 64 * 2**20


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file without their ends, each after its place, such as ``corpus.jsonl:3``.

    Raises:
        UserError: if there is no such file, or it is damaged, no text, or has a line of more than 64 MiB.
    """
    if not path.is_file():
        raise UserError("there is no such file", path, "Give a file of lines, plain or .gz")
    if path.name.endswith(".gz"):
        check_gzip(path)
    opened: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(f"a line longer than {MAX_LINE_BYTES >> 20} MiB", where, "Cut it into texts")
                try:
                    yield where, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(f"not UTF-8 text (byte {error.start})", where) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", path) from None


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file of lines, each after its place; empty lines are passed over.

    Raises:
        UserError: as for ``read_lines``, and for a line that is no JSON object.
    """
    for where, line in read_lines(path):
        if line.strip():
            yield where, json_object(line, where)


def json_object(line: str, where: str) -> dict[str, Any]:
    """A line of JSON.

    Raises:
        UserError: if it is none, is nested too deeply, or is no object.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON ({error.msg}, column {error.colno})", where) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise UserError(f"not JSON that can be read ({str(error)[:80]})", where) from None
    if not isinstance(row, dict):
        raise UserError("no JSON object", where)
    return row
