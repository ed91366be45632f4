"""An alignment checked against every pair of cuts there is: slow and plain. For the tests and the benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from refrag.model.tokenizer.alignment import Alignment
from refrag.model.tokenizer.spans import Ruler, TokenSpans

HARD = [
    "",
    " ",
    "\n\n\t",
    "  leading and trailing  ",
    "a  b   c",
    "non\u00a0breaking\u2028line\r\nend",
    "naïve",
    "nai\u0308ve",
    "e\u0301 é Å ﬁ ½ ① ß İ ǅ",
    "日本語の文章",
    "한국어 문장",
    "العربية हिन्दी ไทย",
    "😀 👩‍👩‍👧‍👦 🇫🇷 1️⃣ 👍🏽",
    "zero\u200bwidth \ufeffbom soft\u00adhyphen \x00 \x10",
    "a lone \ufffd here",
    "\ufffd\ufffd",
    "<s> [CLS] ##a ▁ Ġ <0x41> </doc> [UNK] <|endoftext|>",
    "it isn 't , is it ? n't",
    "ALL CAPS and MiXeD",
    "x" * 60,
    "don't  stop\n\n\nnow",
    "1234567890.12345e-10",
    "☃ unknown ☃☃ snow",
    "aaaa☃aaaa aaaa aaaa",
]
LETTERS = "ab zAÉé\u0301ß½ﬁ日한İ☃😀\u200d👩\u200b\ufeff\u00ad\x00\ufffd\n\t\u00a0\u2028▁Ġ<>/#[].,'19"


class Faults(NamedTuple):
    """What is wrong with an alignment.

    Attributes:
        spurious: anchors at which no one position separates what stands before from what stands behind, on both sides;
            or that do not rise, or state a wrong position.
        missing: agreements that are not anchors though they could be: exact ones, and, unless strict, any others.
    """

    spurious: int
    missing: int


def faults(found: Alignment, ruler: Ruler, *, strict: bool) -> Faults:
    """Count an alignment's faults, in time cubic in the text."""
    blanks = {p for p in range(ruler.length) if ruler.next_solid[p] != p}
    enc, dec = list(_cuts(found.encoder, ruler, blanks)), list(_cuts(found.decoder, ruler, blanks))
    agreed = _exact(found, ruler)
    anchors = found.anchors
    spurious = int(not anchors or anchors[0][:2] != (0, 0))
    spurious += sum(a.i >= b.i or a.j >= b.j or a.char_lo > b.char_lo for a, b in itertools.pairwise(anchors))
    spurious += sum(not lo <= hi or not set(range(lo, hi + 1)) <= enc[i] & dec[j] for i, j, lo, hi in anchors)
    if strict:
        spurious += sum(not any(i in rows and j in columns for rows, columns in agreed) for i, j in found.pairs)
    used = dict(found.pairs)
    missing = sum(min(len(rows), len(columns)) - sum(used.get(i) in columns for i in rows) for rows, columns in agreed)
    if not strict:
        fences = [*found.pairs, (len(enc), len(dec))]
        missing += sum(
            bool(enc[i] & dec[j])
            for (i0, j0), (i1, j1) in itertools.pairwise(fences)
            for i in range(i0 + 1, i1)
            for j in range(j0 + 1, j1)
        )
    return Faults(spurious, missing)


def _cuts(spans: TokenSpans, ruler: Ruler, ignored: set[int]) -> Iterator[set[int]]:
    """For each number of tokens: the positions that separate them from the rest without splitting anything."""
    covered = [set(range(s, e)) - ignored for s, e in zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)]
    for i in range(len(covered) + 1):
        before, after = set[int]().union(*covered[:i]), set[int]().union(*covered[i:])
        yield set(range(max(before, default=-1) + 1, min(after, default=ruler.length) + 1))


def _exact(found: Alignment, ruler: Ruler) -> list[tuple[list[int], list[int]]]:
    """Numbers of tokens with which both sides have covered the text up to the same position, and split nothing."""
    ends: dict[int, tuple[list[int], list[int]]] = {}
    for side, spans in enumerate((found.encoder, found.decoder)):
        for i, allowed in enumerate(_cuts(spans, ruler, set())):
            position = max([0, *spans.ends[:i].tolist()])
            if position in allowed:
                ends.setdefault(position, ([], []))[side].append(i)
    return [sides for sides in ends.values() if all(sides)]
