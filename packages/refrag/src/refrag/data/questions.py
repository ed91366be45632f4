"""A question, the documents it is asked about, and what a right answer says and cites; files of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path
from refrag.data.lines import read_rows
from refrag.model.documents import Doc

_FIELDS = ("question", "docs", "answer", "value", "gold", "start", "end")  # of a row


@dataclass(frozen=True)
class QuestionExample:
    """One question.

    Attributes:
        question: in words.
        docs: what was retrieved, in its order.
        answer: what the decoder should write, with its citation.
        value: the part of the answer that was asked for.
        gold: id of the document that holds it.
        start: first character of the evidence in that document's text.
        end: the character after its last.
        also: other right values.
    """

    question: str
    docs: tuple[Doc, ...]
    answer: str
    value: str
    gold: str
    start: int
    end: int
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        texts = {doc.id: doc.text for doc in self.docs}
        if self.gold not in texts:
            raise ValueError(f"no document has the id {self.gold!r}")
        if not 0 <= self.start < self.end <= len(texts[self.gold]):
            raise ValueError(f"{self.start}:{self.end} is no span of document {self.gold}")


def write_questions(path: Path, examples: Iterable[QuestionExample]) -> int:
    """Write one JSON object per line (gzip if the name ends in ``.gz``); how many there were."""
    count = 0
    with atomic_path(path) as temporary:
        opened: Any = gzip.open if path.name.endswith(".gz") else open
        with opened(temporary, "wt", encoding="utf-8") as file:
            for example in examples:
                docs = [{"id": d.id, "title": d.title, "text": d.text} for d in example.docs]
                row: dict[str, Any] = {
                    "question": example.question,
                    "docs": docs,
                    "answer": example.answer,
                    "value": example.value,
                }
                row |= {"gold": example.gold, "start": example.start, "end": example.end, "also": example.also}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count


def read_questions(path: Path, limit: int | None = None) -> Iterator[QuestionExample]:
    """Read what ``write_questions`` wrote.

    Raises:
        UserError: if there is no such file, it is damaged, or a row is no question; it names the line.
    """
    for number, (where, row) in enumerate(read_rows(path)):
        if limit is not None and number >= limit:
            return
        missing = [name for name in _FIELDS if name not in row]
        if missing:
            raise UserError(f"no question ({', '.join(map(repr, missing))} {_are(missing)} missing)", where)
        try:
            docs = tuple(Doc(str(d["id"]), d["text"], d.get("title")) for d in row["docs"])
            fields = {name: row[name] for name in _FIELDS if name != "docs"}
            texts = [fields[name] for name in ("question", "answer", "value", "gold")] + [doc.text for doc in docs]
            if not all(isinstance(text, str) for text in [*texts, *row.get("also", ())]):
                raise TypeError("a text that is none")
            yield QuestionExample(docs=docs, also=tuple(row.get("also", ())), **fields)
        except KeyError as error:
            raise UserError(f"no question ({error} is missing in a document)", where) from None
        except (ValueError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"no question ({' '.join(str(error).split())[:100]})", where) from None


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
