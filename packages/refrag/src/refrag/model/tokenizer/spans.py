"""Where tokens stand in the text they came from: (start, end) of each, in characters or in bytes of UTF-8.

A fast tokenizer says it itself. Where it says it in characters and bytes are wanted, and for slow tokenizers, which say
nothing, positions come from the tokens' own strings: exactly, where these spell the text (byte-level, SentencePiece),
else by walking both with case, accents and blanks folded away.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from latentlab_shared.errors import UserError

Unit = Literal["char", "byte"]
Ints = NDArray[np.int64]

_AGREE = 8  # folded letters that must agree before a walk that lost its way goes on
_SEARCH = 64  # letters on both sides together that may be left out to find such a place


@dataclass(frozen=True)
class TokenSpans:
    """M tokens of a text and where they stand in it.

    Attributes:
        ids: of the vocabulary, M.
        starts: first position of each token, (M,); equal to its end where a token stands for no part of the text.
        ends: the position after its last, (M,). Spans may overlap where tokens share a character.
    """

    ids: list[int]
    starts: Ints
    ends: Ints

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Ruler:
    """The positions of one text.

    Attributes:
        text: of n characters.
        unit: what is counted.
        length: n characters, or the bytes of UTF-8.
        next_solid: for each position 0 … length, the first at or after it that is no blank (length if there is none).
        last_solid: for each position, the place after the last character before it that is no blank (0 if none).
        bytes_at: byte at which each character starts, and the number of bytes, (n + 1,).
    """

    text: str
    unit: Unit
    length: int
    next_solid: Ints
    last_solid: Ints
    bytes_at: Ints

    @classmethod
    def of(cls, text: str, unit: Unit = "char") -> Ruler:
        """Measure a text.

        Raises:
            UserError: if it holds half of a surrogate pair, which no tokenizer takes.
        """
        try:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text holds half a surrogate pair (character {error.start})", "text", "Decode it as UTF-8 first"
            ) from None
        sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
        bytes_at = np.concatenate([[0], np.cumsum(sizes)])
        solid = ~_BLANK[np.minimum(codes, len(_BLANK) - 1)]
        if unit == "byte":
            solid = np.repeat(solid, sizes)
        length = len(solid)
        at = np.arange(length, dtype=np.int64)
        following = np.minimum.accumulate(np.where(solid, at, length)[::-1])[::-1]
        before = np.maximum.accumulate(np.where(solid, at + 1, 0))
        return cls(text, unit, length, np.concatenate([following, [length]]), np.concatenate([[0], before]), bytes_at)

    def chars(self, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """Spans of bytes as the characters they touch."""
        first = np.searchsorted(self.bytes_at, starts, side="right") - 1
        return first, np.maximum(first, np.searchsorted(self.bytes_at, ends, side="left"))


def token_spans(text: str, tokenizer: PreTrainedTokenizerBase, ruler: Ruler) -> TokenSpans:
    """Tokenize a text without special tokens and say where each token stands.

    Args:
        text: what ``ruler`` measured; a special token's name in it is text like any other.
        tokenizer: any of transformers', fast or slow; its truncation and padding are left aside.
        ruler: of the text, whose unit decides what positions count.
    """
    if tokenizer.is_fast:
        found = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            split_special_tokens=True,
            verbose=False,
        )
        ids = list(found["input_ids"])
        offsets = np.array(found["offset_mapping"], np.int64).reshape(-1, 2)
        starts, ends = offsets[:, 0], offsets[:, 1]
        if ruler.unit == "char":
            return TokenSpans(ids, starts, ends)
        spelt = _spelt(tokenizer.convert_ids_to_tokens(ids), text)
        return TokenSpans(ids, *(spelt or (ruler.bytes_at[starts], ruler.bytes_at[ends])))

    ids = plain_ids(text, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    spelt = _spelt(tokens, text)
    if spelt:
        return TokenSpans(ids, *(spelt if ruler.unit == "byte" else ruler.chars(*spelt)))
    starts, ends = _walked(tokens, text)
    return (
        TokenSpans(ids, starts, ends)
        if ruler.unit == "char"
        else TokenSpans(ids, ruler.bytes_at[starts], ruler.bytes_at[ends])
    )


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a text as it is: none added, none left out, and no name of a special token taken for one."""
    found = tokenizer.encode(
        text, add_special_tokens=False, truncation=False, padding=False, split_special_tokens=True, verbose=False
    )
    return list(found)


# -- tokens that spell the text ------------------------------------------------------------------------------------


def _spelt(tokens: Sequence[str], text: str) -> tuple[Ints, Ints] | None:
    """Byte spans of tokens whose bytes, joined, are the text's (a blank put before it is allowed); else None."""
    data = text.encode()
    for read in (_byte_level, _sentencepiece):
        pieces = read(tokens)
        whole = b"".join(pieces)
        extra = len(whole) - len(data)
        if extra in (0, 1) and whole == b" " * extra + data:
            ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - extra
            return np.maximum(np.concatenate([[-extra], ends[:-1]]), 0)[: len(pieces)], np.maximum(ends, 0)
    return None


