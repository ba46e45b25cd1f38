"""Small cases whose answers can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.safeguard.measures import auroc, calibration_error, fit_logistic, prior_weights, ranks, spearman


def test_ranks_share_ties() -> None:
    assert ranks(np.array([10.0, 30.0, 10.0, 20.0])).tolist() == [1.5, 4.0, 1.5, 3.0]


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
    ],
)
def test_auroc(scores: list[float], labels: list[int], expected: float) -> None:
    assert auroc(np.array(scores), np.array(labels, dtype=float)) == pytest.approx(expected)


def test_auroc_of_one_kind_is_no_number() -> None:
    assert np.isnan(auroc(np.array([0.1, 0.2]), np.array([1.0, 1.0])))


def test_spearman_sees_order_only() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(values, values**3) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)


def test_calibration_error_is_the_gap_between_said_and_seen() -> None:
    said, seen = np.full(10, 0.75), np.array([1.0] * 5 + [0.0] * 5)
    assert calibration_error(said, seen, np.ones(10)) == pytest.approx(0.25)
    assert calibration_error(np.full(10, 0.5), seen, np.ones(10)) == pytest.approx(0.0)


def test_a_logistic_curve_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(0.7 * logits - 1.2)))).astype(float)
    scales, bias = fit_logistic(logits[:, None], labels, np.ones_like(labels))
    assert scales == pytest.approx([0.7], abs=0.03)
    assert bias == pytest.approx(-1.2, abs=0.06)
    against = np.column_stack([logits, -labels])
    assert fit_logistic(against, labels, np.ones_like(labels))[0] == pytest.approx([0.7, 0.0], abs=0.03)


def test_prior_weights_make_the_share() -> None:
    labels = np.array([1.0, 1.0, 1.0, 0.0])
    weights = prior_weights(labels, 0.2)
    assert weights.sum() == pytest.approx(4.0)
    assert (weights * labels).sum() / weights.sum() == pytest.approx(0.2)
