"""Articles → rows of token ids, in memory or in memory-mapped files keyed by what they were made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nrms.config import ModelConfig
from nrms.data.types import Ints, News, TokenTable
from nrms.data.vocabulary import Vocabulary

_CHUNK = 4096


def tokenise(news: Sequence[News], vocabulary: Vocabulary, config: ModelConfig) -> tuple[Ints, Ints]:
    """Token ids of articles.

    Args:
        news: N articles.
        vocabulary: whose ids.
        config: names the views and their lengths.

    Returns:
        Tokens (N, T), the columns of all views side by side, and lengths, (N,) for titles alone or (N, views).
    """
    tokens = np.zeros((len(news), sum(config.widths)), np.int32)
    lengths = np.zeros((len(news), len(config.views)), np.int32)
    start = 0
    for index, (view, width) in enumerate(zip(config.views, config.widths, strict=True)):
        for row, ids in enumerate(_encode_view(news, view, vocabulary, width)):
            tokens[row, start : start + len(ids)] = ids
            lengths[row, index] = len(ids)
        start += width
    return tokens, lengths[:, 0] if len(config.views) == 1 else lengths


def _encode_view(news: Sequence[News], view: str, vocabulary: Vocabulary, width: int) -> list[list[int]]:
    if view == "category":
        # One token per topic: of a topic of several words the first decides.
        return [[ids[0] for ids in vocabulary.encode([n.category, n.subcategory], 1) if ids] for n in news]
    return vocabulary.encode([n.title if view == "title" else n.abstract for n in news], width)


def token_table(news: Iterable[News], vocabulary: Vocabulary, config: ModelConfig) -> TokenTable:
    """The rows of a whole catalogue, row 0 the padding; articles take rows 1, 2, ... in their order."""
    ids: list[str] = []
    blocks = [_padding_row(config)]
    chunk: list[News] = []
    for article in news:
        ids.append(article.id)
        chunk.append(article)
        if len(chunk) == _CHUNK:
            blocks.append(tokenise(chunk, vocabulary, config))
            chunk = []
    blocks.append(tokenise(chunk, vocabulary, config))
    tokens, lengths = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return TokenTable(tokens, lengths, {identifier: row for row, identifier in enumerate(ids, start=1)})


def _padding_row(config: ModelConfig) -> tuple[Ints, Ints]:
    shape = (1,) if len(config.views) == 1 else (1, len(config.views))
    return np.zeros((1, sum(config.widths)), np.int32), np.zeros(shape, np.int32)
