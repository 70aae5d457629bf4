import itertools
from dataclasses import fields
from functools import cache

import numpy as np
import pytest

from segwatch.core import matrix
from segwatch.core.baseline import Baseline, Recursion
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.panel import Panel
from segwatch.core.rollup import with_rollups
from segwatch.core.training import MIN_ROWS, Prepared, Rows, alive, ended_after, fit_prepared, fit_rows, parts

from .simulated import counts, panel_of, weekly

NAMES = tuple(itertools.product(("de", "es", "fr", "it"), ("app", "ios", "web")))
KINDS = ("count", "ratio", "value")
DAY = Recursion(FeatureSet("day", "count"))


@cache
def prepared(kind="count", n_times=160):
    rng = np.random.default_rng(0)
    values = counts(rng, np.outer(rng.uniform(2.0, 400.0, len(NAMES)), weekly(n_times, 1.0)))
    values[rng.random(values.shape) < 0.02] = np.nan
    if kind == "value":
        values -= 50.0
    exposure = np.where(np.isnan(values), np.nan, 900.0) if kind == "ratio" else None
    panel = panel_of(values, NAMES, ("country", "platform"), exposure)
    return Prepared.of(panel if kind == "value" else with_rollups(panel, 1), Recursion(FeatureSet("day", kind), 9))


def assert_same_fit(one, other):
    assert (one.status, one.reason, one.n_observations) == (other.status, other.reason, other.n_observations)
    assert (one.detector is None) == (other.detector is None)
    if one.detector:
        np.testing.assert_array_equal(one.detector.vectors, other.detector.vectors)
        np.testing.assert_array_equal(one.detector.weights, other.detector.weights)
        np.testing.assert_array_equal(one.detector.scaling.center, other.detector.scaling.center)
        assert one.detector.calibration == other.detector.calibration


