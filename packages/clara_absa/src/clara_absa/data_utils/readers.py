"""Files to examples: MAMS and SemEval XML, CSV, JSON lines, PyABSA's inline markup.

Texts stay as they are in the file, leading blanks included, so that character spans hold. A malformed file stops with
one line that names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from clara_absa.configs.schema import (
    MAX_ASPECT_CHARACTERS,
    POLARITIES,
    Aspect,
    Example,
    Polarity,
    ensure_characters,
)
from latentlab_shared.errors import UserError

SUFFIXES = (".xml", ".csv", ".jsonl", ".txt")
_SHORT = {"pos": "positive", "neg": "negative", "neu": "neutral", "1": "positive", "-1": "negative", "0": "neutral"}


def read_file(path: Path, *, limit: int | None = None) -> list[Example]:
    """The examples of one file, in its order.

    Args:
        path: ``.xml`` (MAMS, SemEval-2014), ``.csv`` (text, aspect, polarity, and optionally start, end, id),
            ``.jsonl`` (id, text, aspects) or ``.txt`` (PyABSA's inline markup).
        limit: sentences at most.

    Raises:
        UserError: for an unknown suffix, a file that cannot be read, or anything malformed in it, with its line.
    """
    path = Path(path)
    readers = {".xml": _read_xml, ".csv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_inline}
    if path.suffix.lower() not in readers:
        raise UserError("this kind of file is not known", path, f"Give one of: {', '.join(SUFFIXES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path) from None
    examples = list(readers[path.suffix.lower()](text, path))
    if not examples:
        raise UserError("there is no sentence with an aspect in this file", path)
    return examples[:limit]


def parse_polarity(value: object) -> Polarity | None:
    """A polarity in any of its usual spellings; None for what is none of the three (SemEval's "conflict")."""
    name = str(value).strip().lower()
    name = _SHORT.get(name, name)
    return next((polarity for polarity in POLARITIES if polarity == name), None)


def _bad(what: str, path: Path, line: int, fix: str = "") -> NoReturn:
    raise UserError(what, f"{path}:{line}", fix)


def _polarity(value: object, path: Path, line: int) -> Polarity:
    found = parse_polarity(value)
    if found is None:
        _bad(f"{value!r} is not a polarity", path, line, f"Use one of: {', '.join(POLARITIES)}")
    return found


def _example(id: str, text: str, aspects: Iterable[Aspect], path: Path, line: int) -> Example:
    given = tuple(aspects)
    for said in (id, text, *(aspect.term for aspect in given)):
        ensure_characters(said, f"{path}:{line}")
    if any(len(aspect.term) > MAX_ASPECT_CHARACTERS for aspect in given):
        _bad(f"an aspect has more than {MAX_ASPECT_CHARACTERS} characters", path, line)
    try:
        return Example(id, text, given)
    except ValueError as error:
        fix = "Spans count the characters of the text as it stands, from 0, end excluded"
        _bad(str(error), path, line, "" if str(error).endswith("is empty") else fix)


class _Sentences:
    """Handlers of expat's events; only they know the line of an attribute."""

    def __init__(self, path: Path) -> None:
        self.path, self.examples, self.skipped = path, list[Example](), 0
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.characters
        self.parser.StartDoctypeDeclHandler = self.doctype
        self._open: list[str] = []
        self._id, self._line, self._text, self._aspects = "", 0, list[str](), list[tuple[int, Aspect]]()
        self._number = 0

    def doctype(self, *_: object) -> None:
        _bad("a document type is not allowed here", self.path, self.parser.CurrentLineNumber, "Remove the DOCTYPE")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        line = self.parser.CurrentLineNumber
        if not self._open and name != "sentences":
            _bad(f"the root is <{name}>, not <sentences>", self.path, line, "Give a MAMS or SemEval-2014 file")
        self._open.append(name)
        if name == "sentence":
            self._number += 1
            self._id = attributes.get("id", f"{self.path.stem}:{self._number}")
            self._line, self._text, self._aspects = line, [], []
        elif name == "aspectTerm":
            self._add(self._term(attributes, line), attributes, line)
        elif name == "aspectCategory":
            self._add(Aspect(self._need(attributes, "category", line)), attributes, line)

    def _need(self, attributes: dict[str, str], name: str, line: int) -> str:
        if name not in attributes:
            _bad(f"the attribute {name} is missing", self.path, line)
        return attributes[name]

    def _term(self, attributes: dict[str, str], line: int) -> Aspect:
        term = self._need(attributes, "term", line)
        try:
            start, end = (int(self._need(attributes, name, line)) for name in ("from", "to"))
        except ValueError:
            _bad("from and to must be whole numbers", self.path, line)
        return Aspect(term, None, start, end)

    def _add(self, aspect: Aspect, attributes: dict[str, str], line: int) -> None:
        polarity = self._need(attributes, "polarity", line)
        if polarity == "conflict":  # SemEval's fourth label: both at once
            self.skipped += 1
            return
        found = _polarity(polarity, self.path, line)
        self._aspects.append((line, Aspect(aspect.term, found, aspect.start, aspect.end)))

    def characters(self, text: str) -> None:
        if self._open[-2:] == ["sentence", "text"]:
            self._text.append(text)

    def end(self, name: str) -> None:
        self._open.pop()
        if name != "sentence" or not self._aspects:
            return
        text = "".join(self._text)
        for line, aspect in self._aspects:  # each on its own, so that an error has the aspect's line
            _example(self._id, text, [aspect], self.path, line)
        self.examples.append(Example(self._id, text, tuple(aspect for _, aspect in self._aspects)))


def _read_xml(text: str, path: Path) -> Iterator[Example]:
    handlers = _Sentences(path)
    try:
        # Bytes, because the declaration's encoding need not be that of a Python string.
        handlers.parser.Parse(re.sub(r"^<\?xml[^>]*\?>", "", text).encode(), True)
    except expat.ExpatError as error:
        _bad(f"not well-formed XML ({expat.errors.messages[error.code]})", path, error.lineno)
    return iter(handlers.examples)


def _read_csv(text: str, path: Path) -> Iterator[Example]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    except csv.Error as error:
        _bad(f"not a CSV table ({error})", path, 1)
    columns = {
        "text": names.get("text") or names.get("sentence"),
        "aspect": names.get("aspect") or names.get("span") or names.get("term") or names.get("category"),
        "polarity": names.get("polarity") or names.get("label") or names.get("sentiment"),
    }
    missing = [name for name, column in columns.items() if column is None]
    if missing:
        _bad(f"there is no column {missing[0]}", path, 1, "Columns: text, aspect, polarity, and optionally start, end")
    grouped: dict[tuple[str, str], list[Aspect]] = {}
    try:
        for row in rows:
            line = rows.line_num
            if None in row or None in row.values():
                _bad(f"this row does not have {len(names)} columns", path, line)
            sentence, term = row[columns["text"] or ""], row[columns["aspect"] or ""]
            start, end = (row[names[name]].strip() if name in names else "" for name in ("start", "end"))
            if bool(start) != bool(end) or not (start + end).isdecimal() and start:
                _bad("start and end must be two whole numbers or both empty", path, line)
            span = (int(start), int(end)) if start else (None, None)
            aspect = Aspect(term, _polarity(row[columns["polarity"] or ""], path, line), *span)
            _example("", sentence, [aspect], path, line)
            key = row[names["id"]] if "id" in names else ""
            grouped.setdefault((key, sentence), []).append(aspect)
    except csv.Error as error:
        _bad(f"not a CSV table ({error})", path, rows.line_num)
    for number, ((key, sentence), aspects) in enumerate(grouped.items(), 1):
        yield Example(key or f"{path.stem}:{number}", sentence, tuple(aspects))


def _read_jsonl(text: str, path: Path) -> Iterator[Example]:
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            _bad(f"not valid JSON ({getattr(error, 'msg', 'nested too deeply, or a number too long')})", path, line)
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("text"), str)
            or not isinstance(row.get("aspects"), list)
        ):
            _bad('a row is {"text": …, "aspects": [{"term", "polarity", "start", "end"}]}', path, line)
        aspects = [_json_aspect(value, path, line) for value in row["aspects"]]
        if aspects:
            yield _example(str(row.get("id", f"{path.stem}:{line}")), row["text"], aspects, path, line)