def _byte_level(tokens: Iterable[str]) -> list[bytes]:
    """Tokens in GPT-2's alphabet, one letter per byte; empty if one is not."""
    try:
        return [token.translate(_LETTER_BYTES).encode("latin-1") for token in tokens]
    except UnicodeEncodeError:
        return []


def _sentencepiece(tokens: Iterable[str]) -> list[bytes]:
    """Tokens in SentencePiece's spelling: ``▁`` for a blank, ``<0xF0>`` for a byte."""
    return [
        bytes([int(token[3:5], 16)]) if token in _BYTE_TOKENS else token.replace("▁", " ").encode() for token in tokens
    ]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """What each token of a vocabulary adds to a text, in UTF-8; nothing for special tokens.

    Of WordPiece, a token that opens a word brings the blank before it.
    """
    size = len(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
    special = set(tokenizer.all_special_ids)
    spelling = [token for n, token in enumerate(tokens) if n not in special and token is not None]
    if any(token.startswith("##") and len(token) > 2 for token in spelling) and not any("▁" in t for t in spelling):
        pieces = [token[2:].encode() if token.startswith("##") else b" " + token.encode() for token in tokens]
    elif len(_byte_level(spelling)) == len(spelling):
        pieces = [b"".join(_byte_level([token])) for token in tokens]
    else:
        pieces = _sentencepiece(tokens)
    return [b"" if n in special else piece for n, piece in enumerate(pieces)]


# -- tokens that do not -----------------------------------------------------------------------------------------------


def _walked(tokens: Sequence[str], text: str) -> tuple[Ints, Ints]:
    """Character spans of tokens that lost case, accents or blanks, or are unknown.

    Folded letters are matched from left to right. What does not match is given, whole, to all tokens that stand there:
    no boundary between them is then taken for known. If text or tokens are left over at the end, the walk may have
    lost its way, and everything after its first mismatch is given to all tokens there.
    """
    letters = [(letter, at) for at, char in enumerate(text) for letter in _fold(char)]
    wanted = [(letter, k) for k, token in enumerate(tokens) for char in _surface(token) for letter in _fold(char)]
    a, b = "".join(letter for letter, _ in letters), "".join(letter for letter, _ in wanted)
    starts, ends = np.full(len(tokens), len(text)), np.zeros(len(tokens), np.int64)

    def cover(p: int, p_end: int, q: int, q_end: int) -> None:
        """Give the letters p … p_end of the text to every token with a letter in q … q_end."""
        if p < p_end:
            for k in {k for _, k in wanted[q:q_end]}:
                starts[k] = min(starts[k], letters[p][1])
                ends[k] = max(ends[k], letters[p_end - 1][1] + 1)

    p = q = 0
    lost: tuple[int, int] | None = None
    while p < len(a) and q < len(b):
        if a[p] == b[q]:
            cover(p, p + 1, q, q + 1)
            p, q = p + 1, q + 1
            continue
        lost = lost or (p, q)
        skip = _meet(a, p, b, q)
        if skip is None:
            break
        cover(p, p + skip[0], q, q + skip[1])
        p, q = p + skip[0], q + skip[1]
    if lost and (p < len(a) or q < len(b)):
        cover(lost[0], len(a), lost[1], len(b))
    blank = starts >= ends
    ends[blank] = np.maximum.accumulate(ends)[blank]
    starts[blank] = ends[blank]
    return starts, ends


def _meet(a: str, p: int, b: str, q: int) -> tuple[int, int] | None:
    """The fewest letters to leave out of both, so that what follows agrees."""
    for total in range(1, _SEARCH + 1):
        for x in range(total + 1):
            after_a, after_b = a[p + x : p + x + _AGREE], b[q + total - x : q + total - x + _AGREE]
            if after_a == after_b and p + x <= len(a) and q + total - x <= len(b):
                return x, total - x
    return None


def _surface(token: str) -> str:
    """A token's letters, without the marks of its family."""
    token = token.replace("▁", " ").removesuffix("</w>").removesuffix("@@")
    return token[2:] if token.startswith("##") and len(token) > 2 else token


@lru_cache(maxsize=1 << 14)
def _fold(char: str) -> str:
    """A character without case and accents; nothing of blanks, marks and controls."""
    decomposed = unicodedata.normalize("NFKD", char.casefold())
    return "".join(c for c in decomposed if unicodedata.category(c) not in _UNSEEN and not c.isspace())


_UNSEEN = ("Mn", "Cc", "Cf")
_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in GPT-2's alphabet
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
_LETTER_BYTES = {256 + n: chr(byte) for n, byte in enumerate(_HIDDEN)}
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_BLANK = np.array([chr(code).isspace() for code in range(0x3002)])  # no blank stands beyond U+3000
