"""Lines of large text files, and what becomes of the bad ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from latentlab_shared.errors import UserError

MAX_LINE_BYTES = 4 * 2**20  # the longest line of MIND has 40 KiB


@dataclass
class BadRows:
    """What is done with rows that cannot be read, and an account of what was odd but usable.

    Attributes:
        skip: count bad rows and go on, instead of stopping at the first.
        count: rows that were skipped.
        first: the first few, as the lines a user would have seen.
        notes: things that were put right or left out, by kind.
    """

    skip: bool = False
    count: int = 0
    first: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def report(self, error: UserError) -> None:
        """Raise the error, or count it."""
        if not self.skip:
            fix = f"{error.fix or 'Correct the row'}, or leave such rows out with --skip-bad"
            raise UserError(error.what, error.where, fix) from error
        self.count += 1
        if len(self.first) < 5:
            self.first.append(str(error))

    def summary(self) -> dict[str, int]:
        """All counts, the skipped rows first; kinds that did not occur are left out."""
        skipped = {"bad rows skipped": self.count} if self.count else {}
        return skipped | dict(sorted(self.notes.items()))


def read_lines(path: Path, bad: BadRows) -> Iterator[tuple[int, str]]:
    """Stream the lines of a UTF-8 file with their numbers from 1; blank lines, a BOM and CRLF are no part of them.

    Raises:
        UserError: for a missing, unreadable or empty file; and for a line that is too long, not UTF-8 or has zero
            bytes, unless ``bad`` skips it.
    """
    number, found = 0, False
    try:
        with path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    what = f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB"
                    raise UserError(what, f"{path}:{number}", "Is this a tab-separated text file?")
                raw = raw.rstrip(b"\r\n")
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if not raw.strip():
                    continue
                found = True
                try:
                    yield number, _decode(raw, f"{path}:{number}")
                except UserError as error:
                    bad.report(error)
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except IsADirectoryError:
        raise UserError("is a folder", path, "Give a file") from None
    except PermissionError:
        raise UserError("may not be read", path) from None
    if not found:
        raise UserError("the file is empty", path)


def _decode(raw: bytes, where: str) -> str:
    if b"\x00" in raw:
        raise UserError("has zero bytes", where, "Fetch or export the file again")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fix = "Convert the file: iconv -f CP1252 -t UTF-8"
        raise UserError(f"is not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})", where, fix) from None
