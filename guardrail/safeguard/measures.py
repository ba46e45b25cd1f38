"""The few statistics by which the safeguard is fitted and compared, in numpy alone.

Figures with an interval are worked out for many resamples at once: a resample is a row of weights, how often each of
the n scored rows was drawn, so `weights` has shape (B, n) and a figure comes out as B numbers. The first row is all
ones: the figure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
RESAMPLES = 1000
BINS = 10


class Figure(NamedTuple):
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Sweep(NamedTuple):
    """Weight of the positives and of the negatives at or above each distinct score, highest first, shapes (B, T)."""

    positives: Numbers
    negatives: Numbers


def ranks(values: Numbers) -> Numbers:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(last - (counts - 1) / 2, dtype=np.float64)[inverse]


def auroc(scores: Numbers, labels: Numbers) -> float:
    """The chance that a random positive scores above a random negative; nan if there is only one kind."""
    positive = labels > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    return float((ranks(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))


def spearman(left: Numbers, right: Numbers) -> float:
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def calibration_error(values: Numbers, labels: Numbers, weights: Numbers, bins: int = BINS) -> float:
    """Expected calibration error over equal-width bins, of one row of weights."""
    return float(calibration_errors(values, labels, weights[None], equal_width(values, bins))[0])


def fit_logistic(features: Numbers, labels: Numbers, weights: Numbers, steps: int = 50) -> tuple[Numbers, float]:
    """(scales, bias) of the best logistic curve over `features`, shape (n, k), by Newton with a little ridge.

    A feature that would count against harm is left out (scale 0): a higher logit never lowers the probability.
    """
    used = np.ones(features.shape[1], dtype=bool)
    while True:
        x = np.column_stack([features[:, used], np.ones(len(features))])
        theta = _newton(x, labels, weights, steps)
        if (theta[:-1] >= 0).all():
            scales = np.zeros(features.shape[1])
            scales[used] = theta[:-1]
            return scales, float(theta[-1])
        used[np.flatnonzero(used)[theta[:-1].argmin()]] = False


def _newton(x: Numbers, labels: Numbers, weights: Numbers, steps: int) -> Numbers:
    theta = np.zeros(x.shape[1])
    ridge = np.diag([1e-3] * (x.shape[1] - 1) + [1e-6]) * weights.sum()
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (weights * (p - labels)) + ridge @ theta
        curvature = (x * (weights * p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(curvature, gradient)
        theta = theta - step
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(theta)


def prior_weights(labels: Numbers, prior: float) -> Numbers:
    """Row weights under which a share `prior` of the rows is positive; they add up to the number of rows."""
    share = labels.mean()
    return np.asarray(np.where(labels > 0.5, prior / share, (1 - prior) / (1 - share)))


# Figures over resamples


def resample(groups: Sequence[str], count: int = RESAMPLES, seed: int = 0) -> Numbers:
    """Weights of shape (count + 1, rows): whole groups drawn with replacement, after a first row of ones."""
    names, at = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    return np.vstack([np.ones(len(at)), drawn[:, at]])


def interval(values: Numbers) -> Figure:
    """The first number, and the middle 95 % of the others; those that are no number are left out."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
    return Figure(float(values[0]), float(low), float(high))


def sweep(scores: Numbers, labels: Numbers, weights: Numbers) -> Sweep:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each run of equal scores
    drawn, positive = weights[:, order], labels[order] > 0.5
    return Sweep(np.cumsum(drawn * positive, 1)[:, last], np.cumsum(drawn * ~positive, 1)[:, last])


def area(swept: Sweep) -> Numbers:
    """`auroc` of each resample."""
    positives, negatives = (np.pad(side, ((0, 0), (1, 0))) for side in swept)
    middle = (positives[:, 1:] + positives[:, :-1]) / 2
    return _ratio((np.diff(negatives) * middle).sum(1), positives[:, -1] * negatives[:, -1])


def average_precision(swept: Sweep) -> Numbers:
    """The area under precision over recall, as steps."""
    gained = np.diff(swept.positives, prepend=0.0)
    precision = _ratio(swept.positives, swept.positives + swept.negatives)
    return _ratio((gained * np.nan_to_num(precision)).sum(1), swept.positives[:, -1])


def recall_at(swept: Sweep, rate: float) -> Numbers:
    """The largest share of positives found while at most `rate` of the negatives are flagged."""
    allowed = swept.negatives <= rate * swept.negatives[:, -1:]
    return _ratio(np.where(allowed, swept.positives, 0.0).max(1), swept.positives[:, -1])


def best_f1(swept: Sweep) -> Numbers:
    """F1 at the threshold that is best for it on these very rows: optimistic."""
    scores = _ratio(2 * swept.positives, swept.positives + swept.negatives + swept.positives[:, -1:])
    return np.asarray(scores.max(1))


def f1(flagged: Numbers, labels: Numbers, weights: Numbers) -> Numbers:
    """Of flags 0 or 1."""
    return _ratio(2 * (weights @ (flagged * labels)), weights @ (flagged + labels))


def average(values: Numbers, weights: Numbers) -> Numbers:
    return _ratio(weights @ values, weights.sum(1))


def quantile(values: Numbers, share: float, weights: Numbers) -> Numbers:
    """The smallest value that at least `share` of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], 1) >= share * weights.sum(1, keepdims=True)
    return np.asarray(values[order][reached.argmax(1)])


def spearmans(left: Numbers, right: Numbers, weights: Numbers) -> Numbers:
    """`spearman` of each resample."""
    a, b = (_weighted_ranks(side, weights) for side in (left, right))
    total = weights.sum(1, keepdims=True)
    a, b = (ranked - (weights * ranked).sum(1, keepdims=True) / total for ranked in (a, b))
    spread = (weights * a * a).sum(1) * (weights * b * b).sum(1)
    return _ratio((weights * a * b).sum(1), np.sqrt(spread))


def calibration_errors(values: Numbers, labels: Numbers, weights: Numbers, bins: Numbers) -> Numbers:
    """Expected calibration error of each resample; `bins` numbers the bin of each row."""
    gaps = np.zeros((len(values), int(bins.max()) + 1))
    gaps[np.arange(len(values)), bins.astype(int)] = values - labels
    return _ratio(np.abs(weights @ gaps).sum(1), weights.sum(1))


def equal_width(values: Numbers, bins: int = BINS) -> Numbers:
    return np.minimum(np.floor(values * bins), bins - 1)


def equal_mass(values: Numbers, bins: int = BINS) -> Numbers:
    """Bins with as many rows each, but that equal values stay together."""
    return np.minimum(np.floor((ranks(values) - 0.5) / len(values) * bins), bins - 1)


def _weighted_ranks(values: Numbers, weights: Numbers) -> Numbers:
    distinct, inverse = np.unique(values, return_inverse=True)
    mass = np.zeros((len(distinct), len(weights)))
    np.add.at(mass, inverse, weights.T)
    return np.asarray((np.cumsum(mass, 0) - (mass - 1) / 2).T[:, inverse])


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    """The quotient; no number where there is nothing to divide by."""
    shape = np.broadcast(above, below).shape
    return np.asarray(np.divide(above, below, out=np.full(shape, np.nan), where=below > 0))
