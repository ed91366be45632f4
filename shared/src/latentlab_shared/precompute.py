"""Embed a corpus on several devices: each rank writes its own part files, ``merge`` loads them into one cache.

Run it under ``torchrun`` or ``accelerate launch``; the rank comes from ``RANK`` and ``WORLD_SIZE``::

    precompute(texts, encode, "parts", fingerprint, dim=384)   # on every rank
    merge("parts", EmbeddingCache("cache", fingerprint, 384))   # once, when all ranks are done

The distinct texts are cut into parts of equal size; part p belongs to rank p mod the number of ranks. A part counts as
done when a manifest names it with its hash, so a killed rank loses one part at most, and a run may go on with another
number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from latentlab_shared._batches import Encode, encode_all
from latentlab_shared._fingerprint import Fingerprint, KeyMaker, Keys, Text, identity_of
from latentlab_shared._index import compare_identity
from latentlab_shared._portable import from_safetensors, to_safetensors
from latentlab_shared._shards import Codec
from latentlab_shared._store import distinct
from latentlab_shared.embeddings import EmbeddingCache, TokenEmbeddingCache
from latentlab_shared.errors import NeedsExtra, RunFailed, UserError
from latentlab_shared.files import atomic_path, disk_errors

__all__ = ["merge", "precompute", "rank_and_world"]

_PART = re.compile(r"part-\d{6}\.safetensors")
_MANIFEST = re.compile(r"manifest-\d{5}\.json")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks, from the environment that a launcher sets; (0, 1) without one.

    Raises:
        UserError: if ``RANK`` and ``WORLD_SIZE`` are no such pair.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or not world.isdecimal() or int(rank) >= int(world):
        raise UserError(f"RANK={rank} and WORLD_SIZE={world} do not fit", "environment", "Start it with torchrun")
    return int(rank), int(world)


def precompute(
    texts: Sequence[Text],
    encode: Encode,
    out: str | os.PathLike[str],
    fingerprint: Fingerprint,
    *,
    dim: int,
    dtype: str = "float16",
    tokens: bool = False,
    batch_size: int = 64,
    part_rows: int = 1024,
    progress: bool = True,
) -> int:
    """Embed this rank's share of a corpus into part files; parts that are done are skipped.

    Args:
        texts: the whole corpus, the same on every rank; repetitions are embedded once.
        encode: from a list of texts to vectors (n, D), or to n matrices (T_i, D) with ``tokens``.
        out: a folder, or an fsspec URL such as ``s3://bucket/parts``.
        fingerprint: what computes the vectors.
        dim: components of a vector, D.
        dtype: how they are stored, as for ``EmbeddingCache``.
        tokens: one matrix per text instead of one vector.
        batch_size: texts per call of ``encode``; texts of like length come together.
        part_rows: texts per part file: what a kill may cost, and the least that a rank can do.
        progress: show a bar on stderr when that is a terminal.

    Returns:
        How many texts this call embedded.

    Raises:
        UserError: if ``out`` holds parts of another corpus, fingerprint, dim, dtype or part size.
    """
    if part_rows < 1 or not len(texts):
        raise UserError(
            f"{len(texts)} texts in parts of {part_rows}", "precompute", "Give texts and a positive part_rows"
        )
    rank, world = rank_and_world()
    folder, codec = _folder(out), Codec(dim, dtype)
    identity = identity_of(fingerprint, dim, dtype, tokens)
    keys = KeyMaker(fingerprint)(texts)
    chosen = distinct(keys)
    keys = keys[chosen]
    plan = {**identity, "corpus": _digest(keys), "texts": len(keys), "part_rows": part_rows}
    manifests = _manifests(folder)
    for name, manifest in manifests.items():
        # The corpus is hashed by keys, which differ with the fingerprint: say that first.
        for wanted in (identity, plan):
            compare_identity({key: manifest.get(key) for key in wanted}, wanted, folder.where(name))
    done = {part for manifest in manifests.values() for part in manifest["parts"]}.intersection(folder.names())
    mine = f"manifest-{rank:05d}.json"
    parts: dict[str, Any] = manifests.get(mine, {"parts": {}})["parts"]
    if mine not in manifests:  # a rank without work says so too
        folder.write(mine, _json({**plan, "parts": parts}))
    embedded = 0
    for number in range(rank, -(-len(keys) // part_rows), world):
        name = f"part-{number:06d}.safetensors"
        if name in done:
            continue
        span = slice(number * part_rows, (number + 1) * part_rows)
        batch = [texts[i] for i in chosen[span].tolist()]
        rows, counts = encode_all(codec, batch, encode, tokens, batch_size, progress)
        _, data = to_safetensors(identity, codec, iter([(keys[span], rows, counts)]))
        folder.write(name, data)
        parts[name] = {"texts": len(batch), "sha256": hashlib.sha256(data).hexdigest()}
        folder.write(mine, _json({**plan, "parts": parts}))
        embedded += len(batch)
    return embedded


def merge(out: str | os.PathLike[str], cache: EmbeddingCache | TokenEmbeddingCache) -> int:
    """Load the parts of all ranks into a cache, in the order of the corpus; may be repeated.

    Args:
        out: the folder or URL that ``precompute`` wrote to.
        cache: a cache of the same fingerprint, dim and dtype.

    Returns:
        How many texts are new in the cache.

    Raises:
        UserError: if parts are missing or damaged, or were made for other vectors; nothing is loaded then.
    """
    folder = _folder(out)
    manifests = _manifests(folder)
    if not manifests:
        raise UserError("there are no manifests here", folder.where(""), "Run precompute first")
    first = next(iter(manifests.values()))
    wanted = {**cache.identity(), **{key: first.get(key) for key in ("corpus", "texts", "part_rows")}}
    for name, manifest in manifests.items():
        compare_identity({key: manifest.get(key) for key in wanted}, wanted, folder.where(name))
    # A part that was removed and made again may stand in two manifests.
    hashes: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for name, entry in manifest["parts"].items():
            hashes.setdefault(name, set()).add(entry["sha256"])
    texts, part_rows = int(first["texts"]), int(first["part_rows"])
    names = [f"part-{number:06d}.safetensors" for number in range(-(-texts // part_rows))]
    there = set(folder.names())
    missing = [name for name in names if name not in hashes or name not in there]
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise UserError(
            f"{len(missing)} of {len(names)} parts are not done ({shown})", folder.where(""), "Run precompute again"
        )
    for load in (False, True):  # all parts are checked before the first is loaded
        new = 0
        for name in names:
            data = folder.read(name)
            if hashlib.sha256(data).hexdigest() not in hashes[name]:
                fix = "Delete this part and run precompute again"
                raise UserError("the part is damaged (its hash is not the manifest's)", folder.where(name), fix)
            if load:
                new += cache.add_encoded(*from_safetensors(data, cache.codec, cache.tokens, folder.where(name)))
    return new


def _digest(keys: Keys) -> str:
    return hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _manifests(folder: _Folder) -> dict[str, dict[str, Any]]:
    manifests = {}
    for name in folder.names():
        if _MANIFEST.fullmatch(name):
            try:
                manifest = json.loads(folder.read(name))
                good = all(
                    _PART.fullmatch(part) and isinstance(entry["sha256"], str)
                    for part, entry in manifest["parts"].items()
                ) and all(type(manifest[key]) is int and manifest[key] > 0 for key in ("texts", "part_rows"))
            except (ValueError, TypeError, KeyError, AttributeError):
                good = False
            if not good or not manifest["part_rows"]:
                raise UserError(
                    "not a manifest of precompute", folder.where(name), "Remove it and run precompute again"
                )
            manifests[name] = manifest
    return manifests


# --------------------------------------------------------------------- folders


class _Folder(Protocol):
    def where(self, name: str) -> str:
        """The full name, for messages."""

    def names(self) -> list[str]:
        """Names of the files, sorted."""

    def read(self, name: str) -> bytes:
        """The content of a file."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""


