"""What makes a vector what it is, and the key of a text under it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError

KEY_BYTES = 16
FORMAT = 1
Keys = NDArray[np.uint8]
"""Keys, (N, 16)."""

Text = str | Sequence[int]
"""What is embedded: a text, or its token ids."""


@dataclass(frozen=True)
class Fingerprint:
    """Everything that changes a vector. Two caches with equal fingerprints hold equal vectors for equal texts.

    Args:
        encoder: name of the encoder, such as ``sentence-transformers/all-MiniLM-L6-v2``.
        weights_sha256: SHA-256 of the weights; a name or revision can come to mean other weights.
        revision: where the weights came from, for people.
        tokenizer_sha256: SHA-256 of the tokenizer's file; empty if there is none.
        max_length: most tokens that the encoder reads at once; 0 for no limit.
        window: what becomes of longer texts: ``truncate``, or such as ``stride:384``.
        pooling: from token states to one vector: ``mean``, ``cls``, ``none`` ...
        layer: index of the layer that is read; −1 is the last.
        normalisation: what is done to the vector at the end: ``none`` or ``l2``.
        dtype: number type in which the encoder computes.
        code_version: changed when the encoder's code changes a vector.
    """

    encoder: str
    weights_sha256: str
    revision: str = ""
    tokenizer_sha256: str = ""
    max_length: int = 512
    window: str = "truncate"
    pooling: str = "mean"
    layer: int = -1
    normalisation: str = "none"
    dtype: str = "float32"
    code_version: str = "1"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), int if field.type == "int" else str
            if type(value) is not wanted:
                raise UserError(f"{value!r} is not {wanted.__name__}", f"Fingerprint.{field.name}")
        if not self.encoder:
            raise UserError("the encoder has no name", "Fingerprint.encoder")
        for name, value in (("weights_sha256", self.weights_sha256), ("tokenizer_sha256", self.tokenizer_sha256)):
            if (value or name == "weights_sha256") and not _is_sha256(value):
                raise UserError(
                    f"{value!r} is not a SHA-256",
                    f"Fingerprint.{name}",
                    "Give the 64 hexadecimal digits of the file's hash",
                )

    @classmethod
    def from_dict(cls, fields: object) -> Self:
        """A fingerprint from its fields, as ``as_dict`` gives them.

        Raises:
            UserError: if a field is unknown, missing or of another type.
        """
        if not isinstance(fields, dict):
            raise UserError("not a fingerprint", "fingerprint", "Give an object with the fields of Fingerprint")
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            wrong = ", ".join(sorted(known.symmetric_difference(map(str, fields))))
            raise UserError(f"fields are missing or unknown: {wrong}", "fingerprint")
        return cls(**fields)

    def as_dict(self) -> dict[str, str | int]:
        """The fields, by name."""
        return dataclasses.asdict(self)

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON, 32 bytes."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).digest()


def _is_sha256(value: str) -> bool:
    return len(value) == 64 and set(value) <= set("0123456789abcdef")


def identity_of(fingerprint: Fingerprint, dim: int, dtype: str, tokens: bool) -> dict[str, Any]:
    """What a cache, an exported file or a part holds; equal identities can be mixed."""
    return {
        "format": FORMAT,
        "layout": "tokens" if tokens else "vectors",
        "dim": dim,
        "dtype": dtype,
        "fingerprint": fingerprint.as_dict(),
    }


class KeyMaker:
    """From texts to keys: BLAKE2b-128 of the fingerprint's digest and the text in Unicode NFC."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        digest = fingerprint.digest()
        # The byte after the digest keeps a text and token ids of the same bytes apart.
        self._of_text = hashlib.blake2b(digest + b"|", digest_size=KEY_BYTES)
        self._of_ids = hashlib.blake2b(digest + b"#", digest_size=KEY_BYTES)

    def __call__(self, texts: Sequence[Text]) -> Keys:
        """Keys of N texts, (N, 16).

        Raises:
            UserError: if one is neither a text nor a sequence of integers.
        """
        if isinstance(texts, str):
            raise UserError("one text was given where many are expected", "texts", "Give a list of texts")
        new, digests = self._of_text.copy, []
        for text in texts:
            if isinstance(text, str):
                state = new()
                state.update(text.encode() if text.isascii() else _nfc(text))
            else:
                state = self._of_ids.copy()
                state.update(_ids(text))
            digests.append(state.digest())
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, KEY_BYTES)


def _nfc(text: str) -> bytes:
    try:
        return unicodedata.normalize("NFC", text).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text has an unpaired surrogate at character {error.start}", repr(text[:40])) from None


def _ids(ids: Sequence[int]) -> bytes:
    try:
        numbers = np.asarray(ids)
    except ValueError:
        numbers = np.empty(())  # ragged
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
        raise UserError(f"{type(ids).__name__} is neither a text nor token ids", "texts", "Give strings or integers")
    if numbers.dtype.kind == "u" and len(numbers) and numbers.max() > np.iinfo(np.int64).max:
        raise UserError(f"{numbers.max()} is no token id", "texts", "Give 64-bit signed integers")
    return numbers.astype("<i8").tobytes()
