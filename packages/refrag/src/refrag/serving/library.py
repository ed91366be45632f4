"""Passages of a folder, a text file or JSON lines, and the search for those that a question needs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from refrag.data.lines import read_rows
from refrag.model.documents import Doc

Retriever = Literal["bm25", "dense"]
PASSAGE = 1_000  # characters, about; a passage ends where a sentence or a paragraph does
_TEXTS = (".txt", ".md", ".rst")
_ROWS = (".jsonl", ".jsonl.gz")
_CUT = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Passage:
    """A stretch of a source.

    Attributes:
        doc: what the model reads; its id is the passage's number in the library.
        source: the file (and line) it is from.
        start: first character in the source's text.
    """

    doc: Doc
    source: str
    start: int


@dataclass(frozen=True)
class Found:
    """A passage and how well it fits: BM25's score, or a cosine."""

    passage: Passage
    score: float


class Library:
    """Passages that can be searched.

    Args:
        retriever: "bm25" (words), or "dense" (vectors of an encoder).
        encoder: of dense retrieval: a name for ``latentlab_shared.encoders.load_encoder``.
        cache: a folder that keeps vectors of passages; None computes them anew.

    Raises:
        UserError: for an unknown retriever or encoder.
    """

    def __init__(self, retriever: Retriever = "bm25", encoder: str = "minilm", cache: Path | None = None) -> None:
        if retriever not in get_args(Retriever):
            raise UserError(f"{retriever!r} finds nothing", "retriever", "Use bm25 or dense")
        self.passages: list[Passage] = []
        self._index: _Words | _Vectors = _Words() if retriever == "bm25" else _Vectors(encoder, cache)

    def __len__(self) -> int:
        return len(self.passages)

    def add(self, texts: Iterable[tuple[str, str | None, str]]) -> int:
        """Cut texts into passages and make them findable; how many there were.

        Args:
            texts: text, title and source of each.
        """
        before = len(self.passages)
        for text, title, source in texts:
            for start, end in cut(text):
                name = str(len(self.passages) + 1)
                self.passages.append(Passage(Doc(name, text[start:end], title), source, start))
        if len(self.passages) > before:
            self._index.build([f"{p.doc.title or ''} {p.doc.text}" for p in self.passages])
        return len(self.passages) - before

    def add_path(self, path: Path) -> int:
        """Add a folder, a text file or JSON lines; see ``read_sources``."""
        return self.add(read_sources(path))

    def add_docs(self, docs: Sequence[Doc]) -> None:
        """Add documents whole, with their own ids."""
        self.passages += [Passage(doc, doc.title or f"document {doc.id}", 0) for doc in docs]
        self._index.build([f"{p.doc.title or ''} {p.doc.text}" for p in self.passages])

    def search(self, query: str, top: int) -> list[Found]:
        """The passages that fit a query best, best first; those that have nothing of it are left out."""
        if not self.passages:
            return []
        scores = self._index.scores(query)
        order = np.argsort(-scores, kind="stable")[:top]
        return [Found(self.passages[n], float(scores[n])) for n in order.tolist() if scores[n] > 0]


class _Words:
    """BM25 (Lucene's form) over words without their case."""

    def __init__(self) -> None:
        self._bm25: Any = None
        self._count = 0

    def build(self, texts: Sequence[str]) -> None:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it would talk wherever logging is set up, as by Hydra

        self._count = len(texts)
        self._bm25 = None
        words = [_words(text) for text in texts]
        if any(words):
            self._bm25 = bm25s.BM25(method="lucene")
            self._bm25.index(words, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        known = [] if self._bm25 is None else [word for word in _words(query) if word in self._bm25.vocab_dict]
        if not known:
            return np.zeros(self._count, np.float32)
        found: NDArray[np.float32] = np.asarray(self._bm25.get_scores(known), np.float32)
        return found


class _Vectors:
    """Cosines of an encoder's vectors, which the shared cache keeps."""

    def __init__(self, encoder: str, cache: Path | None) -> None:
        from latentlab_shared.embeddings import EmbeddingCache
        from refrag.model.tokenizer.loading import text_encoder

        self._encoder = text_encoder(encoder)
        self._cache = None
        if cache is not None:
            self._cache = EmbeddingCache(cache, self._encoder.fingerprint, self._encoder.dim)
        self._rows = np.zeros((0, self._encoder.dim), np.float32)

    def build(self, texts: Sequence[str]) -> None:
        if self._cache is None:
            self._rows = _unit(self._encoder.encode(list(texts)))
        else:
            self._rows = _unit(self._cache.get_or_compute(list(texts), self._encoder.encode, progress=False))

    def scores(self, query: str) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._rows @ _unit(self._encoder.encode([query]))[0]
        return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def cut(text: str, size: int = PASSAGE) -> list[tuple[int, int]]:
    """Spans of a text's passages, without blanks at their ends; each at most twice ``size`` characters long."""
    ends = [found.start() for found in _CUT.finditer(text)]
    spans, start = [], 0
    for end in [*ends, len(text)]:
        while end - start > 2 * size:  # a stretch without sentences
            at = text.rfind(" ", start + 1, start + size)
            at = at if at > start else start + size
            spans.append((start, at))
            start = at
        if end - start >= size or end == len(text):
            spans.append((start, end))
            start = end
    trimmed = []
    for first, last in spans:
        part = text[first:last]
        if part.strip():
            trimmed.append((first + len(part) - len(part.lstrip()), first + len(part.rstrip())))
    return trimmed


def read_sources(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Text, title and source of every document: of a folder's .txt, .md, .rst, .jsonl and .jsonl.gz files, or of one.

    A row of JSON lines has ``text`` and, if it likes, ``title`` (or ``id``, which then stands for it).

    Raises:
        UserError: if there is nothing to read, or a file cannot be read; it names the line.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith((*_TEXTS, *_ROWS)))
        if not files:
            raise UserError("no documents here", path, f"Files end in {', '.join((*_TEXTS, *_ROWS))}")
        for file in files:
            yield from _read(file, str(file.relative_to(path)))
    else:
        yield from _read(path, path.name)


def _read(path: Path, name: str) -> Iterator[tuple[str, str | None, str]]:
    if not path.name.endswith(_ROWS):
        try:
            yield path.read_text(encoding="utf-8-sig"), path.stem, name
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text (byte {error.start})", path) from None
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", path) from None
        return
    for where, row in read_rows(path):
        title = row.get("title") or row.get("id")
        if not isinstance(row.get("text"), str):
            raise UserError("no document", where, 'A row is {"text": …}')
        yield row["text"], None if title is None else str(title), f"{name}:{where.rpartition(':')[2]}"
