import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segwatch.core.baseline import Recursion
from segwatch.core.bundle import ModelBundle, Rules, write_bundle
from segwatch.core.decision import Floors, decide, undiscovered
from segwatch.core.features import CONTEXT, FEATURES, FeatureSet
from segwatch.core.labels import Bars
from segwatch.core.training import Prepared, Rows, fit_prepared

from .simulated import counts, panel_of, weekly

NAMES = tuple(itertools.product(("de", "it"), ("app", "ios", "web")))
N, DAYS = len(NAMES), 160
KINDS = ("count", "ratio", "value")
RULES = Rules(0.01, 0.1, 90)


@dataclass(frozen=True, repr=False)
class Case:
    """A bundle, and the rows of the last two days of its segments: ids, days, values and contexts, (2 N, ...)."""

    bundle: ModelBundle
    ids: list[str]
    days: np.ndarray
    values: np.ndarray
    contexts: np.ndarray

    def decide(self, values=None, contexts=None, **options):
        values = self.values if values is None else values
        contexts = self.contexts if contexts is None else contexts
        X = self.bundle.feature_set.features(values, contexts)
        return decide(self.bundle, self.ids, self.days, values, contexts, X, **options)

    def z(self, steps):
        """The values so many standard deviations from the expected ones."""
        return self.bundle.feature_set.values_at(np.asarray(steps, dtype=float), self.contexts)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return {kind: case(kind, tmp_path_factory.mktemp(kind) / "it") for kind in KINDS}


def case(kind, to):
    rng = np.random.default_rng(0)
    values = counts(rng, np.outer(np.geomspace(3.0, 3000.0, N), weekly(DAYS, 1.0)), 1.5)
    exposure = np.full(values.shape, 9000.0) if kind == "ratio" else None
    values = values - 40.0 if kind == "value" else values
    prepared = Prepared.of(
        panel_of(values, NAMES, ("country", "platform"), exposure), Recursion(FeatureSet("day", kind))
    )
    bundle = write_bundle(to, "m", prepared, RULES, fit_prepared(prepared, RULES.min_history))
    rows = Rows.of(prepared, 2)
    ids = [id_ for id_ in prepared.panel.segments.ids for _ in range(2)]
    return Case(bundle, ids, np.tile([1, 2], N), rows.values.ravel(), rows.contexts.reshape(2 * N, -1))


def is_outside(values, decisions):
    """Which values lie outside their interval; open sides pass."""
    with np.errstate(invalid="ignore"):
        return (values < decisions.lower) | (values > decisions.upper)


steps = st.lists(st.floats(-12.0, 12.0), min_size=2 * N, max_size=2 * N)
floors = st.sampled_from([Floors(), Floors(3.0, 0.0), Floors(0.0, 0.02)])


