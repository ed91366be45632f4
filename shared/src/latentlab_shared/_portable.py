"""A cache as one file for other tools: Parquet, piece by piece, or safetensors, in memory.

Parquet columns: ``key`` (16 bytes), ``vector`` (D values as stored; a list of such for token embeddings), and ``scale``
for int8. safetensors tensors: ``keys``, ``vectors``, ``scales``, ``counts``. Both carry the
cache's identity as JSON under ``latentlab.cache``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared._fingerprint import KEY_BYTES, Keys
from latentlab_shared._shards import Codec, Rows
from latentlab_shared._store import Ints
from latentlab_shared.errors import NeedsExtra, UserError
from latentlab_shared.files import atomic_path

if TYPE_CHECKING:
    from latentlab_shared.embeddings import EmbeddingCache, TokenEmbeddingCache

    Cache = EmbeddingCache | TokenEmbeddingCache

Piece = tuple[Keys, Rows, Ints | None]
IDENTITY = "latentlab.cache"
_ROWS_AT_ONCE = 1 << 14


def write_file(identity: dict[str, Any], codec: Codec, pieces: Iterator[Piece], path: Path) -> int:
    """Write pieces of a cache to a ``.parquet`` or ``.safetensors`` file, atomically; returns the number of keys."""
    kind = _kind(path)
    with atomic_path(path) as temporary:
        return (_write_parquet if kind == ".parquet" else _write_safetensors)(identity, codec, pieces, temporary)


def read_identity(path: Path) -> dict[str, Any]:
    """The identity of the cache that a file was made from.

    Raises:
        UserError: if there is none, or the file is damaged.
    """
    if not path.is_file():
        raise UserError("there is no such file", path, "Give a file written by latentlab-cache export")
    if _kind(path) == ".parquet":
        with _parquet(path) as file:
            text = (file.schema_arrow.metadata or {}).get(IDENTITY.encode(), b"").decode(errors="replace")
    else:
        with _safetensors(path) as opened:
            text = (opened.metadata() or {}).get(IDENTITY, "")
    return _identity(text, path)


def read_pieces(path: Path, codec: Codec, tokens: bool) -> Iterator[Piece]:
    """Read the pieces of a file; what it holds is checked against the codec before it is trusted."""
    read = _read_parquet if _kind(path) == ".parquet" else _read_safetensors
    for keys, rows, counts in read(path, codec, tokens):
        if not codec.finite(rows).all():
            raise UserError("holds values that are not finite", path)
        yield keys, rows, counts


def to_safetensors(identity: dict[str, Any], codec: Codec, pieces: Iterator[Piece]) -> tuple[int, bytes]:
    """A safetensors file in memory, and its number of keys."""
    save = _numpy_safetensors().save
    listed = list(pieces)
    keys = np.concatenate([keys for keys, _, _ in listed] or [np.zeros((0, KEY_BYTES), np.uint8)])
    rows = np.concatenate([rows for _, rows, _ in listed] or [np.zeros((0, codec.row_bytes), np.uint8)])
    vectors, scales = _unpacked(codec, rows)
    tensors: dict[str, NDArray[Any]] = {"keys": keys, "vectors": vectors}
    if scales is not None:
        tensors["scales"] = scales
    if identity["layout"] == "tokens":
        counts = [counts for _, _, counts in listed if counts is not None]
        tensors["counts"] = np.concatenate(counts or [np.zeros(0, np.int64)])
    return len(keys), save(tensors, metadata={IDENTITY: json.dumps(identity, sort_keys=True)})


def from_safetensors(data: bytes, codec: Codec, tokens: bool, where: object) -> Piece:
    """Keys, rows and counts of ``to_safetensors``.

    Raises:
        UserError: if the data are damaged or of another shape.
    """
    from safetensors import SafetensorError

    try:
        tensors = _numpy_safetensors().load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"not a safetensors file ({error})", where) from None
    return _piece(tensors, codec, tokens, where)


def _kind(path: Path) -> str:
    if path.suffix not in (".parquet", ".safetensors"):
        raise UserError("the name says neither Parquet nor safetensors", path, "Name it .parquet or .safetensors")
    return path.suffix


def _identity(text: str, where: object) -> dict[str, Any]:
    try:
        identity = json.loads(text)
    except ValueError:
        identity = None
    if not isinstance(identity, dict):
        raise UserError("does not say which cache it was made from", where, "Export it with latentlab-cache export")
    return identity


def _unpacked(codec: Codec, rows: Rows) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Vectors (R, D) as stored and, for int8, their scales (R,)."""
    rows = np.ascontiguousarray(rows)
    if codec.dtype != "int8":
        return rows.view(codec.element), None
    packed = rows.view(codec.element)[:, 0]
    return np.ascontiguousarray(packed["value"]), np.ascontiguousarray(packed["scale"])


def _packed(codec: Codec, vectors: NDArray[Any], scales: NDArray[Any] | None) -> Rows:
    if codec.dtype != "int8":
        return np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), codec.row_bytes)
    packed = np.empty(len(vectors), codec.element)
    packed["value"], packed["scale"] = vectors, scales
    return packed.view(np.uint8).reshape(len(vectors), codec.row_bytes)


