import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segwatch.core.calibration import Calibration, alert_thresholds, fold_slices, training_rows

P_VALUES = st.lists(st.sampled_from([0.0, 1e-6, 0.001, 0.01, 0.02, 0.05, 0.2, 0.5, 1.0]), min_size=1, max_size=12)


def rejections(p_values, fdr):
    """Benjamini and Hochberg's number of rejections, by its textbook definition."""
    ranked = sorted(p_values)
    return max((k for k in range(1, len(ranked) + 1) if ranked[k - 1] <= fdr * k / len(ranked)), default=0)


@given(P_VALUES)
def test_thresholds_reject_what_benjamini_and_hochberg_reject(p_values):
    p, fdr = np.array(p_values), 0.3
    flagged = p <= alert_thresholds(p, np.zeros(len(p), int), fdr, alpha=1.0)
    k = rejections(p_values, fdr)
    assert flagged.sum() >= k
    assert set(p[flagged]) == set(p[p <= fdr * k / len(p)] if k else [])


@given(P_VALUES, st.integers(0, 11))
def test_a_threshold_is_where_that_row_alone_would_change_its_decision(p_values, which):
    p, fdr, row = np.array(p_values), 0.3, which % len(p_values)
    threshold = alert_thresholds(p, np.zeros(len(p), int), fdr, alpha=1.0)[row]
    for moved, flagged in ((threshold * 0.999, True), (threshold * 1.001, False)):
        other = p.copy()
        other[row] = moved
        k = rejections(other, fdr)
        assert (moved <= fdr * k / len(p) if k else False) == flagged


def test_periods_do_not_share_discoveries():
    p = np.array([1e-9, 1e-9, 1e-9, 0.04])
    together = alert_thresholds(p, np.zeros(4, int), 0.05, 1.0)
    apart = alert_thresholds(p, np.array([0, 0, 0, 1]), 0.05, 1.0)
    assert together[3] == 0.05
    assert apart[3] == 0.05
    assert alert_thresholds(np.array([0.5, 0.04]), np.zeros(2, int), 0.05, 1.0)[1] == 0.025


def test_no_threshold_is_above_alpha():
    assert alert_thresholds(np.zeros(5), np.zeros(5, int), 0.5, 0.01).max() == 0.01


def test_p_values_are_exact_at_the_quantiles_that_hold_them_and_small_beyond():
    scores = np.random.default_rng(0).gumbel(size=20_000)
    calibration = Calibration.fit(scores)
    p = calibration.p_value(scores)
    for level in (0.9, 0.7, 0.5, 0.05):
        assert abs((p <= level).mean() - level) < 0.005
    assert np.all(np.diff(calibration.p_value(np.linspace(-5, 60, 500))) <= 0)
    assert 0 < calibration.p_value(np.array([60.0]))[0] < 1e-6


def test_anomalies_among_the_training_scores_do_not_blind_it():
    scores = np.random.default_rng(0).gumbel(size=1000)
    spoiled = np.concatenate([scores, np.full(20, 500.0)])
    assert Calibration.fit(spoiled).p_value(np.array([30.0]))[0] < 1e-4


def test_folds_cover_all_rows_once_and_keep_their_gap():
    folds = fold_slices(103)
    assert np.concatenate([np.arange(103)[fold] for fold in folds]).tolist() == list(range(103))
    kept = np.flatnonzero(training_rows(103, folds[1], gap=7))
    assert not set(kept) & set(range(folds[1].start - 7, folds[1].stop + 7))
