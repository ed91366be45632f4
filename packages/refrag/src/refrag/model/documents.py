"""Documents in a prompt: as objects, which nothing in their text can break, or between tags of one string.

The tagged form is ``text <doc id="1" title="…">body</doc> text``. In a body and in attribute values ``&lt; &gt; &amp;
&quot; &apos;`` and numeric references are read as XML reads them, so ``escape`` makes any text safe; text outside of
documents is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from latentlab_shared.errors import UserError

MAX_ID = 100  # characters of a document's id


class RefragParseError(UserError):
    """A tagged text that is not well formed.

    Args:
        what: the fault, as a clause.
        text: the whole text.
        at: index of the character it was found at; ``line`` and ``column`` (from 1) are counted from it.
    """

    def __init__(self, what: str, text: str, at: int) -> None:
        self.line = text.count("\n", 0, at) + 1
        self.column = at - text.rfind("\n", 0, at)
        super().__init__(what, f"line {self.line}, column {self.column}")


@dataclass(frozen=True)
class Doc:
    """A retrieved document.

    Attributes:
        id: what an answer cites; at most 100 characters, printable, without blanks at its ends and without brackets.
        text: its content, which is never parsed.
        title: shown to the decoder beside the id.
        meta: anything; carried along.

    Raises:
        UserError: for an id that cannot be cited, or a text or title that is none.
    """

    id: str
    text: str
    title: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name: object = self.id  # callers may have no types
        if not isinstance(name, str):
            raise UserError(
                f"a document id is a text, not {type(name).__name__}", "Doc.id", f"For example: {str(name)!r:.40}"
            )
        if len(name) > MAX_ID:
            raise UserError(f"an id of {len(name):,} characters", "Doc.id", f"Use at most {MAX_ID}")
        if not name or not name.isprintable() or name != name.strip() or set(name) & set("[]"):
            raise UserError(f"{name!r} is no document id", "Doc.id", "Use a short printable name without [ and ]")
        require_text(self.text, f"document {name}")
        if self.title is not None:
            require_text(self.title, f"title of document {name}")


class Message(TypedDict):
    """A turn of a conversation."""

    role: str
    content: str


class Segment(TypedDict):
    """A piece of a prompt, in the seed's form.

    Attributes:
        type: "decoder" for text that the decoder reads, "encoder" for a document that is compressed.
        raw_text: its text.
        meta: attributes of the document's tag, names in lower case; empty for text.
        tokens: ids of the segment's own tokenizer.
        packed_tokens: rows of encoder ids, padded to one width.
        attention_mask: 1 where a row holds a token, 0 where it is padded.
        chunks: what each row stands for (not in the seed's packing).
    """

    type: Literal["decoder", "encoder"]
    raw_text: str
    meta: dict[str, str]
    tokens: NotRequired[list[int]]
    packed_tokens: NotRequired[list[list[int]]]
    attention_mask: NotRequired[list[list[int]]]
    chunks: NotRequired[Sequence[Any]]


def require_text(value: object, where: str) -> None:
    """Refuse what no tokenizer can read.

    Raises:
        UserError: for what is no string, or holds half a character (a lone surrogate).
    """
    if not isinstance(value, str):
        raise UserError(f"is no text but {type(value).__name__}", where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"is not UTF-8 text (character {error.start})", where) from None


def escape(text: str) -> str:
    """A text as it can stand in a body or an attribute value."""
    for plain, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&apos;")):
        text = text.replace(plain, entity)
    return text


def parse_segments(text: str) -> list[Segment]:
    """Cut a tagged text into decoder text and documents; every blank between them is kept.

    Tags may be of any case, with attributes in any order, quoted either way or, without blanks, not at all.

    Raises:
        RefragParseError: for a tag that is not closed, closes nothing, stands inside another document or has attributes
            that cannot be read; with its line and column.
    """
    segments: list[Segment] = []
    at = 0
    while (tag := _TAG.search(text, at)) is not None:
        if tag["close"]:
            raise RefragParseError("</doc> closes nothing", text, tag.start())
        if tag.start() > at:
            segments.append({"type": "decoder", "raw_text": text[at : tag.start()], "meta": {}})
        meta, body, empty = _attributes(text, tag)
        end = at = body
        if not empty:
            end, at = _body(text, tag, body)
        segments.append({"type": "encoder", "raw_text": _unescape(text[body:end]), "meta": meta})
    if at < len(text):
        segments.append({"type": "decoder", "raw_text": text[at:], "meta": {}})
    return segments


_TAG = re.compile(r"<(?P<close>/?)doc(?=[\s/>]|$)", re.IGNORECASE)
_BLANKS = re.compile(r"\s*")
_ATTRIBUTE = re.compile(
    r"(?P<name>[A-Za-z_][\w.:-]*)\s*=\s*(?:\"(?P<double>[^\"<]*)\"|'(?P<single>[^'<]*)'|(?P<bare>[^\s\"'<>=`]+?)(?=\s|/?>))"
)
_ENTITY = re.compile(r"&(?:(?P<name>lt|gt|amp|quot|apos)|#(?P<number>\d{1,7})|#[xX](?P<hex>[0-9a-fA-F]{1,6}));")
_NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}


def _attributes(text: str, tag: re.Match[str]) -> tuple[dict[str, str], int, bool]:
    """Attributes of an opening tag, the place after its ``>``, and whether it ended in ``/>``."""
    meta: dict[str, str] = {}
    at = tag.end()
    while True:
        blanks = _BLANKS.match(text, at)
        assert blanks is not None
        before, at = at, blanks.end()
        for end in (">", "/>"):
            if text.startswith(end, at):
                return meta, at + len(end), end == "/>"
        if at == len(text):
            raise RefragParseError("<doc is not ended by >", text, tag.start())
        found = _ATTRIBUTE.match(text, at)
        if found is None or before == at:
            raise RefragParseError("cannot read this attribute of <doc", text, at)
        name = found["name"].lower()
        if name in meta:
            raise RefragParseError(f"the attribute {name} is given twice", text, at)
        meta[name] = _unescape(next(v for v in found.group("double", "single", "bare") if v is not None))
        at = found.end()


def _body(text: str, opened: re.Match[str], body: int) -> tuple[int, int]:
    """Where the body of a document ends, and the place after its closing tag."""
    tag = _TAG.search(text, body)
    if tag is None:
        raise RefragParseError("<doc> is not closed", text, opened.start())
    if not tag["close"]:
        raise RefragParseError("<doc> inside a document (write &lt;doc&gt; for the text)", text, tag.start())
    blanks = _BLANKS.match(text, tag.end())
    assert blanks is not None
    if not text.startswith(">", blanks.end()):
        raise RefragParseError("</doc is not ended by >", text, tag.start())
    return tag.start(), blanks.end() + 1


def _unescape(text: str) -> str:
    def plain(entity: re.Match[str]) -> str:
        if entity["name"]:
            return _NAMED[entity["name"]]
        code = int(entity["number"]) if entity["number"] else int(entity["hex"], 16)
        return chr(code) if 0 < code < 0xD800 or 0xE000 <= code <= 0x10FFFF else entity[0]

    return _ENTITY.sub(plain, text)