def _piece(tensors: dict[str, NDArray[Any]], codec: Codec, tokens: bool, where: object) -> Piece:
    vectors, keys = tensors.get("vectors"), tensors.get("keys")
    scales, counts = tensors.get("scales"), tensors.get("counts")
    value = "int8" if codec.dtype == "int8" else codec.element.name
    good = (
        keys is not None
        and vectors is not None
        and (keys.dtype.name, keys.shape[1:]) == ("uint8", (KEY_BYTES,))
        and (vectors.dtype.name, vectors.shape[1:]) == (value, (codec.dim,))
        and (scales is not None) == (codec.dtype == "int8")
        and (scales is None or (scales.dtype.name, scales.shape) == ("float32", (len(vectors),)))
        and (counts is not None) == tokens
        and (counts is None or (counts.dtype.name, counts.shape) == ("int64", (len(keys),)))
        and (counts is None or not len(counts) or (counts.min() >= 1 and counts.max() <= len(vectors)))
        and len(vectors) == (len(keys) if counts is None else int(counts.sum()))
    )
    if not good or keys is None or vectors is None:
        found = {name: f"{tensor.dtype}{list(tensor.shape)}" for name, tensor in sorted(tensors.items())}
        raise UserError(f"its tensors do not fit a cache of {codec.dtype} vectors of {codec.dim}: {found}", where)
    return keys, _packed(codec, vectors, scales), counts


# ---------------------------------------------------------------- safetensors


def _numpy_safetensors() -> Any:
    import safetensors.numpy

    return safetensors.numpy


def _safetensors(path: Path) -> Any:
    _numpy_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"not a safetensors file ({error})", path) from None


def _write_safetensors(identity: dict[str, Any], codec: Codec, pieces: Iterator[Piece], path: Path) -> int:
    count, data = to_safetensors(identity, codec, pieces)
    path.write_bytes(data)
    return count


def _read_safetensors(path: Path, codec: Codec, tokens: bool) -> Iterator[Piece]:
    with _safetensors(path) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    yield _piece(tensors, codec, tokens, path)


# -------------------------------------------------------------------- Parquet


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise NeedsExtra("pyarrow", "arrow") from None
    return pyarrow


def _parquet(path: Path) -> Any:
    pa = _pyarrow()
    try:
        return pa.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"not a Parquet file ({' '.join(str(error).split())[:120]})", path) from None


def _write_parquet(identity: dict[str, Any], codec: Codec, pieces: Iterator[Piece], path: Path) -> int:
    pa = _pyarrow()
    types = _types(pa, codec, identity["layout"] == "tokens")
    fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
    schema = pa.schema(fields, metadata={IDENTITY: json.dumps(identity, sort_keys=True)})
    total = 0
    # Vectors of trained encoders hardly compress; a dictionary of them would only cost time.
    with pa.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for keys, rows, counts in pieces:
            vectors, scales = _unpacked(codec, rows)
            value = types["vector"].value_type if counts is None else types["vector"].value_type.value_type
            buffers = [None, pa.py_buffer(np.ascontiguousarray(keys))]
            columns = [pa.FixedSizeBinaryArray.from_buffers(types["key"], len(keys), buffers)]
            lists = [pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), value), codec.dim)]
            lists += [] if scales is None else [pa.array(scales)]
            if counts is not None:
                offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
                lists = [pa.ListArray.from_arrays(offsets, flat) for flat in lists]
            columns += [column.cast(types[name]) for name, column in zip(list(types)[1:], lists, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=schema), row_group_size=_ROWS_AT_ONCE)
            total += len(keys)
    return total


def _types(pa: Any, codec: Codec, tokens: bool) -> dict[str, Any]:
    value = {"int8": pa.int8(), "float16": pa.float16(), "float32": pa.float32()}[codec.dtype]
    types = {"vector": pa.list_(value, codec.dim)} | ({"scale": pa.float32()} if codec.dtype == "int8" else {})
    if tokens:
        types = {name: pa.list_(kind) for name, kind in types.items()}
    return {"key": pa.binary(KEY_BYTES)} | types


def _read_parquet(path: Path, codec: Codec, tokens: bool) -> Iterator[Piece]:
    pa = _pyarrow()
    types = _types(pa, codec, tokens)
    with _parquet(path) as file:
        found = {field.name: field.type for field in file.schema_arrow}
        if found != types:
            shown = {name: str(kind) for name, kind in found.items()}
            raise UserError(f"its columns do not fit a cache of {codec.dtype} vectors of {codec.dim}: {shown}", path)
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield _of_batch(batch, codec, tokens, path)
        except pa.ArrowException as error:
            raise UserError(f"is damaged ({' '.join(str(error).split())[:120]})", path) from None


def _of_batch(batch: Any, codec: Codec, tokens: bool, path: Path) -> Piece:
    columns = {field.name: column for field, column in zip(batch.schema, batch.columns, strict=True)}
    if any(column.null_count for column in columns.values()):
        raise UserError("has gaps", path)
    tensors = {"keys": np.frombuffer(b"".join(columns.pop("key").to_pylist()), np.uint8).reshape(-1, KEY_BYTES)}
    if tokens:
        tensors["counts"] = np.diff(columns["vector"].offsets.to_numpy()).astype(np.int64)
        columns = {name: column.flatten() for name, column in columns.items()}
    flat = columns["vector"].flatten().to_numpy(zero_copy_only=False)
    if flat.size % codec.dim:
        raise UserError("has gaps", path)
    tensors["vectors"] = flat.reshape(-1, codec.dim)
    if codec.dtype == "int8":
        tensors["scales"] = columns["scale"].to_numpy(zero_copy_only=False)
    return _piece(tensors, codec, tokens, path)
