"""Encoders that need no neural network: hashed words and character n-grams (tiny), and TF-IDF with an SVD (LSA)."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.embeddings import Fingerprint
from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path, read_json, sha256_file, write_json
from latentlab_shared.text import words

Vectors = NDArray[np.float32]

# Part of every fingerprint: raise it with any change that changes a vector.
CODE_VERSION = "1"

# They say little about a text's subject; there is no corpus here from which to learn that.
_FUNCTION_WORDS = frozenset(
    """a about after all also an and any are as at be been but by can could did do does for from had has have he her him
    his how i if in into is it it's its just me more most my no not now of on one only or other our out over said she so
    some such than that the their them then there these they this to up was we were what when where which who will with
    would you your""".split()  # noqa: SIM905
)


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list; a lone string or a non-string is a TypeError, a lone surrogate becomes "?"."""
    if isinstance(texts, (str, bytes)):
        raise TypeError("encode takes a list of texts, not one text; write encode([text])")
    checked = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is {type(text).__name__}, not str")
        checked.append(text.encode("utf-8", "replace").decode("utf-8"))
    return checked


def unit_rows(vectors: NDArray[Any]) -> Vectors:
    """Rows of length one, (N, D) float32; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)


class TinyEncoder:
    """Hashed bag of words and character 3- to 5-grams through a seeded sparse random projection.

    No files, no fitting, no neural network: texts that share words or word parts are near each other, others nearly
    orthogonal. Each feature owns four signed coordinates drawn by a keyed hash (a very sparse random projection), a
    word is the sum of its stem and its n-grams, and a text the sum of its words at ``1 + log(count)``, function words
    at a tenth; rows have length one. Deterministic on every machine.

    Args:
        dim: length of a vector.
        seed: key of the hash.

    Source: Li, Hastie, Church 2006, "Very sparse random projections"; word parts as in Bojanowski et al. 2017.
    """

    _MAX_CACHED_WORDS = 200_000
    _MAX_WORD = 64

    def __init__(self, dim: int = 256, seed: int = 0) -> None:
        if not 8 <= dim <= 65_536:
            raise ValueError("dim must be from 8 to 65536")
        self.dim, self.seed = dim, seed
        self._key = seed.to_bytes(8, "little", signed=True)
        self._words: dict[str, Vectors] = {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, (N, D) float32 of length one; a text without words has the zero vector."""
        texts = check_texts(texts)
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            # Sorted: a sum of floats depends on its order, and the same words must give the same bits.
            for word, count in sorted(Counter(words(text, lower=True)).items()):
                row += (0.1 if word in _FUNCTION_WORDS else 1.0) * (1 + math.log(count)) * self._word(word)
        return unit_rows(out)

    def _word(self, word: str) -> Vectors:
        """The vector of a word: its stem, and its n-grams at half the energy, (D,)."""
        known = self._words.get(word)
        if known is not None:
            return known
        vector = np.zeros(self.dim, dtype=np.float32)
        self._add(vector, "w" + _stem(word), 1.0)
        marked = f"<{word[: self._MAX_WORD]}>"
        grams = {marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)}
        for gram in sorted(grams):
            self._add(vector, "g" + gram, 0.7 / math.sqrt(len(grams)))
        if len(self._words) >= self._MAX_CACHED_WORDS:
            self._words.clear()
        self._words[word] = vector
        return vector

    def _add(self, vector: Vectors, feature: str, weight: float) -> None:
        digest = hashlib.blake2b(feature.encode(), digest_size=16, key=self._key).digest()
        for at in range(0, 16, 4):
            bits = int.from_bytes(digest[at : at + 4], "little")
            vector[(bits >> 1) % self.dim] += weight if bits & 1 else -weight

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides the numbers; the "weights" are a hash function and its seed."""
        rule = hashlib.sha256(f"blake2b-4-of-{self.dim}-seed-{self.seed}".encode()).hexdigest()
        return _fingerprint(f"tiny-{self.dim}", rule, True)


def _stem(word: str) -> str:
    """A word without a common English ending: "running" and "runs" become "run"."""
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            stem = word.removesuffix(ending)
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz" else stem
    return word


class LsaEncoder:
    """Latent semantic analysis: sublinear TF-IDF, then a truncated SVD, both fitted on a training corpus.

    Fit it on training texts only: a vocabulary or IDF that has seen the test texts is a leak.

    Args:
        vocabulary: the words, in the order of the columns (V of them).
        idf: their inverse document frequencies, (V,) float32.
        components: right singular vectors, (D, V) float32.
        normalise: give rows the length one.

    Source: Deerwester et al. 1990.
    """

    _FORMAT = 1

    def __init__(self, vocabulary: Sequence[str], idf: Vectors, components: Vectors, normalise: bool = True) -> None:
        if idf.shape != (len(vocabulary),) or components.ndim != 2 or components.shape[1] != len(vocabulary):
            raise ValueError("vocabulary, idf and components do not belong together")
        self.vocabulary, self.normalise = list(vocabulary), normalise
        self.idf, self.components = idf.astype(np.float32), np.ascontiguousarray(components, dtype=np.float32)
        self._vectorizer = _vectorizer(vocabulary=self.vocabulary)
        self._vectorizer.idf_ = self.idf
        self._sha256 = self._hash()

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        dim: int = 256,
        *,
        max_features: int = 60_000,
        seed: int = 0,
        normalise: bool = True,
    ) -> LsaEncoder:
        """Fit on a training corpus.

        Args:
            texts: training texts.
            dim: length of a vector; below the number of texts and of distinct words.
            max_features: the most frequent words to keep.
            seed: of the randomised SVD.
            normalise: give rows the length one.

        Raises:
            UserError: the corpus is too small for ``dim``, or holds no words.
        """
        from sklearn.decomposition import TruncatedSVD

        texts = check_texts(texts)
        vectorizer = _vectorizer(max_features=max_features)
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError:
            raise UserError("the training texts hold no words", "LSA") from None
        limit = min(counts.shape) - 1
        if not 1 <= dim <= limit:
            what = f"{counts.shape[0]} texts with {counts.shape[1]} distinct words cannot fill {dim} dimensions"
            raise UserError(what, "LSA", f"Use at most {limit} dimensions, or more texts")
        svd = TruncatedSVD(dim, n_iter=7, random_state=seed).fit(counts)
        components = svd.components_.astype(np.float32)
        return cls([str(w) for w in vectorizer.get_feature_names_out()], vectorizer.idf_, components, normalise)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.components.shape[0])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, (N, D) float32; a text without a known word has the zero vector."""
        texts = check_texts(texts)
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = np.asarray(self._vectorizer.transform(texts) @ self.components.T, dtype=np.float32)
        return unit_rows(vectors) if self.normalise else vectors

    def save(self, folder: Path) -> None:
        """Write ``lsa.safetensors`` and then ``lsa.json``, which holds the former's hash; never a pickle."""
        from safetensors.numpy import save_file

        weights = Path(folder) / "lsa.safetensors"
        with atomic_path(weights) as temporary:
            save_file({"idf": self.idf, "components": self.components}, str(temporary))
        about = {
            "format": self._FORMAT,
            "normalise": self.normalise,
            "safetensors_sha256": sha256_file(weights),
            "vocabulary": self.vocabulary,
        }
        write_json(Path(folder) / "lsa.json", about)

    @classmethod
    def load(cls, folder: Path) -> LsaEncoder:
        """Read what ``save`` wrote.

        Raises:
            UserError: a file is missing, damaged, of another format, or not of the same save.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        about, weights = read_json(Path(folder) / "lsa.json"), Path(folder) / "lsa.safetensors"
        if not isinstance(about, dict) or about.get("format") != cls._FORMAT:
            raise UserError("not an LSA encoder of a format this version reads", Path(folder) / "lsa.json")
        if not weights.is_file() or sha256_file(weights) != about.get("safetensors_sha256"):
            raise UserError("the weights are missing or do not belong to lsa.json", weights, "Fit the encoder again")
        try:
            tensors = load_file(str(weights))
            vocabulary, normalise = [str(word) for word in about["vocabulary"]], bool(about["normalise"])
            return cls(vocabulary, tensors["idf"], tensors["components"], normalise)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"damaged LSA encoder ({error})", folder, "Fit the encoder again") from None

    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps([self.vocabulary, self.normalise], ensure_ascii=False).encode())
        for array in (self.idf, self.components):
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides the numbers: a hash of the fitted vocabulary, frequencies and components."""
        return _fingerprint(f"lsa-{self.dim}", self._sha256, self.normalise)


def _vectorizer(max_features: int | None = None, vocabulary: list[str] | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, max_features=max_features, vocabulary=vocabulary, dtype=np.float32)


def _fingerprint(encoder: str, weights_sha256: str, normalised: bool) -> Fingerprint:
    """The fingerprint of an encoder that reads whole texts as bags of words."""
    return Fingerprint(
        encoder=encoder,
        weights_sha256=weights_sha256,
        max_length=0,
        window="whole",
        pooling="bag",
        layer=0,
        normalisation="l2" if normalised else "none",
        dtype="float32",
        code_version=CODE_VERSION,
    )
