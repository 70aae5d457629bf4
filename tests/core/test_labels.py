import datetime as dt
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from segwatch.core.labels import (
    Bars,
    Label,
    Learned,
    alarms_of,
    bars,
    followed,
    is_expected,
    leave_out,
    standing,
    teach,
)
from segwatch.core.rollup import with_rollups
from segwatch.core.window import Window

from .simulated import START, panel_of, weekly

DIMENSIONS = ("country", "platform")
NAMES = tuple((country, platform) for country in ("de", "it") for platform in ("app", "ios", "web"))
N_TIMES = 200
NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


def day(column):
    return START + np.timedelta64(column, "D")


def said(what, values, first, last=None, **more):
    id_ = more.pop("id", what)
    at = more.pop("at", NOW)
    return Label(id_, what, at, "ann", values, day(first), day(first if last is None else last), **more)


@pytest.fixture
def panel():
    return panel_of(np.outer([10.0, 20.0, 30.0, 100.0, 200.0, 300.0], weekly(N_TIMES, 1.0)), NAMES, DIMENSIONS)


def test_the_last_word_on_an_incident_stands_and_a_snooze_stands_beside_it():
    later = NOW + dt.timedelta(hours=1)
    false, true = said("false", ("it", None), 1, id="a"), said("true", ("it", None), 1, id="a", at=later)
    snooze = said("snooze", ("it", None), 1, id="a", at=later)
    assert standing([true, false, snooze]) == [true, snooze]
    assert standing([replace(true, said="none", at=later + dt.timedelta(1)), true, snooze]) == [snooze]


def test_a_label_lasts_as_long_as_its_incident_goes_on_and_a_snooze_as_long_as_was_said():
    given = [said("true", ("it", None), 1, 2, id="a"), said("snooze", ("it", None), 1, 2, id="a")]
    assert [one.last for one in followed(given, {"a": day(9)})] == [day(9), day(2)]
    assert followed(given, {"a": day(1), "b": day(9)}) == given


@pytest.mark.parametrize("what", ["true", "expected"])
def test_what_is_labelled_leaves_the_training_data_and_nothing_else_does(panel, what):
    before = panel.values.copy()
    taught, learned = teach(panel, [said(what, (None, "ios"), 50, 52)], 90)
    gone = np.isnan(taught.values)
    assert gone.sum() == 6 and gone[[1, 4], 50:53].all() and learned == Learned(n_left_out=6)
    np.testing.assert_array_equal(taught.values[~gone], before[~gone])


@pytest.mark.parametrize("what", ["false", "snooze"])
def test_a_false_alarm_and_a_snooze_leave_the_training_data_as_it_is(panel, what):
    before = panel.values.copy()
    taught, learned = teach(panel, [said(what, (None, "ios"), 50, 52)], 90)
    np.testing.assert_array_equal(taught.values, before)
    assert learned == Learned() and not learned.said


def test_a_label_outside_of_the_window_or_of_values_that_are_gone_does_nothing(panel):
    labels = [said("true", ("it", None), 900), said("true", ("fr", None), 5), said("new-normal", ("it", None), 900),
              said("new-normal", ("it", None), -5)]  # fmt: skip
    assert teach(panel, labels, 90)[1] == Learned()


def test_of_a_ratio_numerator_and_denominator_are_left_out(panel):
    ratio = panel_of(panel.values, NAMES, DIMENSIONS, np.full(panel.values.shape, 1000.0))
    assert leave_out(ratio, [said("true", ("it", "app"), 5)]) == 1
    assert np.isnan(ratio.values[3, 5]) and np.isnan(ratio.exposure[3, 5]) and np.isnan(ratio.exposure).sum() == 1


@pytest.mark.parametrize("shift", [190, 197])
def test_what_came_before_a_new_normal_is_carried_to_its_level_weekday_by_weekday(panel, shift):
    before = panel.values.copy()
    panel.values[3, shift:] *= 0.3
    taught, learned = teach(panel, [said("new-normal", ("it", "app"), shift)], 90)
    assert learned == Learned(n_carried=1)
    np.testing.assert_allclose(taught.values[3], before[3] * 0.3)
    np.testing.assert_array_equal(np.delete(taught.values, 3, 0), np.delete(before, 3, 0))
    assert (taught.history.first_seen == day(0)).all()


def test_the_history_begins_at_a_new_normal_as_soon_as_that_is_a_history(panel):
    taught, learned = teach(panel, [said("new-normal", ("it", None), 100)], 90)
    assert learned == Learned(n_cut=3)
    assert np.isnan(taught.values[3:, :100]).all() and not np.isnan(taught.values[3:, 100:]).any()
    assert not np.isnan(taught.values[:3]).any()
    assert taught.history.first_seen.tolist() == [day(0).item()] * 3 + [day(100).item()] * 3


