"""Aligning the tokens of two tokenizers over one text, in time linear in its length.

Between two tokens of one side a cut is *clean* if it splits no token and no character. It may lie anywhere from the end
of what is covered so far to the start of what comes: an interval, wider than a point where blanks or dropped characters
stand between. Two cuts, one of each side, are an **anchor** if their intervals meet: the first ``i`` encoder tokens and
the first ``j`` decoder tokens then cover the same text. Nothing is ever decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from refrag.model.tokenizer.spans import Ints, Ruler, TokenSpans, Unit, token_spans


class Anchor(NamedTuple):
    """``i`` encoder and ``j`` decoder tokens cover the same text: both can be cut at any of char_lo … char_hi."""

    i: int
    j: int
    char_lo: int
    char_hi: int


class AlignedChunk(NamedTuple):
    """Encoder tokens i0 … i1, decoder tokens j0 … j1 and the text start … end between two neighbouring anchors.

    Blanks between two chunks belong to the second.
    """

    i0: int
    i1: int
    j0: int
    j1: int
    start: int
    end: int


@dataclass(frozen=True)
class Alignment:
    """Both tokenizations of a text, and where they agree.

    Attributes:
        encoder: M tokens with their positions.
        decoder: N tokens with their positions.
        table: an ``Anchor`` per row, strictly rising in i and in j, (A, 4).
    """

    encoder: TokenSpans
    decoder: TokenSpans
    table: Ints

    @property
    def anchors(self) -> list[Anchor]:
        """The anchors, in order; the first is (0, 0)."""
        return [Anchor(*row) for row in self.table.tolist()]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The anchors as (i, j)."""
        return [(i, j) for i, j, _, _ in self.table.tolist()]

    def chunks(self) -> Iterator[AlignedChunk]:
        """What lies between neighbouring anchors; each has tokens on both sides."""
        rows = self.table.tolist()
        for n, ((i0, j0, start, _), (i1, j1, end, last)) in enumerate(zip(rows, rows[1:], strict=False), start=2):
            yield AlignedChunk(i0, i1, j0, j1, start, last if n == len(rows) else end)


def align(
    text: str,
    encoder_tokenizer: PreTrainedTokenizerBase,
    decoder_tokenizer: PreTrainedTokenizerBase,
    *,
    unit: Unit = "char",
    strict: bool = False,
) -> Alignment:
    """Find every place where both tokenizers cut a text.

    Args:
        text: any text.
        encoder_tokenizer: fast or slow, of any family; no special tokens are added.
        decoder_tokenizer: the same.
        unit: positions are characters, or bytes of UTF-8; with bytes, byte-level tokenizers also agree inside a
            character.
        strict: both sides must have covered the text up to exactly the same position, which is what the seed's equal
            prefixes mean. Otherwise blanks and dropped characters at a cut may be on either side of it.

    Returns:
        The anchors; the strict ones are always among them.

    Raises:
        UserError: if the text holds half a surrogate pair.

    Source: the seed's Problem 1, over positions in place of decoded prefixes.
    """
    ruler = Ruler.of(text, unit)
    encoder = token_spans(text, encoder_tokenizer, ruler)
    decoder = token_spans(text, decoder_tokenizer, ruler)
    return Alignment(encoder, decoder, anchors_of(encoder, decoder, ruler, strict=strict))


