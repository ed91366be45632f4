"""Sentence splitting, normalisation, words: hard cases by hand, properties by hypothesis, linear time by counting."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.text import normalise, repair_ptb, split_sentences, words

# Hand-made hard cases; "|" marks every boundary (and the blank around it is not part of a sentence).
HARD = [
    "Dr. Smith met Mr. and Mrs. Jones. | They had tea.",
    "The U.S. economy grew. | The U.S. Supreme Court agreed. | He lives in the U.S. | In 2009 he left.",
    "It costs $3.50 or 4.75 percent. | That is 0.5 more.",
    "J. K. Rowling wrote it. | George W. Bush read it.",
    "The No. 5 seed won. | Was it fair? | No. | It was not.",
    '"Stop!" he shouted. | "I will not," she said. | "Why?"',
    'He said, "I am done." | She left.',
    "\u201cI am done.\u201d | She left. | \u2018Really?\u2019 asked Tom.",
    "(CNN) -- A man was found. | Police said so.",
    "WASHINGTON, D.C. (CNN) -- The vote passed. | It was close.",
    "LONDON, England (CNN) -- It rained. | Then it stopped.",
    "(CNN)Sen. Harry Reid spoke. | He was brief.",
    "The meeting is at 5 p.m. Monday. | Come at 4 p.m. | We start early.",
    "They met at 10 a.m. ET. | All came.",
    "Acme Inc. shares rose. | He works for Acme Inc. | She does not.",
    "Apples, pears, etc. were sold. | He bought apples, etc. | Then he left.",
    "She holds a Ph.D. from Yale. | He has none.",
    "Wait ... what? | Well... | Yes.",
    "It was . . . strange. | They had 3 . . . | Then 4.",
    "He paused\u2026 | Then he spoke\u2026 but not for long.",
    "What?! | No way!! | Yes.",
    "On Jan. 5 it snowed. | It melted in Feb. | March was dry.",
    "See Fig. 3 and Eq. 2. | They agree.",
    "Smith et al. show this. | We do not.",
    "Use tools, e.g. Hammers, i.e. things to hit with. | Stop.",
    "1. First we go. | 2. Then we stay.",
    "Items: | \u2022 one thing | \u2022 another thing.",
    "He moved to St. Louis. | She stayed on Elm St. near the park.",
    "Visit www.example.com today. | Or mail a.b@example.org now.",
    "It ended.|The next day came. | He slept.",
    "`` It is fine . '' | He left . | `` Go ! '' she said .",
    "He left ( at last . ) | She stayed .",
    "Was it Plan B? | Yes, Plan B. | The end.",
    "The temperature was 40. | 15 people left.",
    "The Rev. Martin Luther King Jr. spoke. | All listened.",
    "Gen. David Petraeus and Lt. Col. Lee arrived. | Sgt. Pepper did not.",
    "It is 3 ft. tall. | That is small.",
    "Yahoo! is a firm. | It has an office.",
    "I told him no. | He went on.",
    "\u4eca\u5929\u4e0b\u96e8\u3002|\u6211\u4eec\u4e0d\u53bb\u3002|\u597d\u5417\uff1f",
    "He is 1.8 m. | She is taller.",
    "Rock vs. Paper was dull. | Paper won.",
    'He asked "Who?" and left. | Nobody knew.',
    "So it was I. | He knew.",
    "At 9.40 p.m. Mr. Brown spoke. | It was late.",
    "The firm (Acme Corp.) failed. | It owed $2.5m.",
    "Born Sept. 3, 1950, he died Nov. 1. | He was 60.",
    "President John F. Kennedy was shot. | Gov. Connally was hurt.",
    "Prices rose 3.2%. | Wages did not.",
    '"It works." | -- John Doe',
    "The U.N. said so. | The U.K. and the E.U. agreed.",
    "Vol. 3, pp. 12-15, ch. 4. | End.",
]


def _gold(case: str) -> tuple[str, list[str]]:
    return re.sub(r" ?\| ?", lambda m: " " if " " in m.group() else "", case), [s.strip() for s in case.split("|")]


def _ends(sentences: list[str]) -> set[int]:
    """Boundaries as counts of non-blank characters, without the one at the end of the text."""
    total, ends = 0, set()
    for sentence in sentences:
        total += len("".join(sentence.split()))
        ends.add(total)
    return ends - {total}


def test_accuracy_on_hard_cases_is_printed_and_high() -> None:
    exact = hits = false = missed = 0
    wrong = []
    for case in HARD:
        text, gold = _gold(case)
        found = split_sentences(text)
        exact += found == gold
        hits += len(_ends(found) & _ends(gold))
        false += len(_ends(found) - _ends(gold))
        missed += len(_ends(gold) - _ends(found))
        if found != gold:
            wrong.append(found)
    precision, recall = hits / (hits + false), hits / (hits + missed)
    sys.stdout.write(
        f"split_sentences: {exact}/{len(HARD)} texts exact, boundary precision {precision:.3f}, recall {recall:.3f}; "
        f"not as marked: {wrong}\n"
    )
    assert precision >= 0.97 and recall >= 0.97
    # The naive rule must stay visibly worse, or these cases prove nothing.
    naive = sum(re.split(r"(?<=[.!?])\s+", _gold(case)[0]) == _gold(case)[1] for case in HARD)
    assert naive < 0.5 * len(HARD) < 0.9 * len(HARD) <= exact


def test_newlines_are_hard_breaks_unless_told_otherwise() -> None:
    text = "A title without a stop\nThe first line\nends here. And more.\n\nA new paragraph"
    assert split_sentences(text) == [
        "A title without a stop", "The first line", "ends here.", "And more.", "A new paragraph",
    ]  # fmt: skip
    assert split_sentences(text, newlines=False) == [
        "A title without a stop The first line ends here.", "And more.", "A new paragraph",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t \u00a0"])
def test_no_text_is_no_sentence(text: str) -> None:
    assert split_sentences(text) == [] and words(text) == [] and normalise(text) == ""


# Words, marks and blanks that meet each other far more often than in random Unicode.
_pieces = st.sampled_from(
    ["U.S.", "Dr.", "No.", "5", "3.5", "a", "B.", "The", "the", "said", ".", "...", "\u2026", "!", "?", '"', "''", "``",
     "'", "(", ")", "-LRB-", "-RRB-", "\u201c", "\u201d", "\u2022", "--", "$", "n't", "'s", "\u3002", "e\u0301",
     "\u200b", "\u00ad", ",", " ", " ", " ", "\n", "\r\n", "\u00a0", "\u2028", "\x85", "p.m.", "1."]
)  # fmt: skip
_texts = st.one_of(st.lists(_pieces, max_size=40).map("".join), st.text(max_size=80))


@settings(max_examples=400, deadline=None)
@given(_texts, st.booleans())
def test_no_character_is_lost_and_no_sentence_is_empty(text: str, newlines: bool) -> None:
    sentences = split_sentences(text, newlines=newlines)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(s and s == s.strip() for s in sentences)
    assert sentences == split_sentences(text, newlines=newlines)


@settings(max_examples=400, deadline=None)
@given(_texts, st.booleans(), st.booleans())
def test_normalise_is_idempotent(text: str, quotes: bool, ptb: bool) -> None:
    once = normalise(text, quotes=quotes, ptb=ptb)
    assert normalise(once, quotes=quotes, ptb=ptb) == once
    assert "  " not in once and once == once.strip() and "\n\n" not in once


@pytest.mark.parametrize(
    "unit",
    [
        ". ",
        "A. ",
        "a.",
        "...",
        '." ',
        "1. ",
        "\u2022 ",
        ". -",
        " ",
        "((",
        "\u3002",
        "U.S. ",
        "(. ",
        "-LRB- ",
        "''",
        "\n",
    ],
)
@pytest.mark.timeout(60)
def test_hostile_text_costs_linear_work(unit: str) -> None:
    """No measurement: quadratic work on so many characters would run for many minutes, linear work for a second."""
    text = unit * (300_000 // len(unit))
    split_sentences(text), split_sentences(text, newlines=False), normalise(text, quotes=True, ptb=True), words(text)


def test_normalise() -> None:
    assert normalise(" a \u00a0 b\r\n\r\n c\u200bd ") == "a b\ncd"
    assert normalise("e\u0301") == "\u00e9"
    assert normalise("\u201cIt\u2019s\u201d", quotes=True) == '"It\'s"'
    ptb = "-LRB- CNN -RRB- `` I do n't know , '' he said . It 's $ 5 -LSB- sic -RSB- ."
    assert normalise(ptb, ptb=True) == "(CNN) \"I don't know,\" he said. It's $5 [sic]."
    assert repair_ptb("no tokens here (at all).") == "no tokens here (at all)."


def test_words() -> None:
    assert words("It's 3.5 km, isn\u2019t_it? \u00c4rger") == ["It's", "3", "5", "km", "isn\u2019t", "it", "\u00c4rger"]
    assert words("It's ON", lower=True) == ["it's", "on"]


def test_the_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, latentlab_shared.text; print([m for m in ('torch', 'numpy', 'nltk', 'scipy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
