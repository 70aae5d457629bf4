import itertools

import numpy as np
import pytest

from segwatch.core.incidents import QUIET, Scored, causes_of, follow, sentence
from segwatch.core.panel import Segments

DIMENSIONS = ("country", "platform", "channel")
LEAVES = tuple(itertools.product(("de", "es", "fr", "it"), ("app", "ios", "web"), ("free", "paid")))
ROLLUPS = (
    (None, None, None),
    *((c, None, None) for c in ("de", "es", "fr", "it")),
    *((None, p, None) for p in ("app", "ios", "web")),
    *((None, None, k) for k in ("free", "paid")),
)
SEGMENTS = Segments(DIMENSIONS, LEAVES + ROLLUPS)
DAY = np.datetime64("2026-11-20")


def holds(cause, values):
    return all(mine in (None, own) for mine, own in zip(cause, values, strict=True))


def scored(factors, alerting=0.2, additive=True, seed=0, day=0):
    """A day of 24 segments with roll-ups: a factor by cause; rows that are off by more than `alerting` alert."""
    expected = np.random.default_rng(seed).uniform(200.0, 2000.0, len(LEAVES))
    rng = np.random.default_rng([seed, day])
    values = expected * rng.normal(1.0, 0.01, len(LEAVES))
    for cause, factor in factors.items():
        rows = [holds(cause, leaf) for leaf in LEAVES]
        values[rows] *= factor
    sums = np.array([[holds(rollup, leaf) for leaf in LEAVES] for rollup in ROLLUPS], float)
    values, expected = (np.concatenate([a, sums @ a]) for a in (values, expected))
    off = np.abs(values / expected - 1.0)
    # A sum is known better than its parts.
    limit = np.where(SEGMENTS.is_rollup, 0.3 * alerting, alerting)
    return Scored(SEGMENTS, values, expected, off > limit, additive)


def causes(*args, **options):
    return [(one.values, one.direction) for one in causes_of(scored(*args, **options))]


def test_a_platform_that_went_dark_is_one_cause_with_its_share_and_segments_by_impact():
    day = scored({(None, "ios", None): 0.05})
    [cause] = causes_of(day)
    assert cause.values == (None, "ios", None) and cause.direction == "down"
    assert cause.share > 0.95 and cause.impact < 0 < cause.expected
    assert {SEGMENTS.values[i][1] for i in cause.segments} == {"ios"} and len(cause.segments) == 8
    impacts = np.abs(day.change[cause.segments])
    assert (np.diff(impacts) <= 0).all()
    # Every alert is put down to it: segments, their own roll-up, and those that it drags along.
    np.testing.assert_array_equal(cause.rows, np.flatnonzero(day.is_anomaly))


@pytest.mark.parametrize(
    ("factors", "named"),
    [
        ({("it", None, None): 0.3}, [(("it", None, None), "down")]),
        ({("it", "web", None): 0.1}, [(("it", "web", None), "down")]),
        ({("fr", "app", "paid"): 0.1}, [(("fr", "app", "paid"), "down")]),
        ({("fr", "app", "paid"): 4.0}, [(("fr", "app", "paid"), "up")]),
        ({(None, None, None): 0.4}, [((None, None, None), "down")]),
        # Too little for any of its segments to alert, but not for their sum.
        ({("es", None, None): 0.88}, [(("es", None, None), "down")]),
        ({}, []),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_set_of_values_that_explains_the_change_is_named(factors, named, seed):
    assert causes(factors, seed=seed) == named


def test_a_fall_and_a_rise_on_one_day_are_two_causes():
    found = causes({("de", None, None): 0.2, ("it", "web", None): 3.0})
    assert sorted(found) == [(("de", None, None), "down"), (("it", "web", None), "up")]


def test_what_cannot_be_added_up_is_said_row_by_row():
    day = scored({("it", None, None): 0.3}, additive=False)
    found = causes_of(day)
    assert sorted(one.rows[0] for one in found) == np.flatnonzero(day.is_anomaly).tolist()
    assert np.isnan([one.share for one in found]).all()


def went_on(days):
    """What is said on each day; a day is the factors of its causes."""
    said, open_ = [], []
    for k, factors in enumerate(days):
        now, open_ = follow("users", open_, scored(factors, day=k), DAY + k, "day")
        said.append(now)
    return said


IOS, IT = (None, "ios", None), ("it", None, None)


def test_an_incident_is_new_goes_on_gets_worse_outlives_a_quiet_day_and_is_resolved_once():
    said = went_on([{IOS: 0.6}, {IOS: 0.6}, {IOS: 0.05}, {}, {IOS: 0.5}, {}, {}, {}])
    assert [[one.status for one in day] for day in said] == [
        ["new"], ["ongoing"], ["worse"], [], ["ongoing"], [], ["resolved"], [],
    ]  # fmt: skip
    known = [one for day in said for one in day]
    assert len({one.id for one in known}) == 1 and {one.first_seen for one in known} == {DAY}
    assert known[-1].last_seen == DAY + 4 and known[-1].ts == DAY + 4 + QUIET + 1
    assert known[-1].total_impact == pytest.approx(sum(one.impact for one in known[:-1]))
    assert known[-1].peak == pytest.approx(abs(known[2].impact))


def test_what_grows_from_one_segment_to_its_country_is_the_same_incident_and_worse():
    said = went_on([{("it", "web", None): 0.05}, {IT: 0.5}, {("it", "web", None): 0.05}])
    assert [[(one.status, one.values) for one in day] for day in said] == [
        [("new", ("it", "web", None))], [("worse", IT)], [("ongoing", IT)],
    ]  # fmt: skip
    assert len({one.id for day in said for one in day}) == 1


def test_a_small_incident_is_not_the_beginning_of_a_large_one():
    said = went_on([{("it", "ios", "paid"): 0.6}, {IOS: 0.02}])
    assert [(one.status, one.values) for one in said[1]] == [("new", IOS)]


def test_a_rise_does_not_go_on_with_a_fall():
    said = went_on([{IT: 0.2}, {IT: 3.0}])
    assert [one.status for one in said[1]] == ["new"] and said[0][0].id != said[1][0].id


def test_an_id_follows_from_what_broke_first_and_when():
    ids = [went_on([{IT: 0.2}])[0][0].id for _ in range(2)]
    assert ids[0] == ids[1] != went_on([{}, {IT: 0.2}])[1][0].id


def test_an_incident_is_said_in_words():
    said = went_on([{IOS: 0.5}, {IOS: 0.5}, {}, {}])
    first, second, last = said[0][0], said[1][0], said[3][0]
    assert sentence(first).startswith("*/ios/* down 50 % (-") and sentence(first).endswith(
        ") on 2026-11-20, 8 segments: new"
    )
    assert sentence(second).endswith("since 2026-11-20, 8 segments: ongoing")
    assert "in all) from 2026-11-20 to 2026-11-21" in sentence(last) and sentence(last).endswith(": resolved")
