"""Ranking per group against scikit-learn and the official loops; ties; retrieval against its own averages."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from latentlab_shared.metrics.ranking import ranking_metrics, retrieval_metrics, retrieval_metrics_of_vectors


def _official(scores: list[float], labels: list[int], cutoffs: tuple[int, ...]) -> dict[str, float]:
    """The MIND task's definitions, candidate by candidate, after a stable sort by falling score."""
    places = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    ranked = [labels[i] for i in places]
    found = {"mrr": sum(y / (i + 1) for i, y in enumerate(ranked)) / sum(ranked)}
    pairs = [
        (s, t) for s, y in zip(scores, labels, strict=True) if y for t, z in zip(scores, labels, strict=True) if not z
    ]
    found["auc"] = sum(1.0 if s > t else 0.5 if s == t else 0.0 for s, t in pairs) / len(pairs)
    for k in cutoffs:

        def dcg(gains: list[int], k: int = k) -> float:
            return float(sum((2**y - 1) / np.log2(i + 2) for i, y in enumerate(gains[:k])))

        found[f"ndcg@{k}"] = dcg(ranked) / dcg(sorted(labels, reverse=True))
        found[f"recall@{k}"] = sum(ranked[:k]) / sum(ranked)
        found[f"hit@{k}"] = float(any(ranked[:k]))
    return found


_group = st.lists(st.tuples(st.integers(-3, 3).map(lambda x: x / 2), st.integers(0, 1)), max_size=9)


@settings(max_examples=300, deadline=None)
@given(st.lists(_group, max_size=8))
def test_every_group_equals_the_slow_definition(groups: list[list[tuple[float, int]]]) -> None:
    flat = [pair for group in groups for pair in group]
    scores, labels = [s for s, _ in flat], [y for _, y in flat]
    found = ranking_metrics(scores, labels, [len(g) for g in groups], (1, 3, 20))
    useful = [g for g in groups if len({y for _, y in g}) == 2]
    assert found.skipped == len(groups) - len(useful) and found.kept.shape == (len(groups),)
    expected = [_official([s for s, _ in g], [y for _, y in g], (1, 3, 20)) for g in useful]
    columns = {"auc": found.auc, "mrr": found.mrr} | {
        f"{name}@{k}": values[k]
        for name, values in (("ndcg", found.ndcg), ("recall", found.recall), ("hit", found.hit))
        for k in (1, 3, 20)
    }
    for name, values in columns.items():
        np.testing.assert_allclose(values, [e[name] for e in expected], atol=1e-12, err_msg=name)
        if useful:
            assert found.means()[name] == pytest.approx(np.mean([e[name] for e in expected]))


def test_agrees_with_scikit_learn_on_distinct_scores() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 200)
    scores = rng.permutation(lengths.sum()).astype(float)
    labels = (rng.random(lengths.sum()) < 0.2).astype(int)
    found = ranking_metrics(scores, labels, lengths, (5, 10))
    parts = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
    kept = [p for p, keep in zip(parts, found.kept, strict=True) if keep]
    np.testing.assert_allclose(found.auc, [roc_auc_score(labels[p], scores[p]) for p in kept])
    np.testing.assert_allclose(found.ndcg[10], [ndcg_score([labels[p]], [scores[p]], k=10) for p in kept])


def test_ties_go_to_the_earlier_position_and_count_half_in_the_auc() -> None:
    first = ranking_metrics([0, 0, 0, 0], [1, 0, 0, 0], [4], (1,))
    last = ranking_metrics([0, 0, 0, 0], [0, 0, 0, 1], [4], (1,))
    assert (first.mrr[0], last.mrr[0]) == (1, 0.25) and (first.hit[1][0], last.hit[1][0]) == (1, 0)
    assert first.auc[0] == last.auc[0] == 0.5


def test_mrr_is_the_mean_over_all_positives() -> None:
    assert ranking_metrics([3, 2, 1], [1, 0, 1], [3]).mrr[0] == pytest.approx((1 + 1 / 3) / 2)


def test_single_class_groups_are_skipped_and_counted() -> None:
    found = ranking_metrics([1, 2, 3, 4, 5], [1, 1, 0, 0, 1], [2, 1, 2, 0])
    assert found.kept.tolist() == [False, False, True, False] and found.skipped == 3
    empty = ranking_metrics([], [], [])
    assert empty.skipped == 0 and np.isnan(empty.means()["auc"])


