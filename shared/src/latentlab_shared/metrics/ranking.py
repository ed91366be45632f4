"""Ranking metrics per group (an impression, a query), vectorised over groups of different sizes, and retrieval.

Ties. In `ranking_metrics` a candidate's rank is its place by (-score, position): of equal scores the earlier listed
comes first, and the AUC counts a tied pair as one half. In `retrieval_metrics`, where the right candidate has no
position of its own, a tie counts as its average over all orders. Neither depends on a sorting algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankingScores:
    """Metrics of each kept group, in the order of the groups.

    Attributes:
        kept: which groups have both a positive and a negative candidate, (G,) bool; the others are skipped.
        auc: area under the ROC curve, a tied pair counted as one half, (K,).
        mrr: MIND's: the mean of 1/rank over *all* positives of the group, not the first hit's, (K,).
        ndcg: by cut-off, (K,) each.
        recall: share of the positives among the first k, by cut-off, (K,) each.
        hit: whether a positive is among the first k, by cut-off, (K,) each.
    """

    kept: NDArray[np.bool_]
    auc: Floats
    mrr: Floats
    ndcg: dict[int, Floats]
    recall: dict[int, Floats]
    hit: dict[int, Floats]

    @property
    def skipped(self) -> int:
        """Groups without a positive or without a negative candidate; report it beside the means."""
        return int((~self.kept).sum())

    def means(self) -> dict[str, float]:
        """Plain means over the kept groups, as the MIND leaderboard reports them; NaN if none is kept."""
        columns = {"auc": self.auc, "mrr": self.mrr}
        for name, by_cut in (("ndcg", self.ndcg), ("recall", self.recall), ("hit", self.hit)):
            columns |= {f"{name}@{k}": values for k, values in by_cut.items()}
        return {name: float(values.mean()) if values.size else float("nan") for name, values in columns.items()}


def ranking_metrics(
    scores: ArrayLike, labels: ArrayLike, lengths: ArrayLike, cutoffs: Sequence[int] = (5, 10)
) -> RankingScores:
    """Metrics of each group of candidates, by the MIND conventions.

    Args:
        scores: of all candidates, group after group, (M,); higher is better.
        labels: 1 for a click or relevant candidate, 0 otherwise, (M,).
        lengths: candidates per group, (G,), summing to M; a group may be empty.
        cutoffs: k of nDCG@k, recall@k and hit@k.

    Raises:
        ValueError: shapes that do not fit, a score that is NaN, a label other than 0 and 1, or a cut-off below 1.

    Source: evaluate.py of the MIND news recommendation task (Wu et al. 2020); nDCG by Järvelin and Kekäläinen 2002.
    """
    score, label, size = np.asarray(scores, np.float64), np.asarray(labels), np.asarray(lengths, np.int64)
    if score.ndim != 1 or score.shape != label.shape or size.ndim != 1 or (size < 0).any() or size.sum() != score.size:
        raise ValueError("scores and labels must be (M,) and lengths must sum to M")
    if np.isnan(score).any():
        raise ValueError(f"score {int(np.flatnonzero(np.isnan(score))[0])} is NaN")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if any(k < 1 for k in cutoffs):
        raise ValueError("cut-offs start at 1")
    label = label.astype(np.float64)
    positives = _group_sums(label, np.repeat(np.arange(size.size), size), size.size)
    kept = (positives > 0) & (positives < size)

    # Skipped groups leave here, so that every later division is safe.
    inside = np.repeat(kept, size)
    score, label, size, positives = score[inside], label[inside], size[kept], positives[kept]
    groups = size.size
    group = np.repeat(np.arange(groups), size)
    start = np.cumsum(size) - size
    order = np.lexsort((-score, group))  # stable: equal scores stay in listed order
    rank = np.arange(score.size) - start[group] + 1.0  # places 1, 2, ... of each group, for the sorted rows
    found, sorted_score = label[order], score[order]

    def sums(values: Floats) -> Floats:
        return _group_sums(values, group, groups)

    ndcg, recall, hit = {}, {}, {}
    discount = 1 / np.log2(rank + 1)
    for k in cutoffs:
        top = rank <= k
        ideal = top & (rank <= positives[group])
        ndcg[k] = sums(found * discount * top) / sums(discount * ideal)
        inside_top = sums(found * top)
        recall[k], hit[k] = inside_top / positives, (inside_top > 0).astype(np.float64)
    return RankingScores(
        kept=kept,
        auc=_group_auc(sorted_score, found, group, rank, size, positives),
        mrr=sums(found / rank) / positives,
        ndcg=ndcg,
        recall=recall,
        hit=hit,
    )


def _group_sums(values: Floats, group: NDArray[np.int64], groups: int) -> Floats:
    return np.asarray(np.bincount(group, weights=values, minlength=groups), np.float64)


def _group_auc(
    score: Floats, label: Floats, group: NDArray[np.int64], rank: Floats, size: NDArray[np.int64], positives: Floats
) -> Floats:
    """AUC per group by mid-ranks (Mann and Whitney 1947), for rows sorted by group and descending score."""
    if not score.size:
        return np.zeros(0)
    new_run = np.r_[True, (score[1:] != score[:-1]) | (group[1:] != group[:-1])]
    run = np.cumsum(new_run) - 1
    mid = (np.bincount(run, weights=rank) / np.bincount(run))[run]  # mean place of a row's tied run, 1 is the best
    ascending = size[group] + 1 - mid
    rank_sum = _group_sums(label * ascending, group, size.size)
    pairs = positives * (size - positives)
    return np.asarray((rank_sum - positives * (positives + 1) / 2) / pairs)


@dataclass(frozen=True)
class RetrievalScores:
    """Metrics of each query.

    Attributes:
        candidates: how many stood to choice.
        recall: probability that the right candidate is among the first k, by cut-off, (N,) each.
        reciprocal_rank: expected 1/rank of the right candidate, (N,).
    """

    candidates: int
    recall: dict[int, Floats]
    reciprocal_rank: Floats

    def means(self) -> dict[str, float]:
        """Means over the queries: ``r@k`` and ``mrr``."""
        columns = {f"r@{k}": values for k, values in self.recall.items()} | {"mrr": self.reciprocal_rank}
        return {name: float(values.mean()) if values.size else float("nan") for name, values in columns.items()}


def retrieval_metrics(
    similarity: ArrayLike, right: ArrayLike | None = None, cutoffs: Sequence[int] = (1, 10)
) -> RetrievalScores:
    """How well each query finds its one right candidate among all.

    Tied candidates count as in a random order: a model that gives every candidate the same score has R@1 = 1/M.

    Args:
        similarity: of queries to candidates, (N, M); higher is nearer.
        right: index of each query's right candidate, (N,); by default 0, 1, 2 ...
        cutoffs: k of R@k.

    Raises:
        ValueError: shapes that do not fit, an index out of range, NaN, or a cut-off below 1.
    """
    scores = np.asarray(similarity)
    if scores.ndim != 2:
        raise ValueError("similarity must be (N, M)")
    answer = _checked_answers(right, scores.shape[0], scores.shape[1])
    higher, tied = _places(scores, answer)
    return _retrieval(higher, tied, scores.shape[1], cutoffs)


def retrieval_metrics_of_vectors(
    queries: ArrayLike,
    candidates: ArrayLike,
    right: ArrayLike | None = None,
    cutoffs: Sequence[int] = (1, 10),
    *,
    cosine: bool = True,
    block: int = 1024,
) -> RetrievalScores:
    """`retrieval_metrics` from vectors, a block of queries at a time, so that N times M numbers are never in memory.

    Args:
        queries: (N, D).
        candidates: (M, D).
        right: index of each query's right candidate, (N,); by default 0, 1, 2 ...
        cutoffs: k of R@k.
        cosine: compare directions (a zero vector is equally far from all); otherwise plain dot products.
        block: queries per block.

    Raises:
        ValueError: as `retrieval_metrics`.
    """
    x, y = np.asarray(queries, np.float64), np.asarray(candidates, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError("queries must be (N, D) and candidates (M, D)")
    if cosine:
        x, y = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (x, y))
    answer = _checked_answers(right, x.shape[0], y.shape[0])
    parts = [_places(x[at : at + block] @ y.T, answer[at : at + block]) for at in range(0, x.shape[0], block)]
    higher, tied = (np.concatenate([part[i] for part in parts]) if parts else np.zeros(0) for i in (0, 1))
    return _retrieval(higher, tied, y.shape[0], cutoffs)


def _checked_answers(right: ArrayLike | None, queries: int, candidates: int) -> NDArray[np.int64]:
    answer = np.arange(queries) if right is None else np.asarray(right, np.int64)
    if answer.shape != (queries,) or (answer.size and not (answer.min() >= 0 and answer.max() < candidates)):
        raise ValueError(f"every query needs the index of one of the {candidates} candidates")
    return answer


def _places(scores: NDArray[np.floating], answer: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Candidates above each right one, and others level with it, (N,) each."""
    if np.isnan(scores).any():
        raise ValueError("a similarity is NaN")
    own = np.take_along_axis(scores, answer[:, None], axis=1)
    return (scores > own).sum(1).astype(np.float64), ((scores == own).sum(1) - 1).astype(np.float64)


def _retrieval(higher: Floats, tied: Floats, candidates: int, cutoffs: Sequence[int]) -> RetrievalScores:
    """Averages over the places higher + 1 ... higher + tied + 1, all equally likely."""
    if any(k < 1 for k in cutoffs):
        raise ValueError("cut-offs start at 1")
    recall = {k: np.clip((k - higher) / (tied + 1), 0, 1) for k in cutoffs}
    harmonic = np.r_[0.0, np.cumsum(1 / np.arange(1, candidates + 1))]
    first, last = higher.astype(np.int64), (higher + tied).astype(np.int64) + 1
    return RetrievalScores(candidates, recall, (harmonic[last] - harmonic[first]) / (tied + 1))
