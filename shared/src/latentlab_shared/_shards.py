"""Shards: immutable ``.npy`` files of fixed-width rows, and the codec between a vector and such a row."""

from __future__ import annotations

import io
import mmap
import os
import re
import tokenize
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from latentlab_shared.files import disk_errors, sync_dir

Rows = NDArray[np.uint8]
"""Encoded vectors, (R, row_bytes)."""

DTYPES = ("float16", "float32", "int8")
MOST_COMPONENTS = 1 << 20
_NAME = re.compile(r"[0-9a-f]{32}\.npy")
_CHECKED_BYTES = 1 << 18  # checked at a time: two passes over what is in the CPU's cache
_BLOCK = 8 << 20  # bytes that are written and summed at a time, so that the checksum reads them from the CPU's cache


class Codec:
    """How vectors of one cache are stored: ``float16``, ``float32``, or ``int8`` with one float32 scale per row.

    Args:
        dim: components of a vector, D.
        dtype: one of ``DTYPES``.
    """

    def __init__(self, dim: int, dtype: str) -> None:
        if dtype not in DTYPES:
            raise UserError(f"{dtype!r} is not a storage type", "dtype", f"Choose one of {', '.join(DTYPES)}")
        if not isinstance(dim, int) or not 1 <= dim <= MOST_COMPONENTS:
            raise UserError(f"{dim!r} is not a number of components", "dim", f"Give one from 1 to {MOST_COMPONENTS}")
        self.dim, self.dtype = dim, dtype
        self.element: np.dtype[Any] = (
            np.dtype([("value", "i1", (dim,)), ("scale", "<f4")])
            if dtype == "int8"
            else np.dtype("<f2" if dtype == "float16" else "<f4")
        )
        self.row_bytes = self.element.itemsize if dtype == "int8" else self.element.itemsize * dim

    def encode(self, vectors: object) -> Rows:
        """Encode vectors.

        Args:
            vectors: (N, D), anything that becomes a float array; a torch tensor may be on any device.

        Returns:
            (N, row_bytes) uint8.

        Raises:
            UserError: on another shape, or a value that is not finite once stored.
        """
        matrix = _array(vectors)
        if matrix.ndim != 2 or matrix.shape[1] != self.dim:
            raise UserError(f"vectors have the shape {matrix.shape}", fix=f"The cache holds vectors (N, {self.dim})")
        if self.dtype != "int8":
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(matrix, dtype=self.element)
            rows = _bytes(stored, self.row_bytes)
            step = max(1, _CHECKED_BYTES // self.row_bytes)
            if not all(self._all_finite(rows[i : i + step]) for i in range(0, len(rows), step)):
                self._refuse(matrix)
            return rows
        if not np.isfinite(matrix).all():
            self._refuse(matrix)
        packed = np.empty(len(matrix), self.element)
        scale = np.abs(matrix).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
        packed["scale"] = scale
        packed["value"] = np.rint(matrix / np.where(scale > 0, scale, 1)[:, None]).clip(-127, 127)
        return _bytes(packed, self.row_bytes)

    def _refuse(self, matrix: NDArray[Any]) -> NoReturn:
        with np.errstate(over="ignore"):
            stored = matrix if self.dtype == "int8" else matrix.astype(self.element)
        row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
        fix = "Use dtype float32" if np.isfinite(matrix[row]).all() else "Look at what the encoder returned for it"
        raise UserError(f"vector {row} is not finite as {self.dtype}", fix=fix)

    def native(self, rows: Rows) -> NDArray[Any]:
        """The stored numbers without a copy, (R, D); for int8 the decoded float32 ones."""
        return self.decode(rows) if self.dtype == "int8" else rows.view(self.element)

    def decode(self, rows: Rows) -> NDArray[np.float32]:
        """Decode rows (R, row_bytes) to (R, D) float32."""
        if self.dtype != "int8":
            return np.asarray(rows).view(self.element).astype(np.float32)
        packed = np.ascontiguousarray(rows).view(self.element)[:, 0]
        decoded: NDArray[np.float32] = packed["value"] * packed["scale"][:, None]
        return decoded

    def finite(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows hold only finite numbers, (R,)."""
        finite: NDArray[np.bool_]
        if self.dtype == "float16":
            # An all-ones exponent is an infinity or NaN.
            exponents = np.asarray(rows).view("<u2") & np.uint16(0x7C00)
            finite = exponents.max(axis=1, initial=0) < 0x7C00
        elif self.dtype == "float32":
            finite = np.isfinite(np.asarray(rows).view(self.element)).all(axis=1)
        else:
            finite = np.isfinite(np.ascontiguousarray(rows).view(self.element)[:, 0]["scale"])
        return finite

    def _all_finite(self, rows: Rows) -> bool:
        if self.dtype != "float16" or not rows.size:
            return bool(self.finite(rows).all())
        # Infinities and NaN are 7c00–7fff and fc00–ffff: the largest bit patterns, signed and unsigned. Reductions of
        # integers are several times as fast as isfinite on float16, and no temporary array is made.
        return bool(rows.view("<i2").max() < 0x7C00 and rows.view("<u2").max() < 0xFC00)

    def header(self, rows: int) -> bytes:
        """The ``.npy`` header of a shard of that many rows."""
        shape = (rows,) if self.dtype == "int8" else (rows, self.dim)
        file = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self.element), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, described)
        return file.getvalue()


def _array(vectors: Any) -> NDArray[Any]:
    if hasattr(vectors, "detach"):  # a torch tensor, told by its method so that torch is not imported
        vectors = vectors.detach().cpu()
        if "bfloat16" in str(vectors.dtype):  # NumPy has no such type
            vectors = vectors.float()
    try:
        matrix = np.asarray(vectors)
        if np.iscomplexobj(matrix):
            raise TypeError("complex ones")
        return matrix if matrix.dtype in (np.float16, np.float32) else matrix.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"vectors are not numbers ({error})", fix="Give an array (N, D) of floats") from None


def _bytes(stored: NDArray[Any], row_bytes: int) -> Rows:
    return stored.view(np.uint8).reshape(len(stored), row_bytes)


def new_shard(folder: Path) -> Path:
    """A path for a shard that nobody has used."""
    return folder / f"{uuid.uuid4().hex}.npy"


def write_shard(path: Path, codec: Codec, rows: int, pieces: Iterable[Rows]) -> int:
    """Write rows beside ``path``, flushed to the disk; ``publish_shard`` then gives them the name.

    Args:
        path: from ``new_shard``.
        codec: the cache's codec.
        rows: how many rows the pieces hold together.
        pieces: (R_i, row_bytes) each.

    Returns:
        The CRC-32 of the rows.

    Raises:
        RunFailed: when the disk is full; nothing is left behind.
    """
    temporary, crc = _temporary(path), 0
    with disk_errors(path.parent):
        try:
            with temporary.open("xb", buffering=0) as file:
                _write_all(file, codec.header(rows))
                for piece in pieces:
                    flat = np.ascontiguousarray(piece).data.cast("B")
                    for start in range(0, len(flat), _BLOCK):
                        block = flat[start : start + _BLOCK]
                        _write_all(file, block)
                        crc = zlib.crc32(block, crc)
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return crc


def publish_shard(path: Path) -> None:
    """Give a written shard its name, durably."""
    with disk_errors(path.parent):
        os.replace(_temporary(path), path)
        sync_dir(path.parent)


def discard_shard(path: Path) -> None:
    """Remove a shard that no index names."""
    _temporary(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while len(left):  # a raw write may be short
        left = left[file.write(left) :]


def is_shard_file(path: Path) -> bool:
    """Whether a file is a shard by its name, or was to become one."""
    return bool(_NAME.fullmatch(path.name.removeprefix(".").removesuffix(".tmp")))


def shard_path(folder: Path, name: object) -> Path:
    """The path of a shard named in an index; a name that leaves the folder is refused.

    Raises:
        UserError: if it is not a name that this module gives.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{str(name)[:80]!r} is not a shard's name", folder, "The index is damaged: build the cache again"
        )
    return folder / name


def open_shard(path: Path, codec: Codec, rows: int) -> Rows:
    """Map a shard, (rows, row_bytes), read-only.

    Raises:
        FileNotFoundError: if it is gone.
        UserError: if its header, type or size is not what the index says; a pickle is never read.
    """
    fix = "Run: latentlab-cache verify --repair"
    with path.open("rb") as file:
        try:
            # Read by hand: numpy.load would follow what the file claims to be.
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, SyntaxError, tokenize.TokenError) as error:  # numpy reads headers as Python
            raise UserError(f"not a shard ({str(error).splitlines()[0][:120]})", path, fix) from None
        expected = (rows,) if codec.dtype == "int8" else (rows, codec.dim)
        if version != (1, 0) or fortran or dtype != codec.element or shape != expected:
            raise UserError(f"holds {dtype} {shape}, the index says {codec.dtype} {expected}", path, fix)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        if size != start + rows * codec.row_bytes:
            raise UserError(f"has {size} bytes instead of {start + rows * codec.row_bytes}", path, fix)
        return np.memmap(file, np.uint8, "r", start, (rows, codec.row_bytes))


def checksum(rows: Rows) -> int:
    """CRC-32 of a shard's rows."""
    return zlib.crc32(rows.data.cast("B"))


def read_ahead(rows: Rows) -> None:
    """Ask the system to load a mapped shard in large pieces; where it cannot, nothing happens."""
    base: Any = rows.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        base.madvise(mmap.MADV_WILLNEED)