def _folder(out: str | os.PathLike[str]) -> _Folder:
    return _Remote(out) if isinstance(out, str) and "://" in out else _Local(Path(out))


class _Local:
    def __init__(self, path: Path) -> None:
        self.path = path

    def where(self, name: str) -> str:
        return str(self.path / name)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", self.where(name)) from None

    def write(self, name: str, data: bytes) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_bytes(data)


class _Remote:
    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise NeedsExtra("fsspec", "remote") from None
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"no file system for this URL ({error})", url) from None
        self.url = url.rstrip("/")

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def names(self) -> list[str]:
        with self._errors(""):
            if not self.files.isdir(self.root):
                return []
            self.files.invalidate_cache()  # other ranks write here too
            return sorted(path.rsplit("/", 1)[-1] for path in self.files.ls(self.root, detail=False))

    def read(self, name: str) -> bytes:
        with self._errors(name):
            return bytes(self.files.cat_file(f"{self.root}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        temporary = f"{self.root}/.{name}.{uuid.uuid4().hex}.tmp"
        with self._errors(name):
            self.files.makedirs(self.root, exist_ok=True)
            self.files.pipe_file(temporary, data)
            self.files.mv(temporary, f"{self.root}/{name}")

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            with disk_errors(Path(self.where(name))):
                yield
        except OSError as error:
            raise RunFailed(f"the file system failed ({error})", self.where(name), "Run it again to go on") from error
