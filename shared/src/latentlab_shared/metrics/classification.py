"""Classification, the quality of probabilities, calibrators, and the token F1 of answers.

Probabilities are compared with what happened: an honest 0.8 is right in 80 of 100 cases. Calibrators are fitted on
held-out items only; on training items they learn the training error. They are saved as plain numbers, never pickled.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Scheme = Literal["width", "mass"]


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Share of items whose predicted class is the label; NaN for no items.

    Raises:
        ValueError: the two have different shapes.
    """
    true, found = _pair(labels, predicted)
    return float((true == found).mean()) if true.size else float("nan")


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[Any]) -> NDArray[np.int64]:
    """Counts (C, C): row the label, column the prediction, both in the order of ``classes``.

    Raises:
        ValueError: different shapes, a class named twice, or an item of none of the classes.
    """
    true, found = _pair(labels, predicted)
    index = {name: i for i, name in enumerate(classes)}
    if len(index) != len(classes):
        raise ValueError("a class is named twice")
    unknown = sorted({*true.tolist(), *found.tolist()} - index.keys(), key=str)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of the classes")
    size = len(classes)
    rows, columns = (np.array([index[name] for name in names.tolist()], np.int64) for names in (true, found))
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size).astype(np.int64)


def f1_per_class(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[Any]) -> Floats:
    """F1 of each class, (C,); 0 for a class that is neither a label nor predicted."""
    counts = confusion_matrix(labels, predicted, classes)
    total = counts.sum(0) + counts.sum(1)
    return np.asarray(2 * np.diag(counts) / np.maximum(total, 1))


def macro_f1(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[Any] | None = None) -> float:
    """Mean F1 over classes; by default over all that occur as a label or a prediction, as scikit-learn does.

    For comparable figures on small sets, name the classes.
    """
    true, found = _pair(labels, predicted)
    named = sorted({*true.tolist(), *found.tolist()}) if classes is None else classes
    return float(f1_per_class(true, found, named).mean()) if len(named) else float("nan")


