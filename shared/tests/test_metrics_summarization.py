"""ROUGE against the rouge-score package itself, subsequences and the greedy oracle against slow references."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.metrics.summarization import METRICS, Rouge, RougeScorer, greedy_oracle, lcs_length
from latentlab_shared.text import split_sentences

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the rouge extra is not installed")

_WORDS = ["the", "The", "cat", "cats", "running", "runs", "a", "b", "c", "3.5", "U.S.", "isn't", "-", "\u00e9t\u00e9"]
_texts = st.one_of(
    st.lists(st.sampled_from([*_WORDS, *_WORDS, ".", ".", "\n", "!"]), max_size=40).map(" ".join), st.text(max_size=60)
)


def _slow(prediction: str, reference: str, stem: bool) -> dict[str, Any]:
    """The rouge-score package, with our sentences on lines of their own for ROUGE-Lsum."""
    package = rouge_scorer.RougeScorer(list(METRICS), use_stemmer=stem)
    scores = package.score(reference, prediction)
    lines = ["\n".join(split_sentences(text)) for text in (reference, prediction)]
    scores["rougeLsum"] = package.score(*lines)["rougeLsum"]
    return scores


@settings(max_examples=300, deadline=None)
@given(_texts, _texts, st.booleans())
def test_rouge_equals_the_package(prediction: str, reference: str, stem: bool) -> None:
    ours, theirs = RougeScorer(stem=stem).score(prediction, reference), _slow(prediction, reference, stem)
    for metric in METRICS:
        np.testing.assert_allclose(ours[metric], tuple(theirs[metric]), atol=1e-6, err_msg=metric)


def test_rouge_equals_the_package_on_longer_texts() -> None:
    """Random texts of many sentences, where the union of subsequences and its clipping matter."""
    rng = np.random.default_rng(0)
    scorer = RougeScorer((*METRICS, "rouge3"))
    package = rouge_scorer.RougeScorer(["rouge3"], use_stemmer=True)
    for _ in range(30):
        vocabulary = rng.choice(["alpha", "beta", "running", "runs", "of", "the", "gamma", "d", "delta", "houses"], 8)
        a, b = (
            " ".join(" ".join(rng.choice(vocabulary, rng.integers(3, 90))).capitalize() + "." for _ in range(size))
            for size in rng.integers(1, 9, 2)
        )
        ours, theirs = scorer.score(a, b), _slow(a, b, True) | package.score(b, a)
        for metric in scorer.metrics:
            np.testing.assert_allclose(ours[metric], tuple(theirs[metric]), atol=1e-6, err_msg=metric)


def test_several_references_and_lines_as_sentences() -> None:
    scorer = RougeScorer(split=str.splitlines)
    package = rouge_scorer.RougeScorer(list(METRICS), use_stemmer=True)
    references = ["the cat sat\non the mat", "a dog ran. it ran far", "cats sit"]
    theirs = package.score_multi(references, "a cat sat\na dog ran")
    ours = scorer.score("a cat sat\na dog ran", references)
    for metric in METRICS:
        np.testing.assert_allclose(ours[metric], tuple(theirs[metric]), atol=1e-6)
    many = scorer.f1(["a cat sat", "x"], [references, ["x"]])
    assert many["rouge1"].shape == (2,) and many["rouge1"][1] == 1
    with pytest.raises(ValueError, match="at least one reference"):
        scorer.score("a", [])
    with pytest.raises(ValueError, match="rouge0"):
        RougeScorer(["rouge0"])


def test_the_signature_says_what_the_figures_depend_on() -> None:
    assert RougeScorer().signature == (
        "rouge1+rouge2+rougeL+rougeLsum|F1|porter:yes|sentences:latentlab_shared.text.split_sentences|as:rouge-score-0.1.2"
    )
    plain = RougeScorer(["rougeL"], stem=False, split=str.splitlines)
    assert plain.signature == "rougeL|F1|porter:no|sentences:newline|as:rouge-score-0.1.2"


def _lcs_table(a: str, b: str) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


@given(st.text("abc", max_size=90), st.text("abc", max_size=90))
def test_bit_parallel_lcs_equals_the_table(a: str, b: str) -> None:
    assert lcs_length(a, b) == _lcs_table(a, b) == lcs_length(b, a)


def _slow_oracle(sentences: list[str], reference: str, k: int) -> list[int]:
    """Greedy choice with whole scores: sentences stand on lines, and no bigram crosses a line."""

    def value(chosen: list[int]) -> float:
        total = 0.0
        for n in (1, 2):
            grams = []
            for lines in ([sentences[i] for i in chosen], split_sentences(reference)):
                tokens = [RougeScorer(["rouge1"])._tokenise(line) for line in lines]
                grams.append([tuple(t[i : i + n]) for t in tokens for i in range(len(t) - n + 1)])
            found, wanted = grams
            hits = sum(min(found.count(g), wanted.count(g)) for g in set(wanted))
            total += 2 * hits / (len(found) + len(wanted)) if hits else 0.0
        return total

    chosen: list[int] = []
    while len(chosen) < k:
        options = [(value([*chosen, i]), -i) for i in range(len(sentences)) if i not in chosen]
        if not options or max(options)[0] <= value(chosen) + 1e-12:
            break
        chosen.append(-max(options)[1])
    return sorted(chosen)


_sentence = st.lists(st.sampled_from(["cat", "dogs", "ran", "far", "and", "slept"]), max_size=6).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(_sentence, max_size=6), st.lists(_sentence, max_size=3).map(". ".join), st.integers(0, 4))
def test_greedy_oracle_equals_the_slow_one(sentences: list[str], reference: str, k: int) -> None:
    assert greedy_oracle(sentences, reference, k) == _slow_oracle(sentences, reference, k)


def test_greedy_oracle_finds_the_summary_in_the_document() -> None:
    document = ["Nothing here at all.", "The bridge fell on Monday.", "Weather was fine.", "Two people were hurt."]
    assert greedy_oracle(document, "The bridge fell on Monday. Two people were hurt.", 3) == [1, 3]
    assert greedy_oracle(document, "Two people were hurt.", 3) == [3]
    assert greedy_oracle([], "x", 3) == greedy_oracle(document, "", 3) == greedy_oracle(document, "zzz", 3) == []


def test_a_perfect_and_an_empty_summary() -> None:
    scorer = RougeScorer()
    assert set(scorer.score("The cat sat.", "The cat sat.").values()) == {Rouge(1, 1, 1)}
    for a, b in (("", "x"), ("x", ""), ("", ""), ("...", "the")):
        assert set(scorer.score(a, b).values()) == {Rouge(0, 0, 0)}


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, latentlab_shared.metrics.summarization as m; m.RougeScorer(stem=False).score('a', 'a');"
    code += "print([m for m in ('torch', 'tensorflow', 'nltk', 'rouge_score', 'sklearn', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