def _json_aspect(value: Any, path: Path, line: int) -> Aspect:
    if not isinstance(value, dict):
        _bad("an aspect is an object with term and polarity", path, line)
    term, start, end = value.get("term", value.get("category")), value.get("start"), value.get("end")
    if not isinstance(term, str) or not all(v is None or type(v) is int for v in (start, end)):
        _bad("an aspect has a term (text), and start and end (whole numbers) or neither", path, line)
    return Aspect(term, _polarity(value.get("polarity"), path, line), start, end)


_MARK = re.compile(r"\[B-ASP\](.*?)\[E-ASP\]")


def parse_inline(line: str, where: object = "text") -> tuple[str, list[tuple[int, int]], list[str]]:
    """PyABSA's markup: ``The [B-ASP]food[E-ASP] is good $LABEL$ Positive``.

    Args:
        line: the text with its marks.
        where: it stands, for the error.

    Returns:
        The text without marks, the spans of its aspects in it, and the labels after ``$LABEL$`` as they stand.

    Raises:
        UserError: for a mark that is not opened or not closed, or has nothing in it.
    """
    marked, _, labels = line.partition("$LABEL$")
    marked = marked.rstrip() if labels else marked
    pieces, spans, at, length = [], [], 0, 0
    for found in _MARK.finditer(marked):
        before = marked[at : found.start()]
        pieces += [before, found[1]]
        spans.append((length + len(before), length + len(before) + len(found[1])))
        length, at = spans[-1][1], found.end()
    pieces.append(marked[at:])
    text = "".join(pieces)
    if "[B-ASP]" in text or "[E-ASP]" in text:
        raise UserError("a mark is not opened and closed", where, "Write [B-ASP]food[E-ASP]")
    if any(not text[start:end].strip() for start, end in spans):
        raise UserError("an aspect is empty", where, "Write [B-ASP]food[E-ASP]")
    return text, spans, [label.strip() for label in labels.split(",") if label.strip()]


def _read_inline(text: str, path: Path) -> Iterator[Example]:
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        sentence, spans, labels = parse_inline(raw.rstrip("\r"), f"{path}:{line}")
        if not spans:
            _bad("no [B-ASP]aspect[E-ASP] in this line", path, line)
        if len(spans) != len(labels):
            _bad(f"{len(spans)} aspects and {len(labels)} labels", path, line, "End the line with $LABEL$ and a list")
        aspects = [
            Aspect(sentence[a:b], _polarity(p, path, line), a, b) for (a, b), p in zip(spans, labels, strict=True)
        ]
        yield _example(f"{path.stem}:{line}", sentence, aspects, path, line)


def write_jsonl(examples: Sequence[Example], path: Path) -> None:
    """Write examples in the JSON lines form that `read_file` reads, atomically."""
    from latentlab_shared.files import to_json, write_text

    rows = (
        {
            "id": example.id,
            "text": example.text,
            "aspects": [
                {"term": a.term, "polarity": a.polarity, "start": a.start, "end": a.end} for a in example.aspects
            ],
        }
        for example in examples
    )
    write_text(path, "".join(to_json(row, indent=None) + "\n" for row in rows))
