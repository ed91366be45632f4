"""Examples → vectors, through a cache: every text of an article is embedded once, ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, overload

import numpy as np

from rsr_net.data.types import ArticleVectors, Example, Floats

if TYPE_CHECKING:
    from latentlab_shared.embeddings import EmbeddingCache
    from latentlab_shared.encoders import TextEncoder


def embed_examples(
    examples: Iterable[Example],
    encoder: TextEncoder,
    cache: EmbeddingCache | None = None,
    *,
    group: int = 16,
    advance: Callable[[float], None] = lambda _: None,
) -> Iterator[ArticleVectors]:
    """Embed articles, their leads, their sentences and their summaries.

    The texts of ``group`` articles go to the encoder together, each distinct text once. With a cache a killed run loses
    at most one group, and the next one embeds only what is missing.

    Args:
        examples: articles; those without highlights get no target.
        encoder: text → vector of length D.
        cache: opened with the encoder's fingerprint.
        group: articles at a time.
        advance: told the number of articles done.
    """
    stream = iter(examples)
    while batch := list(islice(stream, group)):
        texts = list(dict.fromkeys(text for example in batch for text in _texts(example)))
        vectors = encode(texts, encoder, cache)  # (N, D)
        yield from _assemble(batch, {text: number for number, text in enumerate(texts)}, vectors)
        advance(len(batch))


class CachedArticles(Sequence[ArticleVectors]):
    """The vectors of embedded articles, read from the cache when they are asked for.

    For training sets that do not fit into memory: all of CNN/DailyMail has some 30 GB of sentence vectors.

    Args:
        examples: articles whose texts are all in the cache (``embed_examples`` puts them there).
        cache: where the vectors are.
    """

    def __init__(self, examples: Sequence[Example], cache: EmbeddingCache) -> None:
        self._examples, self._cache = examples, cache

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, at: int) -> ArticleVectors: ...

    @overload
    def __getitem__(self, at: slice) -> list[ArticleVectors]: ...

    def __getitem__(self, at: int | slice) -> ArticleVectors | list[ArticleVectors]:
        """One article, or several with one look into the cache."""
        wanted = self._examples[at] if isinstance(at, slice) else [self._examples[at]]
        texts = list(dict.fromkeys(text for example in wanted for text in _texts(example)))
        vectors = np.asarray(self._cache.as_matrix(texts), dtype=np.float32)  # (N, D)
        found = list(_assemble(wanted, {text: number for number, text in enumerate(texts)}, vectors))
        return found if isinstance(at, slice) else found[0]


def _assemble(examples: Sequence[Example], row: dict[str, int], vectors: Floats) -> Iterator[ArticleVectors]:
    """Articles from the vectors (N, D) of their texts; ``row`` says which is whose."""
    for example in examples:
        yield ArticleVectors(
            id=example.id,
            doc=vectors[row[example.article]],
            lead=vectors[row[example.lead]],
            sentences=vectors[[row[sentence] for sentence in example.sentences]],
            target=vectors[row[example.summary]] if example.highlights else None,
        )


def encode(texts: Sequence[str], encoder: TextEncoder, cache: EmbeddingCache | None = None) -> Floats:
    """Vectors of some texts, (N, D), in their order; from the cache where it has them."""
    if cache is None:
        return np.asarray(encoder.encode(list(texts)), dtype=np.float32)
    return np.asarray(cache.get_or_compute(list(texts), encoder.encode, progress=False), dtype=np.float32)


def _texts(example: Example) -> Iterator[str]:
    yield example.article
    yield example.lead
    yield from example.sentences
    if example.highlights:
        yield example.summary