def anchors_of(encoder: TokenSpans, decoder: TokenSpans, ruler: Ruler, *, strict: bool = False) -> Ints:
    """The anchors of two tokenizations of the text that ``ruler`` measured, (A, 4); O(length + M + N).

    Exact agreements come first; between them, cuts whose intervals meet when blanks are left aside are paired from left
    to right. Where a run of cuts has no text between them, blanks belong to what follows.
    """
    cuts_e, cuts_d = _clean_cuts(encoder.starts, encoder.ends, ruler), _clean_cuts(decoder.starts, decoder.ends, ruler)
    at_e, at_d = _same_place(cuts_e[1], cuts_d[1])
    if strict:
        return _rows(cuts_e, cuts_d, at_e, at_d)
    wide_e = _clean_cuts(*_without_blanks(encoder, ruler), ruler)
    wide_d = _clean_cuts(*_without_blanks(decoder, ruler), ruler)
    exact = cuts_e[1, at_e]
    at_e, at_d = np.searchsorted(wide_e[0], cuts_e[0, at_e]), np.searchsorted(wide_d[0], cuts_d[0, at_d])
    more_e, more_d = _meeting(wide_e, wide_d, at_e, at_d)
    at_e, at_d = np.concatenate([at_e, more_e]), np.concatenate([at_d, more_d])
    order = np.argsort(at_e)
    rows = _rows(wide_e, wide_d, at_e[order], at_d[order])
    # Blanks that both sides have covered lie before the cut.
    known = np.concatenate([exact, np.zeros_like(more_e)])[order]
    rows[:, 2] = np.maximum.accumulate(np.maximum(rows[:, 2], known))
    return rows


def _clean_cuts(starts: Ints, ends: Ints, ruler: Ruler) -> Ints:
    """The clean cuts of one side: number of tokens before it, first and last position it may have, (3, C)."""
    first = np.maximum.accumulate(np.concatenate([[0], ends]))
    last = np.minimum.accumulate(np.concatenate([starts, [ruler.length]])[::-1])[::-1]
    clean = np.flatnonzero(first <= last)
    return np.stack([clean, first[clean], last[clean]])


def _without_blanks(spans: TokenSpans, ruler: Ruler) -> tuple[Ints, Ints]:
    """Spans without the blanks at their ends; a token of blanks only covers nothing and holds up no cut."""
    starts, ends = ruler.next_solid[spans.starts], ruler.last_solid[spans.ends]
    nothing = starts >= ends
    return np.where(nothing, ruler.length, starts), np.where(nothing, 0, ends)


def _same_place(e: Ints, d: Ints) -> tuple[Ints, Ints]:
    """Indices of equal positions of two rising sequences; the n-th of a run meets the n-th of the other's."""
    rank_e = np.arange(len(e)) - np.searchsorted(e, e)
    rank_d = np.arange(len(d)) - np.searchsorted(d, d)
    runs = 1 + max(int(rank_e.max()), int(rank_d.max()))
    _, at_e, at_d = np.intersect1d(e * runs + rank_e, d * runs + rank_d, assume_unique=True, return_indices=True)
    return at_e, at_d


def _meeting(e: Ints, d: Ints, fixed_e: Ints, fixed_d: Ints) -> tuple[Ints, Ints]:
    """Pair the cuts between those already fixed whose intervals meet, from left to right."""
    free_e, free_d = np.ones(e.shape[1], bool), np.ones(d.shape[1], bool)
    free_e[fixed_e] = free_d[fixed_d] = False
    left_e, left_d = np.flatnonzero(free_e), np.flatnonzero(free_d)
    # Cuts meet only if as many fixed anchors stand before one as before the other.
    rows_e = np.stack([np.searchsorted(fixed_e, left_e), e[1, left_e], e[2, left_e], left_e], axis=1).tolist()
    rows_d = np.stack([np.searchsorted(fixed_d, left_d), d[1, left_d], d[2, left_d], left_d], axis=1).tolist()
    met_e, met_d = [], []
    p = q = 0
    while p < len(rows_e) and q < len(rows_d):
        part_e, first_e, last_e, index_e = rows_e[p]
        part_d, first_d, last_d, index_d = rows_d[q]
        if (part_e, last_e) < (part_d, first_d):
            p += 1
        elif (part_d, last_d) < (part_e, first_e):
            q += 1
        else:
            met_e.append(index_e)
            met_d.append(index_d)
            p, q = p + 1, q + 1
    return np.array(met_e, np.int64), np.array(met_d, np.int64)


def _rows(e: Ints, d: Ints, at_e: Ints, at_d: Ints) -> Ints:
    """Anchors from pairs of cuts, (A, 4)."""
    e, d = e[:, at_e], d[:, at_d]
    return np.stack([e[0], d[0], np.maximum(e[1], d[1]), np.minimum(e[2], d[2])], axis=1)
