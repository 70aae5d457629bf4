import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segwatch.core.baseline import Recursion
from segwatch.core.calibration import Calibration, alert_thresholds, pooled
from segwatch.core.features import FeatureSet
from segwatch.core.training import Prepared, Rows, fit_rows

from .simulated import counts, panel_of, weekly

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


def test_p_values_are_exact_where_the_tail_is_exponential():
    scores = np.random.default_rng(0).exponential(2.0, size=50_000) + 7.0
    calibration = Calibration.fit(scores, 0.0)
    assert calibration.location == pytest.approx(np.quantile(scores, 0.8))
    assert calibration.scale == pytest.approx(2.0, rel=0.03)
    for level in (0.2, 0.1, 0.05, 0.01, 0.001):
        assert (calibration.p_value(scores) <= level).mean() == pytest.approx(level, rel=0.15)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.floats(1e-6, 10.0))
def test_p_values_are_in_0_to_1_and_fall_with_the_score(scores, least):
    calibration = Calibration.fit(np.array(scores), least)
    assert calibration.scale >= least
    steps = calibration.location + calibration.scale * np.linspace(-30.0, 600.0, 1261)
    p = calibration.p_value(steps)
    assert np.all((p > 0) & (p <= 1)) and np.all(np.diff(p) <= 0)
    assert calibration.p_value(np.array([calibration.location])) == pytest.approx(0.2, rel=1e-6)


def test_p_values_fall_strictly_as_long_as_numbers_tell_them_apart():
    p = Calibration(0.3, 0.05, 1.5).p_value(np.linspace(-1.0, 30.0, 5000))
    assert np.all(np.diff(p) < 0)
    assert 0 < Calibration(0.3, 0.05, 1.5).p_value(np.array([1e9]))[0] < 1e-200


def test_anomalies_among_the_training_scores_do_not_blind_it():
    scores = np.random.default_rng(0).exponential(size=1000)
    spoiled = np.concatenate([scores, np.full(20, 500.0)])
    assert Calibration.fit(spoiled, 0.0).p_value(np.array([30.0]))[0] < 1e-6


def test_scores_that_are_all_equal_have_the_least_scale():
    calibration = Calibration.fit(np.full(1_000_000, 3.0), 0.04)
    assert (calibration.location, calibration.scale) == (3.0, pytest.approx(0.04, rel=1e-3))
    assert calibration.p_value(np.array([3.0, 3.5])).tolist() == pytest.approx([0.2, 0.2 * np.exp(-12.5)], rel=1e-3)


