"""Small cases whose answers can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.safeguard.measures import (
    area,
    auroc,
    average,
    average_precision,
    best_f1,
    calibration_error,
    calibration_errors,
    equal_mass,
    f1,
    fit_logistic,
    interval,
    prior_weights,
    quantile,
    ranks,
    recall_at,
    resample,
    spearman,
    spearmans,
    sweep,
)


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


# Figures over resamples: the first row of weights is the figure itself, others count rows twice or not at all.

ONCE = np.ones((1, 4))
SCORES, LABELS = np.array([0.9, 0.6, 0.4, 0.1]), np.array([1.0, 0.0, 1.0, 0.0])


def test_area_is_auroc_of_every_resample() -> None:
    weights = np.array([[1, 1, 1, 1], [2, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 1]], dtype=float)
    areas = area(sweep(SCORES, LABELS, weights))
    assert areas[:3] == pytest.approx([3 / 4, 5 / 6, 1.0])
    assert np.isnan(areas[3])  # no positive was drawn


def test_area_shares_ties_as_auroc_does() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 5, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    drawn = resample([str(n) for n in range(60)], count=5)
    again = [auroc(np.repeat(scores, row), np.repeat(labels, row)) for row in drawn.astype(int)]
    assert area(sweep(scores, labels, drawn)) == pytest.approx(again)
    ranked = [spearman(np.repeat(scores, row), np.repeat(labels, row)) for row in drawn.astype(int)]
    assert spearmans(scores, labels, drawn) == pytest.approx(ranked)


def test_figures_at_thresholds() -> None:
    swept = sweep(SCORES, LABELS, ONCE)
    assert average_precision(swept) == pytest.approx([(1 / 1 + 2 / 3) / 2])
    assert recall_at(swept, 0.01) == pytest.approx([0.5])
    assert recall_at(swept, 0.5) == pytest.approx([1.0])
    assert best_f1(swept) == pytest.approx([0.8])  # three flagged, both positives among them
    assert f1((SCORES >= 0.5).astype(float), LABELS, ONCE) == pytest.approx([0.5])
    assert f1(np.ones(4), LABELS, ONCE) == pytest.approx([2 / 3])


def test_averages_and_quantiles_are_weighted() -> None:
    weights = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 3.0]])
    assert average(SCORES, weights) == pytest.approx([0.5, 0.175])
    assert quantile(SCORES, 0.5, weights) == pytest.approx([0.4, 0.1])
    assert quantile(SCORES, 0.95, weights) == pytest.approx([0.9, 0.4])


def test_bins_of_equal_mass_hold_as_many_rows() -> None:
    values = np.array([0.01, 0.02, 0.03, 0.04])
    assert equal_mass(values, 2).tolist() == [0, 0, 1, 1]
    assert equal_mass(np.full(4, 0.5), 2).tolist() == [1, 1, 1, 1]
    seen = np.array([0.0, 0.0, 1.0, 1.0])
    gap = (0.015 + 0.965) / 2
    assert calibration_errors(values, seen, ONCE, equal_mass(values, 2)) == pytest.approx([gap])


def test_groups_are_drawn_whole() -> None:
    weights = resample(["a", "b", "a", "c"], count=50, seed=3)
    assert weights.shape == (51, 4)
    assert weights[0].tolist() == [1, 1, 1, 1]
    assert (weights[:, 0] == weights[:, 2]).all()
    assert set((weights[1:, 0] + weights[1:, 1] + weights[1:, 3]).tolist()) == {3.0}  # three groups each time


def test_an_interval_leaves_out_what_is_no_number() -> None:
    figure = interval(np.array([0.5, np.nan, *np.linspace(0, 1, 101)]))
    assert figure == pytest.approx((0.5, 0.025, 0.975))
    assert np.isnan(interval(np.array([0.5, np.nan])).low)