@pytest.mark.parametrize("kind", KINDS)
def test_a_panel_in_files_is_prepared_and_trains_as_one_in_memory(tmp_path, kind):
    before = prepared(kind)
    leaves = before.panel.take(np.flatnonzero(~before.panel.segments.is_rollup))
    filed = []
    for values in (leaves.values, leaves.exposure):
        filed.append(values if values is None else matrix.new(values.shape, np.nan, tmp_path))
        if values is not None:
            matrix.copy_into(filed[-1], values)
    panel = Panel(leaves.history, leaves.window, *filed)
    panel = panel if kind == "value" else with_rollups(panel, 1, room=tmp_path)
    again = Prepared.of(panel, before.recursion, room=tmp_path)
    np.testing.assert_array_equal(again.values, before.values)
    np.testing.assert_array_equal(again.shared.effects, before.shared.effects)
    again.save(tmp_path / "it")
    loaded = Prepared.load(tmp_path / "it", before.recursion)
    for one, other in zip(fit_prepared(loaded, 60), fit_prepared(before, 60), strict=True):
        assert_same_fit(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_prepared_loads_as_it_was_and_trains_the_same(tmp_path, kind):
    before = prepared(kind)
    before.save(tmp_path / "it")
    loaded = Prepared.load(tmp_path / "it", before.recursion)
    assert loaded.panel.segments == before.panel.segments
    assert loaded.shared.groups.keys == before.shared.groups.keys
    for here, there in (
        (loaded.values, before.values),
        (loaded.scale, before.scale),
        (loaded.shared.effects, before.shared.effects),
        (loaded.shared.z, before.shared.z),
        (loaded.shared.groups.members, before.shared.groups.members),
        (loaded.shared.known, before.shared.known),
        (loaded.pools.scales.scale, before.pools.scales.scale),
        (loaded.pools.scales.n_seen, before.pools.scales.n_seen),
        (loaded.pools.known.yearly, before.pools.known.yearly),
        *((getattr(loaded.state, f.name), getattr(before.state, f.name)) for f in fields(Baseline)),
    ):
        np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(Rows.of(loaded, 50).X, Rows.of(before, 50).X)
    for one, other in zip(fit_prepared(loaded, 90), fit_prepared(before, 90), strict=True):
        assert_same_fit(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_trained_on_its_own_is_as_it_was_among_all(kind):
    whole = prepared(kind)
    fitted = list(fit_prepared(whole, 90))
    for rows in ([4], [7, 0, 11]):
        for place, one in zip(rows, fit_prepared(whole.take(rows), 90), strict=True):
            assert_same_fit(one, fitted[place])


def test_parts_do_not_change_the_rows():
    whole = prepared()
    some = list(parts(whole, 160 * 5))
    assert [(first, len(part)) for first, part in some] == [(0, 5), (5, 5), (10, 5), (15, 5)]
    whole_rows, part_rows = Rows.of(whole, 100), [Rows.of(part, 100) for _, part in some]
    for name in ("X", "contexts", "values", "is_complete"):
        joined = np.concatenate([getattr(rows, name) for rows in part_rows])
        np.testing.assert_array_equal(joined, getattr(whole_rows, name), err_msg=name)


def test_progress_is_told_of_every_segment():
    done = []
    assert len(list(fit_prepared(prepared(), 90, done.append))) == sum(done) == 20


def fit_one(values, min_history=90, recursion=DAY):
    (fitted,) = fit_prepared(Prepared.of(panel_of(np.atleast_2d(values)), recursion), min_history)
    return fitted


def ordinary(n_times=160, level=100.0, seed=0):
    return counts(np.random.default_rng(seed), weekly(n_times, level))


def test_a_short_segment_says_how_many_periods_it_has_and_needs():
    fitted = fit_one(np.concatenate([np.full(71, np.nan), ordinary(89)]))
    assert (fitted.status, fitted.detector, fitted.n_observations) == ("too_short", None, 89)
    assert fitted.reason == "89 periods, needs 90: widen the Window or lower min_history"
    assert fit_one(ordinary(90)).status == "ok"


def test_a_segment_with_too_few_complete_rows_says_so_whatever_min_history_is():
    n = 28 + MIN_ROWS - 1
    fitted = fit_one(ordinary(n), min_history=0)
    assert fitted.status == "too_short"
    assert fitted.reason == f"{MIN_ROWS - 1} periods with a full history behind them, needs {MIN_ROWS}: too many gaps"
    assert fit_one(ordinary(n + 1), min_history=0).status == "ok"


def test_periods_after_a_segments_end_train_nothing():
    values = np.concatenate([ordinary(120), np.zeros(60)])
    panel = panel_of(np.stack([values, ordinary(180)]))
    panel.history.last_seen[0] = panel.window.times[119]
    whole = Prepared.of(panel, DAY)
    assert alive(whole)[0].sum() == 119 + ended_after(DAY.features)
    fitted = next(fit_prepared(whole, 90))
    assert fitted.n_observations == 119 + ended_after(DAY.features)


@pytest.mark.parametrize("value", [0.0, 1.0, 7.0, 1000.0])
def test_a_constant_segment_is_trained_and_another_value_stands_out(value):
    whole = Prepared.of(panel_of(np.full((1, 100), value)), DAY)
    fitted = next(fit_prepared(whole, 90))
    assert fitted.status == "ok"
    contexts = whole.rows(1)[1][0]
    same, far = (DAY.features.features(np.array([v]), contexts) for v in (value, 20 * value + 9))
    assert fitted.detector.p_value(same)[0] > 0.1
    assert fitted.detector.p_value(far)[0] < 1e-6


def test_one_count_more_or_less_is_no_anomaly_in_a_segment_that_never_moved():
    values = np.full(400, 2.0)
    values[30], values[330:] = 1.0, np.where(np.arange(70) % 3 == 0, 1.0, 2.0)
    rows = Rows.of(Prepared.of(panel_of(values[None]), DAY), 400)
    (fitted,) = fit_rows(rows.until(330), np.array([330]), 90)
    detector = fitted.detector
    assert detector.p_value(rows.X[0, 330:]).min() > 1e-3
    many = DAY.features.features(np.full(1, 12.0), rows.contexts[0, 330:331])
    assert detector.p_value(many).max() < 1e-3


def test_rows_are_the_last_periods_and_only_complete_ones_train():
    values = np.stack([ordinary(600), ordinary(600, seed=1)])
    values[0, 590:595] = np.nan
    whole = Prepared.of(panel_of(values), DAY)
    rows = Rows.of(whole, 500)
    assert rows.X.shape == (2, 500, len(FEATURES))
    np.testing.assert_array_equal(rows.values[0], values[0, 100:])
    assert (~rows.is_complete[0]).sum() == 5
    some, all_ = rows.each()
    # What is missing is made up for by earlier rows.
    assert len(some) == len(all_) == rows.n_most == 400
    np.testing.assert_array_equal(all_, rows.X[1, 100:])
    np.testing.assert_array_equal(some[-5:], rows.X[0, -5:])


def test_rows_until_a_period_do_not_know_the_later_ones():
    values = np.stack([ordinary(200), ordinary(200, seed=1)])
    before = Rows.of(Prepared.of(panel_of(values), DAY), 150).until(100)
    values[:, 150:] *= 3
    changed = Rows.of(Prepared.of(panel_of(values), DAY), 150).until(100)
    np.testing.assert_array_equal(before.X, changed.X)
    assert before.values.shape == (2, 100)


def test_the_state_before_the_last_periods_is_the_state_of_the_shorter_window():
    values = np.stack([ordinary(200), ordinary(200, seed=1)])
    whole, shorter = (Prepared.of(panel_of(values[:, :n]), DAY) for n in (200, 172))
    state = whole.state_before(28)
    for f in fields(Baseline):
        np.testing.assert_array_equal(getattr(state, f.name), getattr(shorter.state, f.name), err_msg=f.name)
