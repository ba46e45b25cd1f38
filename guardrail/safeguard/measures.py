"""The few statistics by which the safeguard is fitted and compared, in numpy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


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


def calibration_error(values: Numbers, labels: Numbers, weights: Numbers, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins."""
    where = np.minimum((values * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = where == b
        mass = weights[inside].sum()
        if mass > 0:
            gap = np.average((values - labels)[inside], weights=weights[inside])
            error += float(abs(gap) * mass / weights.sum())
    return error


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
