"""Cleaning, sentences and tokens. One tokenizer serves labels, model and metrics, so that all see the same words."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import lru_cache

from latentlab_shared.errors import UserError
from latentlab_shared.text import normalise
from latentlab_shared.text import split_sentences as split_cased

BOUNDARY = "."  # the token of a sentence end: read by the encoder, never written

Splitter = Callable[[str], list[str]]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffd]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
# "u.s.", "1,750.5", "isn't"; hyphens and slashes separate words.
_WORD = re.compile(r"(?:[^\W\d_]\.){2,}|\d+(?:[.,:]\d+)*|[^\W_]+(?:['\u2019][^\W_]+)*")
# Captions and other text without capitals: a full stop and a blank end a sentence, but not after these.
# Nothing is tried twice: a text of nothing but full stops takes no longer than another.
_STOP = re.compile(r"(?<![.!?\u2026])[.!?\u2026]++[\"')\]\u201d\u2019]*+(?=\s)")


def word_set(listed: str) -> frozenset[str]:
    """The words of a string, for lists in source code."""
    return frozenset(listed.split())


_ABBREVIATIONS = word_set(
    "mr mrs ms dr prof gen sen rep gov lt col sgt capt st jr sr vs inc corp co ltd e.g i.e u.s u.k u.n d.c a.m p.m"
)


def clean(text: str) -> str:
    """One line of Unicode NFC without control characters; entities are resolved, mark-up tags dropped."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    return normalise(_CONTROL.sub(" ", text).replace("\n", " "), quotes=True)


def words(text: str) -> list[str]:
    """The lower-cased words and numbers of a text, in order; acronyms keep their full stops, numbers their commas."""
    return _WORD.findall(text.lower())


def split_rules(text: str) -> list[str]:
    """Split by rules: the shared splitter for cased text, full stops with a few exceptions for text in one case."""
    if any(c.isupper() for c in text) and any(c.islower() for c in text):
        return split_cased(text)
    pieces, start = [], 0
    for match in _STOP.finditer(text):
        token = text[start : match.start()].rsplit(None, 1)[-1:] or [""]
        key = token[0].lower().strip("\"'([")
        initial = len(key) == 1 and key.isalpha() and key not in "ia"
        if match.group().startswith(".") and (initial or key in _ABBREVIATIONS):
            continue
        pieces.append(text[start : match.end()].strip())
        start = match.end()
    return [piece for piece in [*pieces, text[start:].strip()] if piece]


def make_splitter(name: str = "auto") -> Splitter:
    """The sentence splitter ``name``: "rules", "punkt" or "auto" (punkt where its data is installed).

    Raises:
        UserError: "punkt" without NLTK or its ``punkt_tab`` data.
    """
    if name == "rules":
        return split_rules
    if name not in ("auto", "punkt"):
        raise UserError(f"{name!r} is not a splitter", "data.splitter", "Use one of: auto, punkt, rules")
    try:
        return _punkt()
    except (ImportError, LookupError):
        if name == "auto":
            return split_rules
        raise UserError(
            "NLTK or its punkt_tab data is not installed",
            "data.splitter=punkt",
            'Install both (pip install nltk; python -m nltk.downloader punkt_tab), or use splitter "rules"',
        ) from None


@lru_cache(maxsize=1)
def _punkt() -> Splitter:
    import nltk
    from nltk.tokenize import PunktTokenizer

    nltk.data.find("tokenizers/punkt_tab/english")
    found = PunktTokenizer("english")

    def split(text: str) -> list[str]:
        return [str(sentence) for sentence in found.tokenize(text)]

    return split


def source_tokens(text: str, split: Splitter) -> list[str]:
    """The tokens the encoder reads: the words of each sentence, with a boundary token after every sentence."""
    found: list[str] = []
    for sentence in split(text):
        inside = words(sentence)
        if inside:
            found += [*inside, BOUNDARY]
    return found
