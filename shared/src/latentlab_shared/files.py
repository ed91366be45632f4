"""Files that are whole or absent: atomic writes, hashes, and reading what a user points at."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import json
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab_shared.errors import RunFailed, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, IndexError, KeyError, NotImplementedError, RuntimeError),
)
"""What ``zipfile`` raises for archives that are damaged, encrypted, hostile or of a kind it does not know."""


def plain(value: Any) -> Any:
    """Turn dataclasses, paths, NumPy values and the like into what JSON holds; NaN and infinities become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON text of any value that ``plain`` understands; keys keep their order."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a folder without write permission into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunFailed("the disk is full", path, "Free some space and run the command again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError("no permission to write here", path, "Choose another folder with --output-dir") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise UserError("a file stands where a folder is needed, or the reverse", path) from error
        raise


def sync_dir(folder: Path) -> None:
    """Make renames inside a folder durable; nothing to do where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes the name only when the block ends without an error."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only the owner can read
            os.replace(temporary, path)
            sync_dir(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, to_json(value) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a ``UserError`` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a JSON file", path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", path) from None
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON ({error.msg}, column {error.colno})", f"{path}:{error.lineno}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UserError(f"not JSON that can be read ({str(error)[:80]})", path) from None


def read_npy(path: Path, fix: str = "") -> NDArray[Any]:
    """Read an array that ``numpy.save`` wrote; a large one stays in its file and is mapped.

    Args:
        path: the file; archives and pickles are not read.
        fix: what to do about a damaged one.

    Raises:
        UserError: if it is missing or damaged, or claims to be larger than it is.
    """
    from tokenize import TokenError  # numpy reads the header of an array as Python

    import numpy as np

    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("no NumPy array")
        mapped = path.stat().st_size > 256  # an array without elements cannot be mapped
        found: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        return found
    except (OSError, EOFError, ValueError, TypeError, KeyError, ArithmeticError, MemoryError, RecursionError) as error:
        why = " ".join(str(error).split())[:160]
    except (SyntaxError, TokenError) as error:
        why = f"its header is no description: {' '.join(str(error).split())[:120]}"
    raise UserError(f"the file is damaged ({why})", path, fix)


def check_gzip(path: Path, ratio: int = 100, free: int = 64 * 2**20) -> None:
    """Read a gzipped file once to its end, so that damage and bombs show before its first line is taken.

    Args:
        path: the file.
        ratio: bytes that one packed byte may become; text compresses about threefold.
        free: bytes that may always be unpacked: small files are mostly padding.

    Raises:
        UserError: for a file that is damaged, or becomes too large.
    """
    budget = max(free, ratio * path.stat().st_size)
    try:
        with gzip.open(path) as stream:
            while block := stream.read(2**20):
                budget -= len(block)
                if budget < 0:
                    raise UserError("is too large for text when unpacked", path, "Do not trust this file")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"is damaged ({error})", path, "Fetch or make the file again") from None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
