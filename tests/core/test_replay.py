import itertools
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pytest

from segwatch.core.baseline import Baseline, Recursion
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.groups import Groups
from segwatch.core.replay import Pools, Series, Shared, Whole, contexts_of, go_through, slots
from segwatch.core.rollup import Rollups, with_rollups
from segwatch.core.window import Window, local_times

from .simulated import START, counts, panel_of, weekly

DIMENSIONS = ("country", "platform")
NAMES = tuple(itertools.product(("de", "es", "fr", "it"), ("app", "ios", "tv", "web")))
KINDS = ("count", "ratio", "value")
N_TIMES, LONG, CUT = 150, 480, 397


def panel(kind, n_times=N_TIMES):
    """Segments that differ in size, with gaps, late births, an outage of a country and the outage of all data."""
    rng = np.random.default_rng(0)
    mean = np.outer(rng.uniform(2.0, 400.0, len(NAMES)), weekly(n_times, 1.0))
    values = counts(rng, mean) - (50.0 if kind == "value" else 0.0)
    values[[name[0] == "it" for name in NAMES], 80:84] *= 0.4
    values[rng.random(values.shape) < 0.02] = np.nan
    values[:2, :40], values[:, 60] = np.nan, np.nan
    values = np.rint(values)
    exposure = np.where(np.isnan(values), np.nan, values + rng.integers(500, 900, values.shape))
    whole = panel_of(values, NAMES, DIMENSIONS, exposure if kind == "ratio" else None)
    return whole if kind == "value" else with_rollups(whole, 1)


@dataclass(frozen=True)
class Gone:
    """A Panel gone through. contexts: of every period."""

    whole: Whole
    state: Baseline
    pools: Pools
    shared: Shared
    contexts: np.ndarray


def fresh(panel, kind):
    features = FeatureSet("day", kind)
    scale = features.segment_scale(panel.values)
    whole = Whole(Series.of(panel, scale, "UTC"), Groups.of(panel.segments), Rollups.of(panel))
    return whole, Recursion(features, 7), Baseline.fresh(scale, features)


def gone(panel, kind):
    """The Panel gone through, and the features of every period."""
    whole, recursion, state = fresh(panel, kind)
    pools = Pools.fresh(whole.groups)
    shared, contexts = go_through(whole, recursion, state, pools, len(panel.window))
    X = recursion.features.features(whole.series.values, contexts)
    return Gone(whole, state, pools, shared, contexts), X


def assert_same(state, other, but=(), **tolerance):
    for f in fields(Baseline):
        if f.name in but:
            continue
        here, there = getattr(state, f.name), getattr(other, f.name)
        if tolerance:
            np.testing.assert_allclose(here, there, err_msg=f.name, **tolerance)
        else:
            np.testing.assert_array_equal(here, there, err_msg=f.name)


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_a_state_is_the_same_to_the_last_bit(kind):
    once, X = gone(panel(kind, LONG), kind)
    whole, recursion, state = fresh(panel(kind, LONG), kind)
    pools = Pools.fresh(whole.groups)
    go_through(replace(whole, series=whole.series.until(CUT)), recursion, state, pools)
    # What a model keeps of the first part is its state, from Arrow and back.
    state = Baseline.from_table(pa.table(state.columns()))
    later = replace(whole, series=whole.series.since(CUT))
    shared, contexts = go_through(later, recursion, state, pools, LONG - CUT)
    np.testing.assert_array_equal(contexts, once.contexts[:, CUT:])
    np.testing.assert_array_equal(recursion.features.features(later.series.values, contexts), X[:, CUT:])
    for name in ("effects", "z", "known"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(once.shared, name)[:, CUT:], err_msg=name)
    np.testing.assert_array_equal(pools.scales.scale, once.pools.scales.scale)
    np.testing.assert_array_equal(pools.known.yearly, once.pools.known.yearly)
    assert_same(state, once.state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[0], [5, 2, 11], slice(3, 9)])
def test_any_part_of_the_segments_gone_through_alone_is_as_it_was_among_all(kind, rows):
    past, _ = gone(panel(kind), kind)
    _, recursion, state = fresh(panel(kind), kind)
    part = state.take(rows)
    contexts = contexts_of(past.whole.series.take(rows), recursion, part, past.shared.take(rows), 40)
    np.testing.assert_array_equal(contexts, past.contexts[rows][:, -40:])
    assert_same(part, past.state.take(rows), but=("own_effect", "n_effects"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_segments_does_not_matter(kind):
    whole = panel(kind)
    order = np.random.default_rng(1).permutation(len(whole.segments))
    past, X = gone(panel(kind), kind)
    other, shuffled = gone(whole.take(order), kind)
    np.testing.assert_allclose(shuffled, X[order], rtol=1e-6, atol=1e-6)
    assert_same(other.state, past.state.take(order), rtol=1e-6, atol=1e-6)


def test_no_period_depends_on_a_later_one():
    whole = panel("count")
    past, _ = gone(panel("count"), "count")
    whole.values[:, 120:] = 7.0
    other, _ = gone(whole, "count")
    np.testing.assert_array_equal(other.contexts[:, :121, :4], past.contexts[:, :121, :4])
    np.testing.assert_array_equal(other.contexts[:, :120], past.contexts[:, :120])


def test_a_segment_alone_shares_nothing_and_many_share_their_countrys_outage():
    past, _ = gone(panel("count"), "count")
    it = past.shared.groups.keys.index((0, "it"))
    assert past.shared.effects[it, 80:82].max() < -0.5
    assert np.abs(np.delete(past.shared.effects, it, axis=0)[:, 80:82]).max() < 0.2
    one, _ = gone(panel_of(np.random.default_rng(0).poisson(50, (1, 60))), "count")
    assert not one.shared.effects.any()


def test_the_first_outage_of_a_calm_country_is_told_in_its_segments_and_in_no_other():
    rng, days = np.random.default_rng(0), 365
    it = np.array([name[0] == "it" for name in NAMES])
    values = counts(rng, np.outer(rng.uniform(30.0, 3000.0, len(NAMES)), weekly(days, 1.0)))
    values[it, -1] = np.rint(values[it, -1] * 0.7)
    _, X = gone(panel_of(values, NAMES, DIMENSIONS), "count")
    shared = X[:, -1, FEATURES.index("shared")]
    assert shared[it].max() < -2
    assert not shared[~it].any()


def test_slots_begin_on_mondays():
    assert START == np.datetime64("2025-01-06")
    assert slots(START + np.arange(9), "day").tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert slots(np.datetime64("2025-01-05T23") + np.arange(3), "hour").tolist() == [167, 0, 1]
    assert slots(np.datetime64("1969-12-28") + np.arange(3), "day").tolist() == [6, 0, 1]


def test_an_hour_is_that_of_the_clock_on_the_wall():
    night = Window(np.datetime64("2025-03-29T23"), np.datetime64("2025-03-30T03"), "hour")
    assert local_times(night, "Europe/Rome").astype(str).tolist() == [
        "2025-03-30T00",
        "2025-03-30T01",
        "2025-03-30T03",
        "2025-03-30T04",
    ]
    back = Window(np.datetime64("2025-10-25T23"), np.datetime64("2025-10-26T03"), "hour")
    assert [str(t)[-2:] for t in local_times(back, "Europe/Rome")] == ["01", "02", "02", "03"]