def _pair(labels: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    true, found = np.asarray(labels), np.asarray(predicted)
    if true.ndim != 1 or true.shape != found.shape:
        raise ValueError(f"labels and predictions must be lists of one length, not {true.shape} and {found.shape}")
    return true, found


def roc_auc(outcomes: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive item scores above a negative one, ties as one half.

    Returns:
        NaN if one of the two kinds is missing.

    Raises:
        ValueError: different shapes, outcomes other than 0 and 1, or NaN.

    Source: Mann and Whitney 1947.
    """
    happened, score = _outcomes(outcomes, scores)
    positives = happened.sum()
    negatives = happened.size - positives
    if not positives or not negatives:
        return float("nan")
    _, run, counts = np.unique(score, return_inverse=True, return_counts=True)
    mid = (np.cumsum(counts) - (counts - 1) / 2)[run]  # mean rank of each tied run, from 1
    return float(((mid * happened).sum() - positives * (positives + 1) / 2) / (positives * negatives))


def brier_score(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared error of probabilities; lower is better, 0.25 for always saying one half.

    Args:
        probabilities: of the event, (N,), or of each class, (N, C); then squares are summed over classes.
        outcomes: 0 or 1, (N,), or the class index, (N,).

    Raises:
        ValueError: shapes or values that do not fit.

    Source: Brier 1950.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim == 2:
        index = np.asarray(outcomes)
        if index.shape != p.shape[:1] or not np.isin(index, np.arange(p.shape[1])).all():
            raise ValueError("outcomes must be one class index per row of probabilities")
        return float(((p - np.eye(p.shape[1])[index.astype(np.int64)]) ** 2).sum(1).mean())
    happened, p = _probabilities(p, outcomes)
    return float(((p - happened) ** 2).mean())


@dataclass(frozen=True)
class ReliabilityBin:
    """Items with similar probabilities.

    Attributes:
        low: lower edge; of an equal-mass bin the lowest probability in it.
        high: upper edge, or the highest probability in it.
        count: items.
        probability: their mean probability.
        rate: how often the event happened to them.
    """

    low: float
    high: float
    count: int
    probability: float
    rate: float


def reliability_table(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 15, scheme: Scheme = "width"
) -> list[ReliabilityBin]:
    """Probabilities beside what happened, in bins; empty bins are left out.

    Args:
        probabilities: of the event, (N,).
        outcomes: 0 or 1, (N,).
        bins: at most so many.
        scheme: ``width`` for bins (i/bins, (i+1)/bins], the first with 0 in it, or ``mass`` for bins of as near as
            possible equal counts, where equal probabilities stay together.

    Raises:
        ValueError: shapes or values that do not fit, or fewer than one bin.
    """
    happened, p = _probabilities(probabilities, outcomes)
    if bins < 1 or scheme not in ("width", "mass"):
        raise ValueError("there must be a bin, and the scheme be width or mass")
    if scheme == "width":
        edges = np.arange(bins + 1) / bins
        which = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, bins - 1)
    else:
        # An item's bin follows from the mean place of its tied run, so equal probabilities cannot be parted.
        _, run, counts = np.unique(p, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - counts / 2
        which = np.minimum((middle * bins / p.size).astype(np.int64), bins - 1)[run]
    table = []
    for index in np.unique(which):
        inside = which == index
        values = p[inside]
        low, high = (edges[index], edges[index + 1]) if scheme == "width" else (values.min(), values.max())
        table.append(
            ReliabilityBin(float(low), float(high), values.size, float(values.mean()), float(happened[inside].mean()))
        )
    return table


def expected_calibration_error(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 15, scheme: Scheme = "width"
) -> float:
    """Mean gap between probability and rate over the bins of `reliability_table`, weighted by their counts.

    The figure depends on the bins: name them beside it, and give the Brier score too, which has none.

    Source: Naeini, Cooper, Hauskrecht 2015; equal mass by Nixon et al. 2019.
    """
    table = reliability_table(probabilities, outcomes, bins, scheme)
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.probability - row.rate) for row in table) / total


def risk_coverage_curve(confidence: ArrayLike, losses: ArrayLike) -> tuple[Floats, Floats]:
    """Mean loss of the most confident items, for each number of items answered.

    Args:
        confidence: higher for items to answer first, (N,).
        losses: of each item if answered, (N,): 0 or 1 for errors, or any loss.

    Returns:
        Coverage 1/N ... 1, (N,), and risk, (N,). Items of equal confidence count as in a random order.

    Raises:
        ValueError: different shapes, no items, or NaN.

    Source: El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017.
    """
    sure, loss = np.asarray(confidence, np.float64), np.asarray(losses, np.float64)
    if sure.ndim != 1 or sure.shape != loss.shape or not sure.size or np.isnan(sure).any() or np.isnan(loss).any():
        raise ValueError("confidence and losses must be (N,) numbers, N at least 1")
    _, run, counts = np.unique(-sure, return_inverse=True, return_counts=True)
    mean = (np.bincount(run, weights=loss) / counts)[run]
    number = np.arange(1, sure.size + 1)
    return number / sure.size, np.cumsum(mean[np.argsort(run, kind="stable")]) / number


def area_under_risk_coverage(confidence: ArrayLike, losses: ArrayLike) -> float:
    """Mean risk over all coverages; lower is better, and the plain mean loss for a useless confidence."""
    return float(risk_coverage_curve(confidence, losses)[1].mean())


def _outcomes(outcomes: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    happened, score = np.asarray(outcomes), np.asarray(scores, np.float64)
    if happened.ndim != 1 or happened.shape != score.shape:
        raise ValueError(f"outcomes and scores must be lists of one length, not {happened.shape} and {score.shape}")
    if not np.isin(happened, (0, 1)).all() or np.isnan(score).any():
        raise ValueError("outcomes must be 0 or 1, and no score NaN")
    return happened.astype(np.float64), score


def _probabilities(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    happened, p = _outcomes(outcomes, probabilities)
    if not p.size or p.min() < 0 or p.max() > 1:
        raise ValueError("there must be probabilities, from 0 to 1")
    return happened, p


# ---- calibrators ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlattCalibrator:
    """A logistic curve through scores: probability = 1 / (1 + exp(-(slope * score + intercept)))."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, scores: ArrayLike, outcomes: ArrayLike) -> PlattCalibrator:
        """Fit on held-out scores (N,) and outcomes (N,), with Platt's smoothed targets.

        Raises:
            ValueError: shapes or values that do not fit, or only one kind of outcome.

        Source: Platt 1999; Lin, Lin, Weng 2007.
        """
        from scipy.optimize import minimize
        from scipy.special import expit

        happened, score = _both_kinds(outcomes, scores)
        positives = happened.sum()
        target = np.where(happened == 1, (positives + 1) / (positives + 2), 1 / (happened.size - positives + 2))
        # Scores of any scale: the search runs on standardised ones.
        centre, spread = score.mean(), score.std() or 1.0
        x = (score - centre) / spread

        def loss(parameters: Floats) -> tuple[float, Floats]:
            z = parameters[0] * x + parameters[1]
            gap = expit(z) - target
            return float((np.logaddexp(0, z) - target * z).sum()), np.array([(gap * x).sum(), gap.sum()])

        best = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
        return cls(float(best[0] / spread), float(best[1] - best[0] * centre / spread))

    def predict(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores, (N,)."""
        from scipy.special import expit

        return np.asarray(expit(self.slope * np.asarray(scores, np.float64) + self.intercept))


@dataclass(frozen=True)
class TemperatureCalibrator:
    """Logits divided by one number: the order of the classes, and so the accuracy, stays."""

    temperature: float

    @classmethod
    def fit(cls, logits: ArrayLike, outcomes: ArrayLike) -> TemperatureCalibrator:
        """Fit on held-out logits, (N,) of an event with outcomes 0 or 1, or (N, C) with class indices, (N,).

        Raises:
            ValueError: shapes or values that do not fit.

        Source: Guo, Pleiss, Sun, Weinberger 2017.
        """
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax

        rows, index = np.asarray(logits, np.float64), np.asarray(outcomes)
        if rows.ndim == 1:
            rows = np.stack([np.zeros_like(rows), rows], axis=1)
        if rows.ndim != 2 or not rows.size or index.shape != rows.shape[:1] or np.isnan(rows).any():
            raise ValueError("logits must be (N,) or (N, C) without NaN, and outcomes (N,)")
        if not np.isin(index, np.arange(rows.shape[1])).all():
            raise ValueError("outcomes must be class indices")
        at = (np.arange(index.size), index.astype(np.int64))

        def loss(log_temperature: float) -> float:
            return -float(log_softmax(rows / np.exp(log_temperature), axis=1)[at].mean())

        # From 0.01 to 100; beyond it the data are separable or the logits noise.
        best = minimize_scalar(loss, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-6})
        return cls(float(np.exp(best.x)))

    def predict(self, logits: ArrayLike) -> Floats:
        """Probabilities: (N,) of an event's logits, (N, C) of class logits."""
        from scipy.special import expit, softmax

        rows = np.asarray(logits, np.float64) / self.temperature
        return np.asarray(softmax(rows, axis=1) if rows.ndim == 2 else expit(rows))


@dataclass(frozen=True)
class IsotonicCalibrator:
    """The best rising step-wise linear curve through scores; needs some hundred items."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def fit(cls, scores: ArrayLike, outcomes: ArrayLike) -> IsotonicCalibrator:
        """Fit on held-out scores (N,) and outcomes (N,).

        Raises:
            ValueError: shapes or values that do not fit, or only one kind of outcome.

        Source: Zadrozny and Elkan 2002; scikit-learn's IsotonicRegression.
        """
        from sklearn.isotonic import IsotonicRegression

        happened, score = _both_kinds(outcomes, scores)
        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, happened)
        return cls(tuple(map(float, curve.X_thresholds_)), tuple(map(float, curve.y_thresholds_)))

    def predict(self, scores: ArrayLike) -> Floats:
        """Probabilities of scores, (N,); beyond the scores seen, those of the nearest."""
        return np.asarray(np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities))


def _both_kinds(outcomes: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    happened, score = _outcomes(outcomes, scores)
    if len(np.unique(happened)) < 2:
        raise ValueError("a calibrator needs items of both outcomes")
    return happened, score


# ---- answers --------------------------------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces; as SQuAD's evaluation does."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words shared with the best of the accepted answers; an empty answer matches only an empty prediction.

    Raises:
        ValueError: no answers, or one string in their place.

    Source: Rajpurkar et al. 2016, 2018.
    """
    found = normalise_answer(prediction).split()
    return max(_word_f1(found, normalise_answer(answer).split()) for answer in _answers(answers))


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals an accepted answer after normalisation.

    Raises:
        ValueError: no answers, or one string in their place.
    """
    found = normalise_answer(prediction)
    return any(found == normalise_answer(answer) for answer in _answers(answers))


def _answers(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers:
        raise ValueError("give a list of at least one accepted answer")
    return answers


def _word_f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    hits = (Counter(found) & Counter(wanted)).total()
    return 2 * hits / (len(found) + len(wanted))
