import numpy as np
import pytest

from segwatch.core.baseline import Recursion
from segwatch.core.bundle import Rules, write_bundle
from segwatch.core.decision import Floors, decide
from segwatch.core.features import FeatureSet
from segwatch.core.training import Prepared, Rows, fit_prepared

from .simulated import counts, panel_of, weekly

N_TIMES, SCORED = 300, 28
RECURSION, RULES = Recursion(FeatureSet("day", "count")), Rules(0.01, 0.1, 90)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A bundle, and rows of the last days with a spike, a lasting small shift and a run of equal values among them."""
    rng = np.random.default_rng(8)
    mean = np.outer([0.4, 3.0, 12.0, 40.0, 150.0, 600.0, 2000.0, 9000.0], weekly(N_TIMES, 1.0))
    values = counts(rng, mean)
    prepared = Prepared.of(panel_of(values[:, :-SCORED].copy()), RECURSION)
    bundle = write_bundle(
        tmp_path_factory.mktemp("bundle") / "it", "m", prepared, RULES, fit_prepared(prepared, RULES.min_history)
    )
    values[4, -20], values[6, -15:-7] = 900.0, np.rint(values[6, -15:-7] * 0.75)
    values[5, -6:] = values[5, -6]
    rows = Rows.of(Prepared.of(panel_of(values), RECURSION), SCORED)
    i, t = np.nonzero(rows.is_complete)
    ids = [prepared.panel.segments.ids[k] for k in i]
    return bundle, ids, t, rows.values[i, t], rows.contexts[i, t], rows.X[i, t]


def test_a_spike_a_shift_and_a_run_are_flagged_and_little_else(judged):
    found = decide(*judged)
    _, ids, t, *_ = judged
    at = set(zip(np.array(ids)[found.is_anomaly].tolist(), t[found.is_anomaly].tolist(), strict=True))
    names = list(dict.fromkeys(ids))
    assert (names[4], 8) in at and (names[6], 13) in at
    others = [one for one in at if one[0] not in (names[4], names[5], names[6])]
    assert len(others) < 0.05 * 5 * SCORED


def test_what_goes_on_is_said_once_and_keeps_its_score(judged):
    found = decide(*judged)
    assert found.is_ongoing.any()
    assert not (found.is_ongoing & found.is_anomaly).any()
    assert (found.p_value[found.is_ongoing] <= RULES.alpha).all()
    assert (found.prediction[found.is_ongoing] == -1).all()


def test_floors_and_ends_take_alerts_away_and_no_p_value(judged):
    found = decide(*judged)
    floored = decide(*judged, floors=Floors(impact=500.0))
    over = decide(*judged, is_over=np.ones(len(found.p_value), dtype=bool))
    assert floored.is_anomaly.sum() < found.is_anomaly.sum()
    assert (np.abs(floored.impact[floored.is_anomaly]) >= 500).all()
    assert not over.is_anomaly.any() and not over.is_ongoing.any()
    for other in (floored, over):
        np.testing.assert_array_equal(other.p_value, found.p_value)


def test_a_rollups_row_is_no_part_of_the_total_that_shares_are_of(judged):
    _, ids, t, *_ = judged
    is_rollup = np.array(ids) == ids[-1]
    without = decide(*judged, is_rollup=is_rollup)
    at = t == t[0]
    total = without.expected[at & ~is_rollup].sum()
    np.testing.assert_allclose(without.impact_share[at], without.impact[at] / total)
