"""The seed's alignment by decoded prefixes: slow, exact where decoding is faithful, and the tests' reference.

For real work use ``align``, which reads positions in the source text and never decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refrag.model.tokenizer.alignment import AlignedChunk, Alignment, Anchor, align

__all__ = [
    "AlignedChunk",
    "Alignment",
    "Anchor",
    "align",
    "alignment_pairs_from_dp",
    "compute_dp_matrix",
    "compute_prefix_strings",
    "cost_aware_pairs",
]

Decode = Callable[[list[int]], str]
Pair = tuple[int, int]


def compute_prefix_strings(decode_fn: Decode, ids: Sequence[int]) -> list[str]:
    """The decoded text of every prefix of ``ids``: ``len(ids) + 1`` strings, the first of no tokens.

    Source: the seed, "Dynamic Programming Alignment Algorithm". M + 1 decodes of up to M tokens, O(M²).
    """
    return [decode_fn(list(ids[:i])) for i in range(len(ids) + 1)]


def compute_dp_matrix(
    *, decoder_ids: Sequence[int], encoder_ids: Sequence[int], dec_decode_fn: Decode, enc_decode_fn: Decode
) -> list[list[bool]]:
    """The seed's table: cell (i, j) is True where ``i`` encoder and ``j`` decoder tokens decode to one text.

    Returns:
        ``M + 1`` rows (encoder) of ``N + 1`` columns (decoder).
    """
    rows = compute_prefix_strings(enc_decode_fn, encoder_ids)
    columns = compute_prefix_strings(dec_decode_fn, decoder_ids)
    return [[row == column for column in columns] for row in rows]


def alignment_pairs_from_dp(dp: Sequence[Sequence[bool]]) -> list[Pair]:
    """Anchor pairs (i, j) of a table, strictly rising on both sides: of each row the first that is still free."""
    pairs: list[Pair] = []
    free = 0
    for i, row in enumerate(dp):
        for j in range(free, len(row)):
            if row[j]:
                pairs.append((i, j))
                free = j + 1
                break
    return pairs


def cost_aware_pairs(encoder_prefixes: Sequence[str], decoder_prefixes: Sequence[str]) -> list[Pair]:
    """The seed's "cost-aware alternative": strict anchors, and between them those on a path of least edit cost.

    Where prefixes differ (case, accents, spacing, special tokens), the two texts between neighbouring strict anchors
    are matched letter by letter at least cost (insert, delete or replace: 1); a pair is an anchor when both its
    boundaries lie on that path.

    Args:
        encoder_prefixes: what ``compute_prefix_strings`` gave for the encoder, M + 1 strings.
        decoder_prefixes: the same of the decoder, N + 1 strings.

    Returns:
        Pairs (i, j), strictly rising on both sides; a superset of the strict ones. O(letters²) between anchors.
    """
    strict = alignment_pairs_from_dp([[row == column for column in decoder_prefixes] for row in encoder_prefixes])
    last = (len(encoder_prefixes) - 1, len(decoder_prefixes) - 1)
    stops = [*strict, last] if last[0] > strict[-1][0] and last[1] > strict[-1][1] else strict
    pairs: list[Pair] = []
    i0, j0 = 0, 0
    for i1, j1 in stops:
        text_i, text_j = len(encoder_prefixes[i0]), len(decoder_prefixes[j0])
        path = _cheapest_path(encoder_prefixes[i1][text_i:], decoder_prefixes[j1][text_j:])
        place = {len(decoder_prefixes[j]) - text_j: j for j in reversed(range(j0 + 1, j1))}
        free = j0 + 1
        for i in range(i0 + 1, i1):
            for at in path.get(len(encoder_prefixes[i]) - text_i, ()):
                j = place.get(at, -1)
                if j >= free:
                    pairs.append((i, j))
                    free = j + 1
                    break
        pairs.append((i1, j1))
        i0, j0 = i1, j1
    return pairs


def _cheapest_path(a: str, b: str) -> dict[int, list[int]]:
    """Letters of ``b`` passed at each number of letters of ``a``, along a path of least edit cost."""
    costs = np.zeros((len(a) + 1, len(b) + 1), np.int32)
    costs[:, 0], costs[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    letters = np.array(list(b))
    places = np.arange(len(b) + 1, dtype=np.int32)
    for p, letter in enumerate(a, start=1):
        above = costs[p - 1]
        row = costs[p]
        row[1:] = np.minimum(above[:-1] + (letters != letter), above[1:] + 1)
        row[:] = np.minimum.accumulate(row - places) + places  # what an insertion from the left would cost
    path: dict[int, list[int]] = {}
    p, q = len(a), len(b)
    while True:
        path.setdefault(p, []).insert(0, q)
        if p and q and costs[p, q] == costs[p - 1, q - 1] + (a[p - 1] != b[q - 1]):
            p, q = p - 1, q - 1
        elif p and costs[p, q] == costs[p - 1, q] + 1:
            p -= 1
        elif q:
            q -= 1
        else:
            return path