def test_the_scores_of_few_rows_that_trained_are_trusted_less():
    few, many = (Calibration.fit(np.repeat(np.arange(20.0), n // 20), 0.0).scale for n in (40, 4000))
    assert many > 1.0
    assert few == pytest.approx(1.5 / 1.005 * many, rel=0.05)


def test_the_pool_is_the_middle_of_all_and_draws_each_to_it():
    ones = [Calibration(0.1, 0.02, 1.0), Calibration(0.2, 0.08, 1.6), Calibration(0.9, 0.05, 1.2)]
    pool = pooled(ones)
    assert pool == Calibration(0.2, 0.05, 1.2)
    assert pooled([]) is None
    assert pool.towards(pool).location == pytest.approx(0.2) and pool.towards(pool).scale == pytest.approx(0.05)
    for one in ones:
        drawn = one.towards(pool)
        assert abs(drawn.location - 0.2) == pytest.approx(0.3 * abs(one.location - 0.2))
        assert np.log(drawn.scale / 0.05) == pytest.approx(0.3 * np.log(one.scale / 0.05))
        assert np.log(drawn.stretch / 1.2) == pytest.approx(0.3 * np.log(one.stretch / 1.2))


def test_a_tail_longer_than_an_exponential_one_is_seen_beyond_5_percent():
    rng = np.random.default_rng(5)
    long = Calibration.fit(rng.standard_t(3, size=200_000) ** 2, 0.0)
    short = Calibration.fit(rng.exponential(size=200_000), 0.0)
    assert short.stretch == pytest.approx(1.0, abs=0.03)
    assert long.stretch > 1.5
    # The two pieces meet.
    knee = long.location + long.scale * np.log(4.0)
    np.testing.assert_allclose(long.p_value(knee + np.array([-1e-9, 0.0, 1e-9])), 0.05, rtol=1e-6)
    beyond = long.scale * long.stretch
    assert long.p_value(np.array([knee + beyond]))[0] == pytest.approx(0.05 / np.e)


SEGMENTS, DAYS, HELD_OUT = 150, 330, 90


def autocorrelated(rng, level, sd, rho):
    """Log-normal counts whose logarithms remember rho of the day before."""
    noise = rng.normal(size=(SEGMENTS, DAYS))
    for day in range(1, DAYS):
        noise[:, day] = rho * noise[:, day - 1] + np.sqrt(1.0 - rho**2) * noise[:, day]
    return np.rint(weekly(DAYS, level) * np.exp(sd * noise))


def poisson(rng, level):
    return rng.poisson(np.tile(weekly(DAYS, level), (SEGMENTS, 1))).astype(float)


def nearly_constant(rng, level, share):
    values = np.full((SEGMENTS, DAYS), level)
    values[rng.random(values.shape) < share] -= 1.0
    return values


def ratios(rng):
    """Numerators and denominators."""
    exposure = rng.integers(200, 5000, (SEGMENTS, DAYS))
    return rng.binomial(exposure, 0.05).astype(float), exposure.astype(float)


def contaminated(rng):
    values = autocorrelated(rng, 1000.0, 0.1, 0.0)
    some = rng.random(values.shape) < 0.01
    some[:, -HELD_OUT:] = False
    values[some] = np.rint(values[some] * rng.choice([0.3, 3.0], some.sum()))
    return values


CLEAN = {
    "log-normal": lambda rng: autocorrelated(rng, 1000.0, 0.1, 0.0),
    "log-normal that remembers": lambda rng: autocorrelated(rng, 1000.0, 0.2, 0.5),
    "negative binomial": lambda rng: counts(rng, np.tile(weekly(DAYS, 300.0), (SEGMENTS, 1)), 2.0),
    "contaminated": contaminated,
    "values": lambda rng: rng.normal(size=(SEGMENTS, DAYS)) * 3.0 + rng.choice([-10.0, 0.0, 100.0], (SEGMENTS, 1)),
    "ratios": ratios,
    "Poisson 30": lambda rng: poisson(rng, 30.0),
    "Poisson 3": lambda rng: poisson(rng, 3.0),
    "Poisson 0.5": lambda rng: poisson(rng, 0.5),
    "Poisson 0.1": lambda rng: poisson(rng, 0.1),
    "nearly constant 2": lambda rng: nearly_constant(rng, 2.0, 0.03),
    "nearly constant 20": lambda rng: nearly_constant(rng, 20.0, 0.05),
}
# p-values of few different counts are coarse, and in doubt too large.
COARSE = ("Poisson 0.5", "Poisson 0.1", "nearly constant 2", "nearly constant 20")


@pytest.mark.parametrize("name", CLEAN)
def test_as_many_ordinary_rows_have_a_small_p_value_as_it_promises(name):
    values, exposure, kind = CLEAN[name](np.random.default_rng(7)), None, "count"
    if name in ("values", "ratios"):
        kind = name.removesuffix("s")
    if kind == "ratio":
        values, exposure = values
    prepared = Prepared.of(panel_of(values, exposure=exposure), Recursion(FeatureSet("day", kind)))
    rows = Rows.of(prepared, DAYS)
    trained = rows.until(DAYS - HELD_OUT)
    detectors = [one.detector for one in fit_rows(trained, np.full(SEGMENTS, DAYS - HELD_OUT), 90)]
    pool = pooled([one.calibration for one in detectors])
    p = np.concatenate([one.pooled(pool).p_value(X[-HELD_OUT:]) for one, X in zip(detectors, rows.X, strict=True)])
    realised = (p <= 0.01).mean() / 0.01
    assert (0.0 if name in COARSE else 0.5) <= realised <= 2.0
