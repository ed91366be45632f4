"""Classification, calibration and answers against scikit-learn, loops, and simulated honest forecasters."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from latentlab_shared.metrics import classification as c

_labelled = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)
_scored = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda x: x / 8)), min_size=1, max_size=30)


@given(_labelled)
def test_counts_equal_scikit_learn(items: list[tuple[str, str]]) -> None:
    true, found = [t for t, _ in items], [f for _, f in items]
    assert c.accuracy(true, found) == pytest.approx(sk.accuracy_score(true, found))
    assert np.array_equal(c.confusion_matrix(true, found, "abc"), sk.confusion_matrix(true, found, labels=list("abc")))
    np.testing.assert_allclose(
        c.f1_per_class(true, found, "abc"), sk.f1_score(true, found, labels=list("abc"), average=None, zero_division=0)
    )
    assert c.macro_f1(true, found) == pytest.approx(sk.f1_score(true, found, average="macro", zero_division=0))


@given(_scored)
def test_auc_and_brier_equal_scikit_learn(items: list[tuple[int, float]]) -> None:
    happened, p = np.array([h for h, _ in items]), np.array([q for _, q in items])
    assert c.brier_score(p, happened) == pytest.approx(np.mean((p - happened) ** 2))
    if 0 < happened.sum() < len(items):
        assert c.roc_auc(happened, p) == pytest.approx(sk.roc_auc_score(happened, p))
        assert c.roc_auc(happened, np.zeros(len(items))) == 0.5
    else:
        assert np.isnan(c.roc_auc(happened, p))
    both = np.stack([1 - p, p], axis=1)
    assert c.brier_score(both, happened) == pytest.approx(2 * c.brier_score(p, happened))


@given(_scored, st.integers(1, 20))
def test_equal_width_ece_equals_a_loop(items: list[tuple[int, float]], bins: int) -> None:
    total = 0.0
    for i in range(bins):
        inside = [(h, p) for h, p in items if i / bins < p <= (i + 1) / bins or (i == 0 and p == 0)]
        total += abs(sum(p - h for h, p in inside))
    found = c.expected_calibration_error([p for _, p in items], [h for h, _ in items], bins)
    assert found == pytest.approx(total / len(items))


def test_a_probability_on_an_edge_belongs_to_the_lower_bin() -> None:
    table = c.reliability_table([0.0, 0.5, 0.75, 1.0], [0, 1, 1, 1], bins=4)
    assert [(row.low, row.high, row.count, row.rate) for row in table] == [
        (0, 0.25, 1, 0), (0.25, 0.5, 1, 1), (0.5, 0.75, 1, 1), (0.75, 1, 1, 1),
    ]  # fmt: skip


@given(_scored, st.integers(1, 9))
def test_equal_mass_bins_keep_ties_together_and_lose_nobody(items: list[tuple[int, float]], bins: int) -> None:
    p = [q for _, q in items]
    table = c.reliability_table(p, [h for h, _ in items], bins, "mass")
    assert sum(row.count for row in table) == len(items) and len(table) <= bins
    assert all(a.high < b.low for a, b in itertools.pairwise(table))
    assert sum(row.count * row.probability for row in table) == pytest.approx(sum(p))


def test_equal_mass_bins_are_equal_where_they_can_be() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(1000) ** 4
    happened = rng.random(1000) < p
    assert [row.count for row in c.reliability_table(p, happened, 10, "mass")] == [100] * 10


def test_an_honest_forecaster_is_calibrated_and_an_overconfident_one_is_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    happened = rng.random(20_000) < p
    loud = np.clip(0.5 + 2 * (p - 0.5), 0, 1)
    for scheme in ("width", "mass"):
        assert c.expected_calibration_error(p, happened, scheme=scheme) < 0.02  # type: ignore[arg-type]
        assert c.expected_calibration_error(loud, happened, scheme=scheme) > 0.1  # type: ignore[arg-type]
    assert c.brier_score(p, happened) < c.brier_score(loud, happened)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=6))
def test_risk_of_ties_is_its_average_over_all_orders(items: list[tuple[int, int]]) -> None:
    curves = []
    for order in itertools.permutations(items):
        losses = [loss for _, loss in sorted(order, key=lambda item: -item[0])]
        curves.append(np.cumsum(losses) / np.arange(1, len(items) + 1))
    coverage, risk = c.risk_coverage_curve([s for s, _ in items], [loss for _, loss in items])
    np.testing.assert_allclose(risk, np.mean(curves, axis=0))
    assert coverage[-1] == 1 and risk[-1] == pytest.approx(np.mean([loss for _, loss in items]))


def test_a_good_confidence_has_a_smaller_area() -> None:
    losses = np.array([0, 0, 0, 1, 1])
    good, useless, bad = (c.area_under_risk_coverage(s, losses) for s in ([5, 4, 3, 2, 1], [1] * 5, [1, 2, 3, 4, 5]))
    assert good < useless < bad and useless == pytest.approx(0.4)


# ---- calibrators ----------------------------------------------------------------------------------------------------


def _simulated(n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n) * 3 + 100  # far from zero: a fit must not depend on the scale
    return scores, (rng.random(n) < 1 / (1 + np.exp(-0.7 * (scores - 101)))).astype(int)


def test_platt_equals_scikit_learn() -> None:
    scores, happened = _simulated()
    ours = c.PlattCalibrator.fit(scores, happened)
    theirs = _SigmoidCalibration().fit(scores, happened)
    np.testing.assert_allclose(ours.predict(scores), theirs.predict(scores), atol=1e-3)
    assert ours.slope == pytest.approx(0.7, abs=0.1)


def test_isotonic_equals_scikit_learn() -> None:
    scores, happened = _simulated(300)
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, happened)
    new = np.linspace(80, 120, 500)
    np.testing.assert_allclose(c.IsotonicCalibrator.fit(scores, happened).predict(new), theirs.predict(new), atol=1e-6)


def test_temperature_finds_the_factor_and_keeps_the_order() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(4000, 3)) * 2
    cumulative = np.cumsum(np.exp(honest) / np.exp(honest).sum(1, keepdims=True), axis=1)
    index = (rng.random((4000, 1)) > cumulative).sum(1)
    fitted = c.TemperatureCalibrator.fit(5 * honest, index)
    assert fitted.temperature == pytest.approx(5, rel=0.06)
    assert np.array_equal(fitted.predict(honest).argmax(1), honest.argmax(1))
    np.testing.assert_allclose(fitted.predict(honest).sum(1), 1)
    one = c.TemperatureCalibrator.fit(
        honest[:, 1], (rng.random(4000) < 1 / (1 + np.exp(-honest[:, 1] / 2))).astype(int)
    )
    assert one.temperature == pytest.approx(2, rel=0.15) and one.predict([0.0])[0] == 0.5


@pytest.mark.parametrize("kind", [c.PlattCalibrator, c.IsotonicCalibrator, c.TemperatureCalibrator])
def test_calibrators_improve_held_out_items_and_survive_json(kind: Any) -> None:
    scores, happened = _simulated(4000)
    logits = scores - 101 if kind is c.TemperatureCalibrator else scores
    fitted = kind.fit(logits[:2000], happened[:2000])
    raw = c.TemperatureCalibrator(1.0).predict(scores[2000:] - 101)
    after = fitted.predict(logits[2000:])
    assert c.expected_calibration_error(after, happened[2000:]) < c.expected_calibration_error(raw, happened[2000:])
    again = kind(**json.loads(json.dumps(dataclasses.asdict(fitted))))
    assert np.array_equal(again.predict(logits), fitted.predict(logits))


# ---- answers --------------------------------------------------------------------------------------------------------


def test_token_f1_follows_squad() -> None:
    assert c.normalise_answer("The  U.S.'s a-b, an Answer!") == "uss ab answer"
    assert c.token_f1("the big red dog", ["a red dog"]) == pytest.approx(2 * 2 / (3 + 2))
    assert c.token_f1("dog dog", ["dog"]) == pytest.approx(2 / 3)
    assert c.token_f1("cat", ["dog", "the cat."]) == 1 and c.exact_match("cat", ["dog", "The cat."])
    assert c.token_f1("the", ["a"]) == 1 and c.token_f1("", ["cat"]) == 0 and not c.exact_match("", ["cat"])


_answer = st.lists(st.sampled_from(["the", "cat", "Dog", "a.", "ran"]), max_size=5).map(" ".join)


@given(_answer, _answer)
def test_token_f1_equals_precision_and_recall(a: str, b: str) -> None:
    x, y = c.normalise_answer(a).split(), c.normalise_answer(b).split()
    shared = sum(min(x.count(w), y.count(w)) for w in set(x))
    wanted = float(x == y)
    if x and y:
        precision, recall = shared / len(x), shared / len(y)
        wanted = 2 * precision * recall / (precision + recall) if shared else 0.0
    assert c.token_f1(a, [b]) == pytest.approx(wanted) == pytest.approx(c.token_f1(b, [a]))
    assert c.exact_match(a, [b]) == (x == y)


def test_wrong_input_is_an_error() -> None:
    nan = float("nan")
    for call in (
        lambda: c.accuracy([1], [1, 2]),
        lambda: c.confusion_matrix(["a"], ["z"], "ab"),
        lambda: c.confusion_matrix(["a"], ["a"], "aa"),
        lambda: c.roc_auc([0, 2], [0.1, 0.2]),
        lambda: c.roc_auc([0, 1], [0.1, nan]),
        lambda: c.brier_score([1.2], [1]),
        lambda: c.brier_score([], []),
        lambda: c.brier_score([[0.5, 0.5]], [2]),
        lambda: c.expected_calibration_error([0.5], [1], bins=0),
        lambda: c.reliability_table([0.5], [1], scheme="equal"),  # type: ignore[arg-type]
        lambda: c.risk_coverage_curve([], []),
        lambda: c.PlattCalibrator.fit([1.0, 2], [1, 1]),
        lambda: c.TemperatureCalibrator.fit([[1.0, 2]], [2]),
        lambda: c.token_f1("a", []),
        lambda: c.token_f1("a", "a"),
    ):
        with pytest.raises(ValueError):
            call()
    assert np.isnan(c.accuracy([], [])) and np.isnan(c.macro_f1([], []))
