"""Figures against the shared metrics, and by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_absa.configs import POLARITIES, Aspect, Example
from clara_absa.evaluation.linear import NearWords, features
from clara_absa.evaluation.metrics import (
    TermPrior,
    compression,
    evaluate_metrics_pure_python,
    extraction_f1,
    groups_of,
    questions_of,
    term_recall,
)
from clara_absa.sample.generator import generate
from latentlab_shared.metrics.classification import accuracy, f1_per_class, macro_f1

polarity = st.sampled_from(POLARITIES)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(polarity, polarity), min_size=1, max_size=40))
def test_the_seeds_metrics_are_the_shared_ones(pairs):
    labels, answers = [a for a, _ in pairs], [b for _, b in pairs]
    found = evaluate_metrics_pure_python(labels, answers)
    assert found["accuracy"] == pytest.approx(accuracy(labels, answers))
    assert found["macro_f1"] == pytest.approx(macro_f1(labels, answers, POLARITIES))
    for name, value in zip(POLARITIES, f1_per_class(labels, answers, POLARITIES), strict=True):
        assert found[f"f1_{name}"] == pytest.approx(value)


def test_no_answer_is_wrong_and_lists_must_fit():
    assert evaluate_metrics_pure_python(["positive", "neutral"], ["positive", None])["accuracy"] == 0.5
    for labels, answers in (([], []), (["positive"], [])):
        with pytest.raises(ValueError, match="one length"):
            evaluate_metrics_pure_python(labels, answers)


A = Example("a", "food tea", (Aspect("food", "positive", 0, 4), Aspect("tea", "negative", 5, 8)))
B = Example(
    "b",
    "food bar pub",
    (Aspect("food", "neutral", 0, 4), Aspect("bar", "neutral", 5, 8), Aspect("pub", "positive", 9, 12)),
)


def test_groups():
    groups = groups_of([A, B], [A])
    assert [q.term for q in questions_of([A, B])] == ["food", "tea", "food", "bar", "pub"]
    assert groups["pos and neg"] == [0, 1]
    assert groups["unseen term"] == [3, 4] and groups["term seen 1-9"] == [0, 1, 2]
    assert groups["2 aspects"] == [0, 1] and groups["3 aspects"] == [2, 3, 4]


def test_prior_is_the_terms_own_majority_then_the_whole_one():
    prior = TermPrior([A, B, B])
    assert (prior.predict("FOOD"), prior.predict("tea"), prior.predict("new")) == ("neutral", "negative", "neutral")


def test_extraction_needs_the_exact_span_and_polarity():
    found = [[(0, 4, "positive"), (5, 8, "positive"), (None, None, "positive")], []]
    assert extraction_f1(found, [A, B]) == pytest.approx({"precision": 1 / 3, "recall": 1 / 5, "f1": 2 / 8})


def test_compression_by_its_definitions():
    found = compression([30, 6, 12], [8, 8, 4], width=16, key_value_bytes=100)
    assert found["ratio"] == pytest.approx(48 / 20) and found["ratio_min"] == pytest.approx(0.75)
    assert found["ratio_median"] == 3 and found["share_below_1"] == pytest.approx(1 / 3)
    assert found["memory_bytes"] == pytest.approx(2 * 16 * 20 / 3) and found["kv_cache_bytes"] == 1600


def test_term_recall():
    assert term_recall(["The Food", "none"], [["food", "tea"], ["bar"]]) == pytest.approx(1 / 3)


def test_the_linear_rival_reads_the_words_around_an_aspect():
    food, staff = Aspect("food", "positive", 4, 8), Aspect("staff", "negative", 31, 36)
    one = Example("1", "The food is good, but the rude staff shouted", (food, staff))
    assert one.text[26:30] == "rude"
    staff = Aspect("staff", "negative", 31, 36)
    near, far = features(one, staff), features(one, food)
    assert near["left rude"] == near["right shouted"] == near["left 0 rude"] == 1.0
    assert far["right is"] == 1.0 and far["right good"] == pytest.approx(1 / 1.5) and far["of food"] == 1.0
    assert far["right rude"] < far["right good"] < far["right is"]
    assert features(one, Aspect("service", "negative"))["near rude"] == 1.0
    train = generate(200, seed=1)
    asked = generate(40, seed=2)
    labels = [q.label for q in questions_of(asked)]
    linear, prior = NearWords(train), TermPrior(train)
    found = evaluate_metrics_pure_python(labels, linear.predict(asked))["accuracy"]
    by_term = evaluate_metrics_pure_python(labels, [prior.predict(q.term) for q in questions_of(asked)])["accuracy"]
    assert found > by_term + 0.2
    assert NearWords([Example("1", "food", (Aspect("food", "neutral", 0, 4),))]).predict(asked[:1])[0] == "neutral"