def test_of_two_new_normals_the_later_one_carries_what_the_earlier_one_did(panel):
    panel.values[3, 180:] *= 0.5
    panel.values[3, 190:] *= 4.0
    labels = [said("new-normal", ("it", "app"), 190, id="b"), said("new-normal", ("it", "app"), 180, id="a")]
    taught, _ = teach(panel, labels, 90)
    np.testing.assert_allclose(taught.values[3], 200.0 * weekly(N_TIMES, 1.0), rtol=0.01)


def test_values_of_any_sign_are_carried_by_a_difference():
    values = np.tile(weekly(N_TIMES, 1.0) - 1.0, (6, 1))
    shifted = values.copy()
    shifted[0, 190:] += 5.0
    taught, _ = teach(panel_of(shifted, NAMES, DIMENSIONS), [said("new-normal", ("de", "app"), 190)], 90)
    np.testing.assert_allclose(taught.values[0], values[0] + 5.0)


def test_a_rate_is_carried_whatever_its_denominators_did():
    visits = np.tile(np.linspace(1000.0, 5000.0, N_TIMES), (6, 1))
    orders = 0.1 * visits
    orders[0, 190:] *= 0.2
    taught, _ = teach(panel_of(orders, NAMES, DIMENSIONS, visits), [said("new-normal", ("de", "app"), 190)], 90)
    np.testing.assert_allclose(taught.values[0] / taught.exposure[0], 0.02)


def test_a_rate_that_was_zero_cannot_be_carried_and_is_forgotten_with_its_denominators():
    visits = np.full((6, N_TIMES), 1000.0)
    orders = 0.1 * visits
    orders[0, :190] = 0.0
    taught, _ = teach(panel_of(orders, NAMES, DIMENSIONS, visits), [said("new-normal", ("de", "app"), 190)], 90)
    assert np.isnan(taught.values[0, :190]).all() and np.isnan(taught.exposure[0, :190]).all()
    assert not np.isnan(taught.values[0, 190:]).any() and not np.isnan(taught.exposure[1:]).any()


def test_what_a_label_expects_holds_for_roll_ups_only_that_lie_in_it(panel):
    whole = with_rollups(panel, 1)
    window = Window(day(198), day(200))
    found = is_expected(whole.segments, window, [said("expected", ("it", None), 199, 210)])
    named = {whole.segments.labels[i] for i in np.flatnonzero(found[:, 1])}
    assert named == {"it/app", "it/ios", "it/web", "it/*"} and not found[:, 0].any()


def raised(labels, panel, trained=150, window=(150, 200)):
    found = bars(labels, panel.segments, Window(day(0), day(trained)), Window(*map(day, window)))
    return {(bar.segment_id, bar.direction, bar.after, bar.last): bar.p_value for bar in found}


def test_a_false_alarm_raises_the_bar_of_what_alerted_after_it_for_a_year(panel):
    false = said("false", ("it", None), 152, 153, direction="up", alarms=(("x", 3e-4), ("y", 3e-9)))
    assert raised([false], panel) == {
        ("x", "up", day(153), None): pytest.approx(3e-5),
        ("y", "up", day(153), None): pytest.approx(3e-10),
    }
    assert raised([false], panel, window=(530, 531)) == {}


def test_a_new_normal_is_told_no_more_until_a_model_has_learned_it(panel):
    normal = said("new-normal", ("it", "app"), 152, 155, direction="down", alarms=(("up there", 1e-4),))
    [*keys] = raised([normal], panel)
    assert {id_ for id_, *_ in keys} == {panel.segments.ids[3], "up there"}
    assert {key[1:] for key in keys} == {("down", day(151), None)}
    assert {key[1:] for key in raised([normal], panel, trained=160)} == {("down", day(151), day(155))}


def test_a_bar_stands_in_its_direction_in_its_periods_and_the_highest_of_several_counts(panel):
    false = [said("false", ("it", None), 2, direction="up", alarms=(("x", p),), id=str(p)) for p in (3e-3, 3e-6)]
    ids, ts = pa.array(["x", "x", "z"]), np.array([day(2), day(3), day(3)])
    found = Bars.of(bars(false, panel.segments, Window(day(0), day(1)), Window(day(2), day(4))), ids, ts)
    assert found.up.tolist() == [np.inf, pytest.approx(3e-7), np.inf] and np.isinf(found.down).all()
    assert found.is_raised.tolist() == [False, True, False]
    assert Bars.of([], ids, ts) is None


def test_alarms_are_those_in_a_cause_and_of_what_holds_it_by_their_smallest_p_value():
    rows = [
        ("a", "it", "ios", True, "down", 1e-3), ("a", "it", "ios", True, "down", 1e-5),
        ("b", "it", "ios", True, "up", 1e-9), ("c", "it", None, True, "down", 1e-4),
        ("d", None, None, True, "down", 1e-2), ("e", "fr", "ios", True, "down", 1e-2),
        ("f", "it", "app", False, None, 0.5),
    ]  # fmt: skip
    names = ("segment_id", "country", "platform", "is_anomaly", "direction", "p_value")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    assert alarms_of(table, ("it", None), "down", DIMENSIONS) == {"a": 1e-5, "c": 1e-4, "d": 1e-2}
