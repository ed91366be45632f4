"""Intervals and tests against SciPy, plain loops, and coverage on simulated data."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentlab_shared.metrics.statistics import bootstrap_interval, over_seeds, paired_bootstrap, permutation_test

SKEWED = np.random.default_rng(3).exponential(size=40)


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values))


# No BCa of the median: its jackknife takes two values only, of which SciPy warns too.
@pytest.mark.parametrize(
    ("method", "statistic"),
    [("percentile", None), ("percentile", np.median), ("percentile", _deviation), ("BCa", None), ("BCa", _deviation)],
)
def test_intervals_agree_with_scipy(method: str, statistic: Any) -> None:
    found = bootstrap_interval(SKEWED, statistic, method=method.lower(), resamples=4000, seed=1)  # type: ignore[arg-type]
    wanted = stats.bootstrap(
        (SKEWED,), statistic or np.mean, method=method, n_resamples=4000, rng=np.random.default_rng(2), vectorized=False
    ).confidence_interval
    spread = wanted.high - wanted.low
    assert abs(found.low - wanted.low) < 0.06 * spread and abs(found.high - wanted.high) < 0.06 * spread
    assert found.estimate == pytest.approx((statistic or np.mean)(SKEWED))


def test_the_fast_mean_draws_the_same_resamples_as_a_statistic_would() -> None:
    clusters = np.arange(40) // 3
    for options in ({}, {"clusters": clusters}, {"method": "bca", "clusters": clusters}):
        fast = bootstrap_interval(SKEWED, resamples=500, **options)
        slow = bootstrap_interval(SKEWED, lambda x: float(x.mean()), resamples=500, **options)
        assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))


def test_bca_moves_the_interval_of_a_skewed_mean_upwards() -> None:
    plain, corrected = (bootstrap_interval(SKEWED, method=m) for m in ("percentile", "bca"))
    assert corrected.low > plain.low and corrected.high > plain.high


def test_seeds_decide_and_repeat() -> None:
    assert bootstrap_interval(SKEWED, seed=4) == bootstrap_interval(SKEWED, seed=4)
    assert bootstrap_interval(SKEWED, seed=4) != bootstrap_interval(SKEWED, seed=5)
    a, b = SKEWED, SKEWED[::-1] + 0.2
    assert permutation_test(a, b, seed=1) == permutation_test(a, b, seed=1)


def test_a_ninety_percent_interval_covers_the_truth_about_nine_times_in_ten() -> None:
    rng = np.random.default_rng(0)
    for method in ("percentile", "bca"):
        intervals = [
            bootstrap_interval(rng.normal(2, 1, 50), level=0.9, resamples=600, method=method, seed=i)  # type: ignore[arg-type]
            for i in range(300)
        ]
        assert 0.85 < np.mean([i.low <= 2 <= i.high for i in intervals]) < 0.95


def test_clusters_widen_the_interval_as_theory_says() -> None:
    """30 users, 20 identical values each: the interval must be that of 30 values, about sqrt(20) times as wide."""
    users = np.random.default_rng(0).normal(size=30)
    values, names = np.repeat(users, 20), np.repeat([f"user {i}" for i in range(30)], 20)
    clustered = bootstrap_interval(values, clusters=names)
    once = bootstrap_interval(users)
    assert clustered.high - clustered.low == pytest.approx(once.high - once.low, rel=0.05)
    naive = bootstrap_interval(values)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(np.sqrt(20), rel=0.1)


def test_paired_comparison_sees_what_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=200)
    a, b = difficulty + 0.1 + 0.2 * rng.normal(size=200), difficulty + 0.2 * rng.normal(size=200)
    paired = paired_bootstrap(a, b)
    assert paired.excludes_zero and paired.low > 0 and permutation_test(a, b) < 0.01
    assert bootstrap_interval(a).low < bootstrap_interval(b).high
    assert not paired_bootstrap(a, a).excludes_zero and permutation_test(a, a) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=8))
def test_small_permutation_tests_are_exact(pairs: list[tuple[int, int]]) -> None:
    a, b = ([float(p[i]) for p in pairs] for i in (0, 1))
    difference = np.subtract(a, b)
    signs = list(itertools.product((-1, 1), repeat=len(pairs)))
    expected = np.mean([abs(np.dot(s, difference)) >= abs(difference.sum()) for s in signs])
    assert permutation_test(a, b) == pytest.approx(expected)


def test_large_permutation_tests_agree_with_scipy_and_with_the_null() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.15, 1, 60), rng.normal(0, 1, 60)
    found = permutation_test(a, b, resamples=20_000)
    wanted = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis), permutation_type="samples", n_resamples=20_000, rng=rng
    ).pvalue
    assert 0.1 < wanted < 0.9 and found == pytest.approx(wanted, abs=0.02)
    assert permutation_test(a + 9, b, resamples=999) == 1 / 1000  # never 0
    null = [permutation_test(rng.normal(size=20), rng.normal(size=20), resamples=200, seed=i) for i in range(300)]
    assert 0.02 < np.mean(np.array(null) <= 0.05) < 0.09


def test_clusters_flip_together() -> None:
    a, b, names = [1.0, 1, 1, 1], [0.0, 0, 0, 0], ["x", "x", "y", "y"]
    assert permutation_test(a, b) == 2 / 16 and permutation_test(a, b, clusters=names) == 2 / 4


def test_over_seeds_is_student_t() -> None:
    values = [0.61, 0.64, 0.60, 0.66, 0.63]
    found = over_seeds(values)
    wanted = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(wanted) and str(found) == "0.628 [0.5984, 0.6576]"
    assert np.isnan(over_seeds([0.5]).low) and over_seeds([0.5]).estimate == 0.5


def test_what_cannot_be_said_is_nan_and_wrong_input_is_an_error() -> None:
    assert np.isnan(bootstrap_interval([3.0]).low) and bootstrap_interval([3.0]).estimate == 3
    assert np.isnan(bootstrap_interval([3.0, 4], clusters=["a", "a"]).high)
    same = bootstrap_interval([2.0, 2.0, 2.0], method="bca")
    assert same.low == same.high == same.estimate == 2
    for call in (
        lambda: bootstrap_interval([]),
        lambda: bootstrap_interval([1.0, float("nan")]),
        lambda: bootstrap_interval([[1.0]]),
        lambda: bootstrap_interval([1.0], level=1.5),
        lambda: bootstrap_interval([1.0, 2], method="normal"),  # type: ignore[arg-type]
        lambda: bootstrap_interval([1.0, 2], clusters=["a"]),
        lambda: paired_bootstrap([1.0], [1.0, 2]),
        lambda: permutation_test([], []),
        lambda: over_seeds([]),
    ):
        with pytest.raises(ValueError):
            call()
