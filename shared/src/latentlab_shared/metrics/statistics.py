"""How sure a figure is: bootstrap intervals, paired comparisons, permutation tests, means over seeds.

Everything is seeded. Where values come in clusters (several impressions of one user, several items of one fold), give
``clusters``: whole clusters are then drawn or flipped, because single values would make the interval too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[NDArray[np.float64]], float]

# Resamples are drawn in blocks of about this many numbers, so that memory does not grow with their number.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: the statistic of the data as they are.
        low: lower end.
        high: upper end.
        level: confidence, such as 0.95.
        method: how the ends were found.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic | None = None,
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    method: Literal["percentile", "bca"] = "percentile",
    seed: int = 0,
) -> Interval:
    """A bootstrap confidence interval.

    Args:
        values: one row per item, (N,) or (N, ...).
        statistic: from rows, of any number, to a number; None for the mean of (N,), which is much faster.
        clusters: the cluster of each item, (N,); clusters are drawn with replacement, each with all its items.
        resamples: how many times to draw.
        level: confidence.
        method: ``percentile``, or ``bca``, which corrects for bias and skewness (one more evaluation per item or
            cluster).
        seed: of the draws.

    Returns:
        The interval; with a single item or cluster its ends are NaN, because nothing can be said.

    Raises:
        ValueError: no values, values that are NaN, or options out of range.

    Source: Efron 1987, "Better bootstrap confidence intervals"; Field and Welsh 2007 for clusters.
    """
    data = np.asarray(values, np.float64)
    if data.ndim < 1 or (statistic is None and data.ndim != 1) or not data.shape[0]:
        raise ValueError("values must be (N,), with N of at least 1")
    if np.isnan(data).any():
        raise ValueError("a value is NaN; drop or count such items first")
    if not 0 < level < 1 or resamples < 1 or method not in ("percentile", "bca"):
        raise ValueError("level must lie between 0 and 1, resamples be positive, method percentile or bca")
    members = _members(clusters, data.shape[0])
    estimate = float(data.mean()) if statistic is None else float(statistic(data))
    if len(members) < 2:
        return Interval(estimate, float("nan"), float("nan"), level, method)
    draws = _draws(data, statistic, members, resamples, np.random.default_rng(seed))
    tails = (1 - level) / 2, (1 + level) / 2
    if method == "bca":
        tails = _bca_tails(draws, _leave_one_out(data, statistic, members), estimate, tails)
    low, high = np.quantile(draws, tails)
    return Interval(estimate, float(low), float(high), level, method)


def _members(clusters: ArrayLike | None, items: int) -> list[NDArray[np.int64]]:
    """The items of each cluster; without clusters each item is one."""
    if clusters is None:
        return list(np.arange(items)[:, None])
    labels = np.asarray(clusters)
    if labels.shape != (items,):
        raise ValueError("clusters must name one cluster per value")
    _, which = np.unique(labels, return_inverse=True)
    order = np.argsort(which, kind="stable")
    return list(np.split(order, np.cumsum(np.bincount(which))[:-1]))


def _draws(
    data: Floats,
    statistic: Statistic | None,
    members: list[NDArray[np.int64]],
    resamples: int,
    rng: np.random.Generator,
) -> Floats:
    """The statistic of each resample, (B,)."""
    count = len(members)
    if statistic is not None:
        picks = (rng.integers(count, size=count) for _ in range(resamples))
        return np.array([statistic(data[np.concatenate([members[i] for i in pick])]) for pick in picks])
    # A mean needs only each cluster's sum and size.
    sums = np.array([data[m].sum() for m in members])
    sizes = np.array([len(m) for m in members], np.float64)
    rows = max(1, _BLOCK // count)
    parts = []
    for at in range(0, resamples, rows):
        pick = rng.integers(count, size=(min(rows, resamples - at), count))
        parts.append(sums[pick].sum(1) / sizes[pick].sum(1))
    return np.concatenate(parts)


def _leave_one_out(data: Floats, statistic: Statistic | None, members: list[NDArray[np.int64]]) -> Floats:
    """The statistic without each cluster in turn, (C,)."""
    if statistic is None:
        sums = np.array([data[m].sum() for m in members])
        sizes = np.array([len(m) for m in members], np.float64)
        return np.asarray((sums.sum() - sums) / (sizes.sum() - sizes))
    keep = np.ones(data.shape[0], bool)
    found = []
    for member in members:
        keep[member] = False
        found.append(statistic(data[keep]))
        keep[member] = True
    return np.array(found)


def _bca_tails(draws: Floats, jackknife: Floats, estimate: float, tails: tuple[float, float]) -> tuple[float, float]:
    """Shift the tails by bias (median of the draws) and acceleration (skewness of the jackknife)."""
    below = ((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    spread = jackknife.mean() - jackknife
    scale = float((spread**2).sum()) ** 1.5
    if not 0 < below < 1 or scale == 0:
        return tails  # all draws on one side, or no spread: there is nothing to correct with
    normal, acceleration = NormalDist(), float((spread**3).sum()) / (6 * scale)
    bias = normal.inv_cdf(float(below))
    shifted = [bias + normal.inv_cdf(tail) for tail in tails]
    low, high = (normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted)
    return low, high


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    method: Literal["percentile", "bca"] = "percentile",
    seed: int = 0,
) -> Interval:
    """The mean of ``a - b`` over the same items, with its interval; see `bootstrap_interval`.

    "a is better" holds at this level if the interval lies above zero.

    Raises:
        ValueError: the two have different shapes, or as `bootstrap_interval`.
    """
    return bootstrap_interval(
        _differences(a, b), clusters=clusters, resamples=resamples, level=level, method=method, seed=seed
    )


def permutation_test(
    a: ArrayLike, b: ArrayLike, *, clusters: ArrayLike | None = None, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of a paired permutation test on the mean of ``a - b``.

    Under the null hypothesis the two of a pair could be swapped, so differences (of whole clusters) change sign at
    random. All sign patterns are tried where there are no more than ``resamples`` of them; otherwise the p-value is
    (1 + hits) / (1 + resamples), which is never 0.

    Raises:
        ValueError: different shapes, no values, or NaN.

    Source: Fisher 1935; Phipson and Smyth 2010 for the added one.
    """
    difference = _differences(a, b)
    if not difference.size or np.isnan(difference).any() or resamples < 1:
        raise ValueError("a permutation test needs pairs without NaN, and at least one resample")
    # The number of items is the same under every sign, so sums say as much as means.
    sums = np.array([difference[m].sum() for m in _members(clusters, difference.size)])
    # Rounding must not make a pattern that equals the observed one look smaller.
    threshold = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    if sums.size < 63 and 2**sums.size <= resamples:
        patterns = np.arange(2**sums.size)[:, None] >> np.arange(sums.size) & 1
        return float((np.abs((1 - 2 * patterns) @ sums) >= threshold).mean())
    rng, hits, rows = np.random.default_rng(seed), 0, max(1, _BLOCK // sums.size)
    for at in range(0, resamples, rows):
        signs = rng.integers(0, 2, size=(min(rows, resamples - at), sums.size), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ sums) >= threshold).sum())
    return (1 + hits) / (1 + resamples)


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"pairs need two lists of one length, not {x.shape} and {y.shape}")
    return np.asarray(x - y)


def over_seeds(results: ArrayLike, level: float = 0.95) -> Interval:
    """Mean over runs with different seeds, with Student's t interval; NaN ends for a single run.

    Args:
        results: one figure per run, (S,).
        level: confidence.

    Raises:
        ValueError: no runs, or NaN.
    """
    values = np.asarray(results, np.float64)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError("the results must be (S,) numbers, one per run")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, float("nan"), float("nan"), level, "t over seeds")
    from scipy.special import stdtrit

    error = float(values.std(ddof=1)) / np.sqrt(values.size)
    half = float(stdtrit(values.size - 1, (1 + level) / 2)) * float(error)
    return Interval(mean, mean - half, mean + half, level, "t over seeds")