@pytest.mark.parametrize("kind", KINDS)
@given(steps, floors, st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_row_alerts_exactly_where_its_value_is_outside_its_bounds(cases, kind, steps, floors, seed):
    one = cases[kind]
    contexts = one.contexts.copy()
    # Some of the rows come after a change that was clear, or after days that were odd.
    rng = np.random.default_rng(seed)
    contexts[:, CONTEXT.index("peak")] = rng.choice([0.0, 4.0], 2 * N)
    contexts[:, CONTEXT.index("sum_long")] += rng.choice([-9.0, 0.0, 9.0], 2 * N)
    values = one.z(steps)
    found = one.decide(values, contexts, floors=floors)
    explained = ~found.is_pattern
    np.testing.assert_array_equal(is_outside(values, found)[explained], found.is_anomaly[explained])


@pytest.mark.parametrize("kind", KINDS)
@given(steps, floors, st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_raised_bar_moves_the_bound_of_its_side_so_that_a_row_alerts_exactly_outside(
    cases, kind, steps, floors, seed
):
    one, values = cases[kind], cases[kind].z(steps)
    rng = np.random.default_rng(seed)
    up, down = (np.where(rng.random(2 * N) < 0.5, 10.0 ** rng.uniform(-12, -2, 2 * N), np.inf) for _ in range(2))
    found = one.decide(values, floors=floors, bars=Bars(up, down))
    explained = ~found.is_pattern
    np.testing.assert_array_equal(is_outside(values, found)[explained], found.is_anomaly[explained])
    bar = np.where(values > found.expected, up, down)
    assert (found.p_value[found.is_anomaly] <= bar[found.is_anomaly]).all()
    assert (
        not (found.is_barred & found.is_anomaly).any() and (found.p_value[found.is_barred] > bar[found.is_barred]).all()
    )
    free = one.decide(values, floors=floors)
    np.testing.assert_array_equal(found.p_value, free.p_value)


def test_a_barred_row_makes_no_room_for_the_alerts_of_others_and_alerts_in_the_other_direction(cases):
    one = cases["count"]
    values = one.z(np.where(np.arange(2 * N) == 4, 10.0, 0.0))
    up = np.where(np.arange(2 * N) == 4, 1e-300, np.inf)
    found = one.decide(values, bars=Bars(up, np.full(2 * N, np.inf)))
    assert not found.is_anomaly.any() and np.flatnonzero(found.is_barred).tolist() == [4] and np.isnan(found.upper[4])
    fallen = one.decide(one.z(np.where(np.arange(2 * N) == 4, -8.0, 0.0)), bars=Bars(up, np.full(2 * N, np.inf)))
    assert np.flatnonzero(fallen.is_anomaly).tolist() == [4]
    # What is too small to alert does not alert for that, whatever a label says.
    small = one.decide(values, floors=Floors(1e9), bars=Bars(up, np.full(2 * N, np.inf)))
    assert not small.is_barred.any()


@pytest.mark.parametrize("kind", KINDS)
@given(steps, floors, st.integers(0, 2 * N - 1), st.sampled_from(["lower", "upper"]))
@settings(max_examples=10, deadline=None)
def test_a_value_just_past_a_bound_would_have_alerted_and_one_just_within_would_not(
    cases, kind, steps, floors, row, side
):
    one = cases[kind]
    values = one.z(steps)
    before = one.decide(values, floors=floors)
    bound = getattr(before, side)[row]
    if np.isnan(bound) or (side == "lower" and bound == 0 and kind != "value"):
        return
    # A bound is found by halving, to about this much of the distance.
    tiny = 1e-5 * max(abs(bound), abs(bound - before.expected[row]), abs(values[row] - bound))
    out = -1.0 if side == "lower" else 1.0
    for moved, alerts in ((bound + out * tiny, True), (bound - out * tiny, False)):
        other = values.copy()
        other[row] = moved
        assert one.decide(other, floors=floors).is_anomaly[row] == alerts


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_rows_have_bounds_around_them_and_no_alert(cases, kind):
    found = cases[kind].decide(cases[kind].z(np.zeros(2 * N)))
    assert not found.is_anomaly.any() and not found.is_pattern.any() and (found.prediction == 1).all()
    with np.errstate(invalid="ignore"):
        assert not (found.lower > found.expected).any() and not (found.upper < found.expected).any()
    assert not np.isnan(found.upper).any()
    if kind != "value":
        assert (found.lower >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_far_off_alerts_with_its_impact(cases, kind):
    one = cases[kind]
    far = np.zeros(2 * N)
    far[[4, 9]] = 10.0, -8.0
    values = one.z(far)
    found = one.decide(values)
    assert np.flatnonzero(found.is_anomaly).tolist() == [4, 9]
    assert (found.prediction[[4, 9]] == -1).all()
    np.testing.assert_allclose(found.impact, values - found.expected)
    totals = [abs(found.expected[one.days == day].sum()) for day in (1, 2)]
    np.testing.assert_allclose(found.impact_share[[4, 9]], found.impact[[4, 9]] / totals)


def test_rollups_have_no_part_in_the_total(cases):
    one = cases["count"]
    is_rollup = np.arange(2 * N) >= 2 * N - 2
    found = one.decide(is_rollup=is_rollup)
    total = found.expected[(one.days == 1) & ~is_rollup].sum()
    np.testing.assert_allclose(found.impact_share[::2] * total, found.impact[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_was_said_goes_on_without_an_alert_as_long_as_its_days_are_in_order(cases, kind):
    one = cases[kind]
    contexts = one.contexts.copy()
    contexts[:, CONTEXT.index("sum_long")] = 14.0
    contexts[:, CONTEXT.index("sum_short")] = 6.0
    contexts[:, CONTEXT.index("peak")] = 0.0
    first = one.decide(one.z(np.full(2 * N, 2.0)), contexts)
    assert first.is_anomaly.any() and not first.is_ongoing.any()
    contexts[:, CONTEXT.index("peak")] = 5.0
    later = one.decide(one.z(np.full(2 * N, 2.0)), contexts)
    assert not later.is_anomaly.any()
    np.testing.assert_array_equal(later.is_ongoing, first.p_value <= RULES.alpha)
    # What it scores stays.
    np.testing.assert_array_equal(later.p_value, first.p_value)
    np.testing.assert_array_equal(later.prediction, first.prediction)
    far = one.decide(one.z(np.full(2 * N, 6.0)), contexts)
    assert not far.is_ongoing.any() and far.is_anomaly.mean() > 0.9


def test_an_ongoing_row_makes_no_room_for_the_alerts_of_others(cases):
    one = cases["count"]
    contexts = one.contexts.copy()
    ongoing = np.arange(2 * N) < 2 * N - 2
    contexts[ongoing, CONTEXT.index("sum_long")] = 14.0
    contexts[ongoing, CONTEXT.index("peak")] = 5.0
    values = one.z(np.where(ongoing, 2.0, 0.0))
    found, alone = one.decide(values, contexts), one.decide(one.z(np.zeros(2 * N)))
    assert found.is_ongoing[ongoing].mean() > 0.5
    np.testing.assert_allclose(found.upper[~ongoing], alone.upper[~ongoing])


@pytest.mark.parametrize("kind", KINDS)
def test_undiscovered_is_what_decides(cases, kind):
    one = cases[kind]
    contexts = one.contexts.copy()
    contexts[::2, CONTEXT.index("peak")] = 5.0
    contexts[:, CONTEXT.index("sum_long")] = 14.0
    values = one.z(np.full(2 * N, 2.0))
    found = one.decide(values, contexts)
    for segment in range(N):
        rows = slice(2 * segment, 2 * segment + 2)
        p = undiscovered(one.bundle.detector(segment), one.bundle.feature_set, values[rows], contexts[rows])
        is_ongoing = one.bundle.feature_set.is_ongoing(values[rows], contexts[rows])
        np.testing.assert_allclose(p, np.where(is_ongoing, 1.0, found.p_value[rows]), rtol=1e-6)


def test_where_no_value_would_have_passed_the_pattern_is_said(cases):
    one = cases["count"]
    contexts = one.contexts.copy()
    contexts[0, CONTEXT.index("common_z")] = 12.0
    found = one.decide(one.z(np.zeros(2 * N)), contexts)
    assert found.is_pattern[0] and found.is_anomaly[0]
    assert np.isnan([found.lower[0], found.upper[0]]).all()
    assert found.is_pattern.sum() == 1


@given(floors)
@settings(deadline=None)
def test_under_the_floor_nothing_is_an_anomaly(cases, floors):
    one = cases["count"]
    values = one.z(np.linspace(-12.0, 12.0, 2 * N))
    found, free = one.decide(values, floors=floors), one.decide(values)
    totals = np.where(one.days == 1, *(free.expected[one.days == day].sum() for day in (1, 2)))
    small = np.abs(values - free.expected) < np.maximum(floors.impact, floors.share * totals)
    np.testing.assert_array_equal(found.is_anomaly, free.is_anomaly & ~small)


def test_a_floor_does_not_take_the_bound_of_a_count_under_zero(cases):
    for kind in ("count", "ratio"):
        found = cases[kind].decide(floors=Floors(1e6))
        assert (found.lower == 0).all()
        np.testing.assert_allclose(found.upper, found.expected + 1e6)


def test_other_rules_move_the_bounds_and_not_the_p_values(cases):
    one = cases["count"]
    strict, loose = (one.decide(rules=Rules(alpha, 0.5, 90)) for alpha in (1e-6, 0.05))
    np.testing.assert_array_equal(strict.p_value, loose.p_value)
    assert (strict.upper > loose.upper).all()


def test_progress_is_told_of_every_row(cases):
    done = []
    cases["count"].decide(progress=done.append)
    assert sum(done) == 2 * N
    assert FEATURES == cases["count"].bundle.feature_set.names


def test_no_rows_make_no_decisions(cases):
    one, none = cases["count"], np.empty(0)
    X, contexts = np.empty((0, len(FEATURES))), np.empty((0, len(CONTEXT)))
    assert len(decide(one.bundle, [], np.empty(0, dtype=np.int64), none, contexts, X).is_anomaly) == 0
