"""CNN/DailyMail as published: ``.story`` files, their ``@highlight`` blocks and the lists that split them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from latentlab_shared.errors import UserError
from latentlab_shared.text import normalise, split_sentences
from rsr_net.data.types import Example

SPLITS = ("train", "valid", "test")
# In the published lists, the middle part is called "val".
_LIST_NAMES = {"train": "all_train.txt", "valid": "all_val.txt", "test": "all_test.txt"}

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can name one, no file can hold it
_END_MARKS = (".", "!", "?", "...", "'", "`", '"', "\u2019", "\u201d", ")")
_PTB = re.compile(r"-[LR][RSC]B-|``| '' | [.,] \S.* [.,](?: |$)")
# "LONDON, England (CNN) -- ", "(CNN)", "(WIRED)Screens", "BERLIN (Reuters) - ": where and by whom, not what.
_PLACE = r"(?:[A-Z][\w.'\u2019-]{0,20}(?:,? [A-Z][\w.'\u2019-]{0,20}){0,4},? )?"
_DASH = r"(?:--?|[\u2013\u2014])"
_SOURCE = re.compile(
    rf"{_PLACE}\((?:(?:CNN|cnn)[\w .]{{0,20}}\)\s*{_DASH}?|[A-Z][\w. ]{{1,24}}\)(?:\s+{_DASH}|(?=[^\W\d_])))\s*"
)
# The Daily Mail's first lines: "By . NAME . PUBLISHED: . 14:11 EST, 25 October 2013 . | . UPDATED: . ...".
_TIME = r":[\s.]*\d\d:\d\d [A-Z]{2,4}, \d{1,2} \w{3,9} \d{4}[\s.|]*"
_BYLINE = re.compile(rf"(?:By\s*[.\n][\s.]*[^\n.]{{2,60}}[\n.][\s.]*)?(?:PUBLISHED{_TIME})?(?:[|\s.]*UPDATED{_TIME})?")

# The first letter after an end mark (but not that of "u.s."), with a quote or bracket on either side of the blank.
_BEGINNING = re.compile(
    r"(?<=[.!?] )(?<![^a-z][a-z]\. )[a-z]|(?<=[.!?]['\")] )[a-z]|(?<=[.!?] ['\"(])[a-z]|(?<=[.!?] ['\"] )[a-z]"
)


def clean(text: str) -> str:
    """One form for all sources: NFC, single blanks, Penn Treebank tokens undone where a text has them."""
    # Only the beginning is looked at: a tokenised text is tokenised everywhere. The hub's highlights end in " .".
    return normalise(text, ptb=bool(_PTB.search(text[:2000])) or text.rstrip().endswith(" ."))


def make_example(identifier: str, article: str, highlights: list[str], where: object) -> Example:
    """Build an example from raw text.

    Args:
        identifier: the source's id.
        article: paragraphs as lines.
        highlights: the summary's sentences; a missing end mark is added. One line is split into its sentences.
        where: what an error names.

    Raises:
        UserError: when no word is left in the article, and for text that is not Unicode.
    """
    if any(_SURROGATE.search(text) for text in (identifier, article, *highlights)):
        raise UserError("holds half a character (a lone surrogate)", where)
    sentences = _sentences(_without_head(clean(article)))
    if not any(any(character.isalnum() for character in sentence) for sentence in sentences):
        raise UserError("there is no article text", where)
    lines = [cleaned for line in highlights if (cleaned := clean(line))]
    if len(lines) == 1:
        lines = split_sentences(lines[0])
    ended = (line if line.endswith(_END_MARKS) else f"{line}." for line in lines)
    return Example(identifier, tuple(sentences), tuple(ended))


def _without_head(text: str) -> str:
    """Leave out who wrote the article, where and when."""
    for pattern in (_BYLINE, _SOURCE):
        if found := pattern.match(text):
            text = text[found.end() :]
    return text


def _sentences(text: str) -> list[str]:
    """The sentences of a text; of one without capitals too, where the splitter would see no beginnings."""
    if any(character.isupper() for character in text):
        return split_sentences(text)
    begun = _BEGINNING.sub(lambda match: match.group().upper(), text)
    return [sentence.lower() for sentence in split_sentences(begun)] if begun.lower() == text else split_sentences(text)


def parse_story(text: str) -> tuple[str, list[str]]:
    """The article's lines and the highlights of a ``.story`` text.

    After the first ``@highlight`` every line that is not empty is a highlight. CR LF and a missing article are fine.

    Source: make_datafiles.py of See et al. 2017, whose split of 287,226 / 13,368 / 11,490 everyone reports on.
    """
    article: list[str] = []
    highlights: list[str] = []
    seen = False
    for raw in text.lstrip("\ufeff").splitlines():
        line = raw.strip()
        if line.startswith("@highlight"):
            seen = True
        elif line:
            (highlights if seen else article).append(line)
    return "\n".join(article), highlights


def article_id(url: str) -> str:
    """The id CNN/DailyMail gives an article: the sha1 of its address."""
    return hashlib.sha1(url.strip().encode()).hexdigest()


def hashed_split(identifier: str, valid: float = 0.05, test: float = 0.05) -> str:
    """The part an id belongs to, the same on every machine and whatever else the folder holds."""
    drawn = int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") / 2**64
    return "test" if drawn < test else "valid" if drawn < test + valid else "train"


def story_files(folder: Path) -> list[Path]:
    """The ``.story`` files of a folder, in an order that does not depend on the file system.

    Two levels of subfolders are looked into (``cnn/stories``, as the archives unpack), so that ``/`` is no long walk.
    """
    levels = ("*.story", "*/*.story", "*/*/*.story")
    return sorted((path for level in levels for path in folder.glob(level)), key=lambda path: path.name)


def printable(name: str) -> str:
    """A file's name with the bytes that are not UTF-8 spelled out."""
    return name.encode(errors="backslashreplace").decode()


def listed_ids(folder: Path, split: str) -> frozenset[str] | None:
    """The ids of a part from ``url_lists/all_{train,val,test}.txt``; None when there are no lists."""
    lists = folder / "url_lists"
    if not lists.is_dir():
        return None
    path = lists / _LIST_NAMES[split]
    if not path.is_file():
        raise UserError(f"the url list of the {split} part is missing", path)
    with path.open(encoding="utf-8") as lines:
        return frozenset(article_id(line) for line in lines if line.strip())
