"""Sentence splitting, normalisation and words: plain rules, no model, linear time.

The splitter looks at each run of end marks once and at the token on either side of it. No pattern here can backtrack,
so a hostile text costs no more than an honest one of its length.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby


def _set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Longer tokens are never abbreviations or sentence starters; the bound keeps every look-up at constant cost.
_MAX_TOKEN = 24

# An abbreviation of this group is always followed by more of its sentence.
_NEVER_END = _set(
    """mr mrs ms messrs mx dr prof gen sen sens rep reps gov lt col sgt cpl capt maj cmdr cmd adm brig rev hon pres supt
    det insp st mt ft mme mlle fr sr.a vs v viz cf e.g i.e eg ie approx ca dept asst assn atty gens lts pvt amb rt
    op cit resp incl"""
)
# These end a sentence unless a number follows.
_BEFORE_NUMBER = _set(
    "no nos fig figs eq eqs sec secs ch chap art vol vols p pp par ref refs tab pt nr jan feb mar apr jun jul aug sep "
    "sept oct nov dec"
)
# These end a sentence only where the next word is one that usually begins one.
_MAY_END = _set(
    """inc corp co cos ltd llc plc bros jr sr esq etc al et ave blvd rd ln hwy bldg apt univ dist est ext
    ph.d m.d b.a m.a b.s m.s ll.b ll.m mass calif conn fla ga ill ind kan ky la md mich minn miss mo neb nev okla ore pa
    tenn tex va vt wash wis wyo ariz ala ark colo del mont ont que min max avg temp dem demo ind tel gmbh s.a s.p.a
    a.m p.m a.d b.c"""
)
_TIMES = frozenset(("a.m", "p.m"))
_AFTER_TIME = _set(
    """et est edt ct cst cdt mt mst mdt pt pst pdt gmt utc bst cet cest hkt ist jst eastern central mountain pacific
    monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thur thurs fri sat sun
    january february march april may june july august september october november december
    jan feb mar apr jun jul aug sep sept oct nov dec"""
)
_STARTERS = _set(
    """The A An This That These Those There Here He She It They We You I His Her Its Their Our My Your Who What When
    Where Why How Which While Although Though Because Since If Unless Until After Before During As At By For From In
    On Of Over Under With Without Through To Toward And But Or Nor Yet So Also Thus Hence However Moreover
    Meanwhile Furthermore Nevertheless Nonetheless Instead Still Even Just Now Today Yesterday Tomorrow Later Earlier
    Is Are Was Were Do Does Did Has Have Had Can Could Will Would Should May Might Must Not Only All Any Both Each Every
    Then Some Several Many Most Much More Few Other Others Another Such Despite Among Between According Asked Last Next
    Into Once Nobody Nothing Everyone Everything Someone Something No Yes Maybe Perhaps Let Please"""
)

_ENDS = ".!?\u2026"
_CLOSERS = "\"')]}\u201d\u2019\u00bb"
_OPENERS = "\"'([{`\u201c\u2018\u00ab\u201e\u00bf\u00a1"
_BULLETS = "\u2022\u2023\u25aa\u25cf\u25e6"
# Every alternative matches greedily and then succeeds, so each character is read once.
_CANDIDATE = re.compile(
    f"[{re.escape(_ENDS)}]+[{re.escape(_CLOSERS)}]*|[\u3002\uff01\uff1f]+[{re.escape(_CLOSERS)}\u300d\u300f]*"
)
_BULLET = re.compile(f"(?<=\\s)[{_BULLETS}]")
_GLUE = re.compile("[-)\\]\u2013\u2014]")
_SPACE = re.compile(r"\s*")
_TOKEN = re.compile(rf"\S{{1,{_MAX_TOKEN}}}")
_WORD_HEAD = re.compile(rf"[^\W\d_]{{1,{_MAX_TOKEN}}}")
_ACRONYM = re.compile(r"(?:[^\W\d_]\.){1,8}[^\W\d_]")
_ITEM_LABEL = re.compile(r"[(\[]?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,5})")


def split_sentences(text: str, *, newlines: bool = True) -> list[str]:
    """Split a text into sentences by rules.

    Knows abbreviations, initials, acronyms, decimals, numbered items, quotes and brackets after a full stop, ellipses,
    times, datelines, inline bullets, PTB-tokenised text and Chinese or Japanese full stops.

    Args:
        text: any string.
        newlines: every line break ends a sentence. With ``False`` only a blank line does, as hard-wrapped text needs,
            and the lines of a paragraph are joined by one space.

    Returns:
        The sentences, stripped and never empty. Their characters other than white space are those of ``text``, in
        order.
    """
    lines = text.splitlines()
    if not newlines:
        paragraphs = groupby(lines, key=lambda line: not line or line.isspace())
        lines = [" ".join(group) for blank, group in paragraphs if not blank]
    return [sentence for line in lines for sentence in _split_line(line)]


def _split_line(line: str) -> list[str]:
    """Split one line; see `split_sentences`."""
    cuts = {match.start() for match in _BULLET.finditer(line)}
    start = quotes_seen = counted_to = 0
    for match in _CANDIDATE.finditer(line):
        # Straight quotes say nothing about their side: an odd number before means that the next one closes.
        quotes_seen += line.count('"', counted_to, match.end())
        counted_to = match.end()
        cut = _boundary(line, start, match, quotes_seen % 2 == 1)
        if cut is not None:
            cuts.add(cut)
            start = cut
    edges = [0, *sorted(cuts), len(line)]
    pieces = (line[a:b].strip() for a, b in zip(edges, edges[1:], strict=False))
    return [piece for piece in pieces if piece]


def _boundary(line: str, start: int, match: re.Match[str], quote_open: bool) -> int | None:
    """Where the sentence that began at ``start`` ends, or None if the end marks in ``match`` do not end it."""
    marks, end = match.group(), match.end()
    if marks[0] in "\u3002\uff01\uff1f":
        return end
    if end == len(line):
        return None
    if not line[end].isspace():
        return _glued(line, match)
    after = _end_of(_SPACE, line, end)
    if after == len(line):
        return None
    # PTB-tokenised text: the closing quote or bracket stands alone after the full stop.
    closer = _TOKEN.match(line, after)
    if closer and (closer.group() in ("''", "-RRB-", ")", "]") or (closer.group() == '"' and quote_open)):
        end = closer.end()
        after = _end_of(_SPACE, line, end)
        if after == len(line):
            return None
    if line[after] in _ENDS or line[after] in ",;:)]}":
        return None
    following = _following_word(line, after)
    if following[:1].islower() and not any(c.isupper() for c in following):
        return None
    stem = _token_before(line, start, match.start())
    if marks[0] != "." or marks.startswith("..") or not stem:
        return end
    return end if _full_stop_ends(line, start, match.start(), stem, after, following) else None


def _full_stop_ends(line: str, start: int, stop: int, stem: str, after: int, following: str) -> bool:
    """Whether a single full stop after the token ``stem`` ends its sentence, given what follows."""
    label_at = stop - len(stem)
    # "1. First": a label opens its sentence; the bound keeps a long row of initials linear.
    if label_at - start <= 8 and _ITEM_LABEL.fullmatch(stem) and not line[start:label_at].strip(_BULLETS + "-* \t"):
        return False
    # "(CNN)Sen.", "then-Gen.": what counts is behind the last bracket or hyphen.
    bare = _GLUE.split(stem.strip("-\u2013\u2014"))[-1].lstrip(_OPENERS) or stem
    key = bare.lower()
    starts = following in _STARTERS
    opens_quote = line[after] in '"\u201c`' and line[after + 1 : after + 2].isupper()
    if key in _BEFORE_NUMBER and (key != "no" or bare != "no"):
        return not (line[after].isdigit() or line[after] == "#")
    if key in _NEVER_END:
        return False
    if key in _TIMES:
        return following.lower() not in _AFTER_TIME or starts
    if key in _MAY_END and (bare[0].isupper() or key in ("etc", "al", "et") or "." in bare):
        return starts or opens_quote
    if len(bare) == 1 and bare.isalpha():
        return starts if bare.isupper() and bare != "I" else True
    if _ACRONYM.fullmatch(bare):
        return starts or opens_quote
    return True


def _glued(line: str, match: re.Match[str]) -> int | None:
    """A missing blank: ``the end.The next``. Cut only before a word that usually begins a sentence."""
    at = match.start()
    head = _WORD_HEAD.match(line, match.end())
    if (
        head is None
        or head.group() not in _STARTERS
        or len(head.group()) < 2
        or not line[max(0, at - 2) : at].islower()
    ):
        return None
    after = line[head.end() : head.end() + 1]
    return match.end() if after.isspace() and at >= 2 and line[at - 2 : at].isalpha() else None


def _token_before(line: str, start: int, stop: int) -> str:
    """The token that ends at ``stop``, without its full stop; cut to a bounded length on the left."""
    window = line[max(start, stop - _MAX_TOKEN) : stop]
    return "" if not window or window[-1].isspace() else window.split()[-1]


def _following_word(line: str, at: int) -> str:
    """The letters of the token at ``at`` behind opening quotes, brackets and dashes; '' for anything else."""
    token = _TOKEN.match(line, at)
    text = token.group().lstrip(_OPENERS + "-\u2013\u2014") if token else ""
    if not text and token:
        second = _TOKEN.match(line, _end_of(_SPACE, line, token.end()))
        text = second.group().lstrip(_OPENERS) if second else ""
    head = _WORD_HEAD.match(text)
    if head is None:
        return ""
    # "A." is an initial, not the article.
    return head.group() + "." if len(head.group()) == 1 and text[1:2] == "." else head.group()


def _end_of(pattern: re.Pattern[str], line: str, at: int) -> int:
    """The end of a pattern that always matches at ``at``."""
    match = pattern.match(line, at)
    return match.end() if match else at


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))
_STRAIGHT = str.maketrans(
    {
        "\u201c": '"',
        "\u201d": '"',
        "\u201e": '"',
        "\u201f": '"',
        "\u2018": "'",
        "\u2019": "'",
        "\u201a": "'",
        "\u201b": "'",
    }
)
_PTB_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_PTB_TOKEN = re.compile("-[LR][RSC]B-", re.IGNORECASE)
_PTB_LEFT = re.compile(r" (?=[.,;:?!%)\]}](?:[ \n]|$)|(?:''|n't|'s|'re|'ve|'ll|'d|'m)(?:[ \n]|$))", re.IGNORECASE)
_PTB_RIGHT = re.compile(r"(?<=[(\[{$#])(?<![^ \n].) |(?<=``) ")


def normalise(text: str, *, quotes: bool = False, ptb: bool = False) -> str:
    """Put a text into one form: Unicode NFC, single spaces, no invisible characters.

    Line breaks stay (as one newline each; blank lines and spaces around lines go), because they end sentences.

    Args:
        text: any string.
        quotes: turn curly quotes into straight ones.
        ptb: undo Penn Treebank tokens: ``-LRB-`` brackets, ````...''`` quotes, detached punctuation and clitics.

    Returns:
        The normalised text; normalising it again changes nothing.
    """
    text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    text = "\n".join(line for line in (" ".join(raw.split()) for raw in text.splitlines()) if line)
    if quotes:
        text = text.translate(_STRAIGHT)
    return repair_ptb(text) if ptb else text


def repair_ptb(text: str) -> str:
    """Undo Penn Treebank tokens in a text with single spaces; see `normalise`.

    ``He said -LRB- quietly -RRB- : `` it 's fine . ''`` becomes ``He said (quietly): "it's fine."``.
    """
    text = _PTB_TOKEN.sub(lambda match: _PTB_BRACKETS[match.group().upper()], text)
    text = _PTB_RIGHT.sub("", _PTB_LEFT.sub("", text))
    return text.replace("``", '"').replace("''", '"')


_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def words(text: str, *, lower: bool = False) -> list[str]:
    """The words of a text: runs of letters and digits, with apostrophes inside ("it's"), without punctuation.

    Args:
        text: any string.
        lower: return them in lower case.
    """
    return _WORD.findall(text.lower() if lower else text)