@given(_group, st.integers(0, 5), st.floats(0.1, 3))
def test_other_groups_and_monotone_scores_change_nothing(group: list[tuple[float, int]], n: int, scale: float) -> None:
    scores, labels = [s for s, _ in group], [y for _, y in group]
    alone = ranking_metrics(scores, labels, [len(group)])
    noise = [0.3, -1.0] * n
    crowd = ranking_metrics(
        [*noise, *(np.exp(scale * s) for s in scores)], [*[1, 0] * n, *labels], [*[2] * n, len(group)]
    )
    np.testing.assert_allclose(crowd.auc[n:], alone.auc)
    np.testing.assert_allclose(crowd.ndcg[5][n:], alone.ndcg[5])


@pytest.mark.parametrize(
    ("scores", "labels", "lengths", "cutoffs", "message"),
    [
        ([1.0], [1, 0], [1], (5,), "must be"),
        ([1.0, 2], [1, 0], [1], (5,), "must be"),
        ([float("nan"), 2], [1, 0], [2], (5,), "score 0 is NaN"),
        ([1.0, 2], [1, 2], [2], (5,), "0 or 1"),
        ([1.0, 2], [1, 0], [2], (0,), "start at 1"),
        ([1.0, 2], [1, 0], [3, -1], (5,), "must be"),
    ],
)
def test_wrong_input(scores: object, labels: object, lengths: object, cutoffs: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranking_metrics(scores, labels, lengths, cutoffs)  # type: ignore[arg-type]


# ---- retrieval ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_ties_count_as_their_average_over_all_orders(row: list[int], data: st.DataObject) -> None:
    right = data.draw(st.integers(0, len(row) - 1))
    places = []
    for order in itertools.permutations(range(len(row))):
        ranked = sorted(order, key=lambda i: -row[i])  # stable: a tie falls as this order has it
        places.append(ranked.index(right) + 1)
    found = retrieval_metrics([row], [right], (1, 2, 9))
    for k in (1, 2, 9):
        assert found.recall[k][0] == pytest.approx(np.mean([p <= k for p in places]))
    assert found.reciprocal_rank[0] == pytest.approx(np.mean([1 / p for p in places]))


def test_a_constant_model_has_chance_level() -> None:
    means = retrieval_metrics(np.zeros((50, 50))).means()
    assert means["r@1"] == pytest.approx(1 / 50) and means["r@10"] == pytest.approx(10 / 50)


def test_vectors_in_blocks_equal_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((37, 8))
    y = x[rng.permutation(37)] + 0.8 * rng.standard_normal((37, 8))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    right = rng.integers(0, 37, 37)
    whole = retrieval_metrics(unit[0] @ unit[1].T, right)
    blocks = retrieval_metrics_of_vectors(3 * x, y, right, block=5)
    np.testing.assert_allclose(blocks.reciprocal_rank, whole.reciprocal_rank)
    assert blocks.means() == pytest.approx(whole.means()) and blocks.candidates == 37
    dots = retrieval_metrics_of_vectors(x, y, right, cosine=False)
    assert dots.means() == pytest.approx(retrieval_metrics(x @ y.T, right).means())
    assert retrieval_metrics_of_vectors(x, x).means()["r@1"] == 1
    assert np.isnan(retrieval_metrics_of_vectors(np.zeros((0, 2)), y[:, :2]).means()["mrr"])


def test_wrong_retrieval_input() -> None:
    for call in (
        lambda: retrieval_metrics([1.0, 2.0]),
        lambda: retrieval_metrics([[1.0, float("nan")]]),
        lambda: retrieval_metrics([[1.0]], [1]),
        lambda: retrieval_metrics([[1.0]], [0], (0,)),
        lambda: retrieval_metrics(np.zeros((3, 2))),
        lambda: retrieval_metrics_of_vectors([[1.0]], [[1.0, 2.0]]),
    ):
        with pytest.raises(ValueError):
            call()


def test_importing_the_metrics_loads_neither_torch_nor_tensorflow() -> None:
    code = (
        "import sys\n"
        "from latentlab_shared.metrics import classification, ranking, statistics, summarization\n"
        "print([m for m in ('torch', 'tensorflow', 'sklearn', 'nltk', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
