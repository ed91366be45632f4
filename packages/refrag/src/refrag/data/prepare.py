"""Real data in the package's forms: a corpus of texts, and questions whose documents hold the answer among others.

A folder of sources may hold ``nq_oracle/train.jsonl.gz`` (questions with the passage that answers them),
``wiki2_corpus/passages.json`` (passages, for distractors and for the corpus) and ``wikitext2/valid.txt``. What is held
out is decided by a hash of the question or of the title, so it stays held out when more data comes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError
from latentlab_shared.files import atomic_path, read_json, sha256_file, write_json
from refrag.data.lines import read_rows
from refrag.data.questions import QuestionExample, write_questions
from refrag.model.documents import Doc

Log = Callable[[str], None]

NQ = Path("nq_oracle") / "train.jsonl.gz"
PASSAGES = Path("wiki2_corpus") / "passages.json"
WIKITEXT = Path("wikitext2") / "valid.txt"
_HELD_OUT = 10  # one in so many
_HEADING = re.compile(r"^ = [^=].* = $", re.MULTILINE)


def prepare_data(
    source: Path, folder: Path, *, distractors: int = 4, seed: int = 0, limit: int | None = None, log: Log = print
) -> dict[str, Any]:
    """Write ``corpus_{train,valid}.jsonl.gz`` and ``questions_{train,valid}.jsonl.gz``.

    The same source and settings give the same rows; a folder that holds them already is left as it is.

    Args:
        source: a folder as described above; what it lacks is left out.
        folder: to write to.
        distractors: documents beside the one that answers.
        seed: of the choice and the order of documents.
        limit: questions and passages at most, of each.
        log: told what is written.

    Returns:
        How many of each there are, by file name.

    Raises:
        UserError: if the source has none of these files, or one of them is damaged.
    """
    found = [path for path in (NQ, PASSAGES, WIKITEXT) if (source / path).is_file()]
    if not found:
        raise UserError("there is no data here", source, f"It should hold {NQ}, {PASSAGES} or {WIKITEXT}")
    plan: dict[str, Any] = {"distractors": distractors, "seed": seed, "limit": limit}
    plan |= {"sources": {str(path): sha256_file(source / path) for path in found}}
    account = folder / "prepared.json"
    if account.is_file():
        held = read_json(account)
        if held.get("plan") == plan and all((folder / name).is_file() for name in held["counts"]):
            log(f"{folder} is up to date")
            counts: dict[str, Any] = held["counts"]
            return counts
    passages = _passages(source / PASSAGES)[:limit] if PASSAGES in found else []
    rows = _nq_rows(source / NQ)[:limit] if NQ in found else []
    counts = {}
    for part in ("train", "valid"):
        held_out = part == "valid"
        texts = [text for title, text in [*passages, *_articles(source / WIKITEXT)] if _is_held_out(title) == held_out]
        texts += [row["text"] for row in rows if _is_held_out(row["question"]) == held_out]
        name = f"corpus_{part}.jsonl.gz"
        counts[name] = _write_texts(folder / name, texts)
        if rows:
            asked = [row for row in rows if _is_held_out(row["question"]) == held_out]
            name = f"questions_{part}.jsonl.gz"
            others = [Doc("0", text, title) for title, text in passages] or [
                Doc("0", row["text"], row["title"]) for row in rows
            ]
            counts[name] = write_questions(folder / name, _questions(asked, others, distractors, seed))
    write_json(account, {"plan": plan, "counts": counts})
    return counts


def _is_held_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % _HELD_OUT == 0


def _passages(path: Path) -> list[tuple[str, str]]:
    held = read_json(path)
    if not isinstance(held, list) or not all(isinstance(p, dict) and {"title", "text"} <= p.keys() for p in held):
        raise UserError("no list of passages with title and text", path)
    return [(p["title"], p["text"]) for p in held]


def _articles(path: Path) -> list[tuple[str, str]]:
    """Articles of WikiText, by their headings."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    starts = [match.start() for match in _HEADING.finditer(text)] + [len(text)]
    articles = [text[a:b].strip() for a, b in zip(starts, starts[1:], strict=False)]
    return [(article.split("\n", 1)[0], " ".join(article.split())) for article in articles if article]


def _nq_rows(path: Path) -> list[dict[str, Any]]:
    """Question, answers, and the passage that answers, of each row that has one with an answer in its text."""
    rows = []
    for where, row in read_rows(path):
        try:
            gold = next((c for c in row["ctxs"] if c["isgold"]), None)
            span = None if gold is None else _span(gold["text"], row["answers"])
            if gold is not None and span is not None:
                kept = {"question": row["question"], "answers": row["answers"], "span": span}
                rows.append({**kept, "title": gold["title"], "text": gold["text"]})
        except (KeyError, TypeError, AttributeError):
            raise UserError("no question with answers and passages", where) from None
    return rows


def _span(text: str, answers: Sequence[str]) -> tuple[int, int, str] | None:
    """Where the first answer stands that the text holds, and that answer."""
    lowered = text.lower()
    for answer in answers:
        at = lowered.find(answer.lower())
        if answer and at >= 0:
            return at, at + len(answer), text[at : at + len(answer)]
    return None


def _questions(
    rows: Iterable[dict[str, Any]], others: Sequence[Doc], distractors: int, seed: int
) -> Iterator[QuestionExample]:
    """Each question with its passage at a random place among distractors that hold none of its answers."""
    for row in rows:
        draw = random.Random(f"{seed} {row['question']}")
        wrong = [answer.lower() for answer in row["answers"]]
        chosen: list[tuple[str | None, str]] = []
        for doc in draw.sample(others, min(len(others), 4 * distractors)):
            if len(chosen) < distractors and not any(answer in doc.text.lower() for answer in wrong):
                chosen.append((doc.title, doc.text))
        chosen.insert(draw.randrange(len(chosen) + 1), (row["title"], row["text"]))
        docs = tuple(Doc(str(n), text, title) for n, (title, text) in enumerate(chosen, start=1))
        gold = next(doc.id for doc in docs if doc.text == row["text"])
        start, end, value = row["span"]
        also = tuple(answer for answer in row["answers"] if answer != value)
        yield QuestionExample(row["question"], docs, f"{value} [{gold}].", value, gold, start, end, also)


def _write_texts(path: Path, texts: Iterable[str]) -> int:
    count = 0
    with atomic_path(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
    return count
