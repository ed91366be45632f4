"""Scores of predicted embeddings, against formulas written out per article."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsr_net.evaluation.vectors import cosines, r2, r2_difference, r2_interval, score_vectors


def case(count, width=6, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(count, width)) + 1.0
    return target + rng.normal(size=target.shape), target, target.mean(0) + 0.1, rng.normal(size=(600, width)) + 1.0


@settings(deadline=None)
@given(st.integers(11, 40), st.integers(0, 1000))
def test_every_score_is_its_formula(count, seed):
    predicted, target, center, others = case(count, seed=seed)
    found = score_vectors(predicted.astype(np.float32), target, center, others)
    given = predicted.astype(np.float32).astype(np.float64)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    candidates = np.concatenate([target, others])[:500]
    for i in range(count):
        assert found.error[i] == pytest.approx(((given[i] - target[i]) ** 2).sum())
        assert found.spread[i] == pytest.approx(((center - target[i]) ** 2).sum())
        assert found.cosine[i] == pytest.approx(cosine(given[i], target[i]))
        plain = [cosine(given[i], t) for t in target]
        centred = [cosine(given[i] - center, t - center) for t in target]
        many = [cosine(given[i] - center, t - center) for t in candidates]
        rank = 1 + sum(c > centred[i] for c in centred)
        assert found.hit[i] == (max(plain) == plain[i])
        assert found.hit_centred[i] == (rank == 1)
        assert found.hit10_centred[i] == (rank <= 10)
        assert found.reciprocal_centred[i] == pytest.approx(1 / rank)
        assert found.hit_500[i] == (max(many) == many[i])


def test_without_500_candidates_there_is_no_figure_for_500():
    predicted, target, center, others = case(20)
    assert np.isnan(score_vectors(predicted, target, center, others[:100]).hit_500).all()


def test_r2_is_one_for_the_truth_and_zero_for_the_mean():
    _, target, center, others = case(30)
    truth = score_vectors(target, target, center, others)
    mean = score_vectors(np.tile(center, (30, 1)), target, center, others)
    assert truth.means()["r2"] == 1.0 and truth.means()["r@1_of_500"] == 1.0
    assert mean.means()["r2"] == pytest.approx(0.0, abs=1e-12)


def test_differences_are_paired():
    """Two predictions that differ by the same on every article: no doubt about the difference, much about each."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(1, 3, 50)
    error = spread * 0.6
    gain = r2_difference(error, error + 0.1 * spread, spread)
    assert gain.estimate == pytest.approx(0.1) and gain.high - gain.low < 1e-9
    alone = r2_interval(rng.uniform(0.2, 1.0, 50), spread)
    assert alone.low < alone.estimate < alone.high
    assert r2_difference(error, error, spread).estimate == 0.0
    assert r2(error, spread) == pytest.approx(0.4)


def test_cosine_of_a_zero_vector_is_zero():
    assert cosines(np.zeros((1, 3)), np.ones((1, 3))).tolist() == [0.0]
