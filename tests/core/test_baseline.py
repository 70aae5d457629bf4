from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segwatch.core.baseline import Baseline
from segwatch.core.features import FeatureSet

from .simulated import WEEK, counts, gone_through, weekly

N, DAYS, CHANGE = 40, 245, 175
"""CHANGE: a Monday."""
KINDS = ("count", "ratio", "value")


def ordinary(level=300.0, n_times=DAYS, seed=0, profile=WEEK):
    """(N, n_times) counts of an ordinary week."""
    return counts(np.random.default_rng(seed), np.tile(weekly(n_times, level, profile), (N, 1)))


def changed(level, seed=0):
    """Ordinary counts whose level is another from CHANGE on."""
    values = ordinary(seed=seed)
    values[:, CHANGE:] = ordinary(level, seed=seed + 1)[:, CHANGE:]
    return values


def flagged(gone):
    """(n_times,) shares of the series that lie more than three standard deviations off."""
    return (np.abs(gone["z"]) > 3).mean(axis=0)


@pytest.mark.parametrize("noise", [1.0, 2.0, 4.0])
def test_the_level_the_week_and_the_noise_are_learned(noise):
    levels = np.repeat([3.0, 30.0, 3000.0], 100)
    gone = gone_through(counts(np.random.default_rng(0), np.outer(levels, weekly(400, 1.0)), noise))
    np.testing.assert_allclose(medians(gone.state.level / levels), 1.0, rtol=0.12)
    np.testing.assert_allclose(medians(gone.state.profile), np.tile(WEEK, (3, 1)), atol=0.12)
    # Few counts of large noise are mostly zeros.
    some = slice(1, None) if noise == 4 else slice(None)
    np.testing.assert_allclose(medians(gone.state.noise)[some], noise, rtol=0.1)
    assert gone["z"][:, 200:].std() == pytest.approx(1.0, abs=0.05)


def medians(of_series):
    """Those of each third of the series."""
    return np.median(of_series.reshape(3, -1, *of_series.shape[1:]), axis=1)


def test_a_profile_that_noise_explains_is_not_believed():
    flat, steep = (ordinary(3.0, profile=p) for p in (np.ones(7), np.array([2.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5])))
    spread = [gone_through(x).expected[:, -7:].std(axis=1).mean() / 3.0 for x in (flat, steep)]
    assert spread[0] < 0.1
    assert spread[1] > 0.3


def test_a_single_spike_does_not_echo():
    values = ordinary()
    plain = gone_through(values)
    values[:, CHANGE] *= 3
    spiked = gone_through(values)
    assert spiked["z"][:, CHANGE].min() > 6
    later = slice(CHANGE + 1, None)
    np.testing.assert_allclose(spiked.expected[:, later], plain.expected[:, later], rtol=0.04)
    assert np.abs(spiked["z"][:, later] - plain["z"][:, later]).max() < 0.5
    # The windows forget it with the season.
    forgotten = slice(CHANGE + 7, None)
    assert np.quantile(np.abs(spiked["long"][:, forgotten] - plain["long"][:, forgotten]), 0.99) < 0.5


@pytest.mark.parametrize("adapt_after", [3, 7])
def test_a_lasting_shift_becomes_normal(adapt_after):
    levels = [90.0, 150.0, 600.0, 1200.0]
    gone = gone_through(np.concatenate([changed(level) for level in levels]), adapt_after=adapt_after)
    share = flagged(gone)
    assert share[CHANGE : CHANGE + 3].min() > 0.9
    assert share[CHANGE + adapt_after + 1 :].max() < 0.15
    assert share[CHANGE + adapt_after + 1 :].mean() < 0.01
    for level, expected in zip(levels, np.split(gone.expected, 4), strict=True):
        right = (
            np.median(expected, axis=0)[CHANGE + adapt_after + 2 :] / weekly(DAYS, level)[CHANGE + adapt_after + 2 :]
        )
        assert np.abs(right - 1.0).max() < 0.06


def test_a_shift_whose_days_are_in_order_is_called_ongoing_until_it_is_normal():
    gone = gone_through(changed(300.0 * 0.75))
    ongoing = gone.is_ongoing.mean(axis=0)
    assert ongoing[CHANGE + 6 : CHANGE + 8].min() > 0.5
    assert ongoing[CHANGE + 21 :].max() < 0.1
    assert ongoing[60:CHANGE].mean() < 0.01
    assert not (gone.is_ongoing & (np.abs(gone["z"]) >= 3)).any()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_return_to_the_former_level_is_no_anomaly(factor):
    values = changed(300.0 * factor)
    back = CHANGE + 21
    values[:, back:] = ordinary(seed=3)[:, back:]
    share = flagged(gone_through(values))
    assert share[CHANGE : CHANGE + 5].min() > 0.8
    assert share[back:].max() < 0.1
    assert share[back:].mean() < 0.01


def test_the_former_level_is_the_last_one_not_that_before_an_early_anomaly():
    grown = weekly(DAYS) * np.interp(np.arange(DAYS), [60, CHANGE], [3.0, 9.0])
    grown[CHANGE:] /= 3.0
    values = counts(np.random.default_rng(0), np.tile(grown, (N, 1)))
    values[:, 50] *= 5
    gone = gone_through(values)
    former = gone["former"][:, CHANGE + 10] / weekly(DAYS, 900.0)[CHANGE + 10]
    assert np.nanmedian(former) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("level", [300.0, 3000.0])
def test_a_week_of_another_shape_is_learned_after_two(level):
    other = np.array([0.5, 1.2, 1.2, 1.2, 1.2, 1.2, 0.5])
    values = ordinary(level)
    values[:, CHANGE:] = ordinary(level, seed=1, profile=other)[:, CHANGE:]
    gone = gone_through(values)
    share = flagged(gone)
    assert share[CHANGE] > 0.9 and share[CHANGE + 6 : CHANGE + 8].min() > 0.9
    assert share[CHANGE + 15 :].max() < 0.15
    right = gone.expected[:, CHANGE + 21 :] / weekly(DAYS, level, other)[CHANGE + 21 :]
    assert np.abs(right - 1.0).mean() < 0.1


def test_a_day_more_or_less_of_a_count_that_never_moved_is_no_anomaly():
    values = np.full(300, 2.0)
    values[200:] = np.where(np.arange(100) % 7 < 2, 1.0, 2.0)
    assert np.abs(gone_through(values).X[0, 28:]).max() < 3
    values[250] = 12.0
    assert gone_through(values)["z"][0, 250] > 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_gaps", [7, 15])
def test_gaps_change_nothing(kind, n_gaps):
    values = ordinary()[:, :160]
    exposure = np.full(values.shape, 1000.0)
    holed, holed_exposure = values.copy(), exposure.copy()
    holed[:, 100 : 100 + n_gaps], holed_exposure[:, 100 : 100 + n_gaps] = np.nan, np.nan
    plain, gone = (
        gone_through(v[:, :end], kind, exposure=e[:, :end] if kind == "ratio" else None)
        for v, e, end in ((values, exposure, 100), (holed, holed_exposure, 100 + n_gaps))
    )
    for name in ("noise", "n_seen", "slot_seen", "last", "streak", "peak", "misfit", "previous", "repeats"):
        np.testing.assert_array_equal(getattr(gone.state, name), getattr(plain.state, name), err_msg=name)
    whole = gone_through(holed, kind, exposure=holed_exposure if kind == "ratio" else None)
    assert np.isnan(whole["z"][:, 100 : 100 + n_gaps]).all()
    assert not np.isnan(whole.X[:, 100 + n_gaps :]).any()
    assert flagged(whole)[100:].max() < 0.15
    after = whole.expected[:, 100 + n_gaps :] / gone_through(values).expected[:, 100 + n_gaps :]
    if kind != "ratio":
        assert np.abs(after - 1.0).mean() < 0.04


def test_a_segment_begins_when_it_is_first_seen():
    values = ordinary(n_times=100)
    late = np.concatenate([np.full((N, 49), np.nan), values], axis=1)
    np.testing.assert_array_equal(gone_through(late).X[:, 49:], gone_through(values).X)


def test_one_day_in_five_missing_is_no_harm():
    values = ordinary(n_times=400)
    values[np.random.default_rng(9).random(values.shape) < 0.2] = np.nan
    gone = gone_through(values)
    assert np.isnan(gone["z"][:, 60:]).mean() == pytest.approx(0.2, abs=0.01)
    assert np.median(gone.state.noise) == pytest.approx(1.0, rel=0.1)
    assert np.nanmean(np.abs(gone["z"][:, 100:]) > 3) < 0.006


@pytest.mark.parametrize("value", [1.0, 2.0, 7.0, 39.0, 41.0, 1e6])
def test_a_constant_count_is_expected_exactly_and_one_step_is_in_order(value):
    values = np.full(200, value)
    values[180] += 1
    gone = gone_through(values)
    np.testing.assert_allclose(gone.expected[0, 1:181], value, rtol=1e-12)
    # A count that is its own mean lies a little above its median.
    assert np.abs(gone.X[0, 28:180]).max() < 0.45
    if value <= 1000:
        assert gone["z"][0, 180] < 3


@pytest.mark.parametrize("value", [0.0, -3.5, 7.25, 1e6])
def test_a_constant_value_of_any_sign_is_expected_exactly(value):
    gone = gone_through(np.full(200, value), "value")
    np.testing.assert_allclose(gone.expected[0, 1:], value, rtol=1e-12, atol=0)
    assert np.abs(gone.X[0, 28:]).max() == 0


def test_nothing_ever_is_expected_of_what_never_was():
    gone = gone_through(np.zeros((1, 300)))
    assert gone.expected[0, 1:].max() < 0.01
    assert np.abs(gone.X[0, 28:]).max() < 0.1


def test_hours_of_a_week_are_learned_and_a_shift_of_a_day_becomes_normal():
    day = 1.0 + 0.5 * np.sin(np.arange(24) * 2.0 * np.pi / 24.0)
    profile = np.concatenate([day * (1.0 if d < 5 else 0.6) for d in range(7)])
    profile /= profile.mean()
    hours, change = 168 * 7, 1000
    mean = weekly(hours, 200.0, profile)
    values = counts(np.random.default_rng(0), np.tile(mean, (20, 1)))
    gone = gone_through(values, grain="hour")
    assert np.abs(gone.expected[:, -168:] / mean[-168:] - 1.0).mean() < 0.07
    assert np.isnan(gone["z"][:, :336]).all() and not np.isnan(gone["z"][:, 336:]).any()
    assert flagged(gone)[336:].mean() < 0.006
    values[:, change:] = np.rint(values[:, change:] / 2)
    share = flagged(gone_through(values, grain="hour", adapt_after=24))
    assert share[change : change + 20].mean() > 0.6
    assert share[change + 26 :].mean() < 0.01


def test_an_exposure_that_changes_does_not_move_the_level_of_a_ratio():
    rng = np.random.default_rng(0)
    exposure = rng.integers(200, 5000, (N, DAYS)).astype(float)
    exposure[:, CHANGE:] = np.rint(exposure[:, CHANGE:] * rng.choice([0.2, 10.0], (N, 1)))
    gone = gone_through(rng.binomial(exposure.astype(int), 0.05).astype(float), "ratio", exposure=exposure)
    np.testing.assert_allclose(gone.expected[:, CHANGE - 1 :].mean(axis=0), 0.05, rtol=0.03)
    assert flagged(gone)[100:].mean() < 0.01
    half = rng.binomial(exposure.astype(int), np.where(np.arange(DAYS) < CHANGE, 0.05, 0.025)).astype(float)
    assert np.abs(gone_through(half, "ratio", exposure=exposure)["z"][:, CHANGE]).mean() > 2


def test_the_same_share_of_more_is_surer():
    exposure = np.tile(np.where(np.arange(DAYS) < DAYS - 1, 1000.0, [[200.0], [5000.0]]), 1)
    values = np.random.default_rng(0).binomial(1000, 0.05, (2, DAYS)) * exposure / 1000.0
    values[:, -1] = 0.08 * exposure[:, -1]
    few, many = gone_through(values, "ratio", exposure=exposure)["z"][:, -1]
    assert 0 < few < many


def test_values_of_any_sign_are_learned_whatever_they_are_counted_from():
    levels = np.array([-100.0, 0.0, 5.0, 100.0, 3000.0])[:, None, None]
    values = levels + np.random.default_rng(0).normal(0.0, 3.0, (5, 100, DAYS))

    def by_level(values):
        gone = gone_through(values.reshape(-1, DAYS), "value")
        return (of_rows.reshape(5, 100, DAYS) for of_rows in (gone.expected, gone["z"]))

    expected, z = by_level(values)
    np.testing.assert_allclose(expected[..., -50:].mean(axis=(1, 2)), levels[:, 0, 0], atol=0.5)
    for since in (28, 84, 180):
        np.testing.assert_allclose(z[..., since : since + 56].std(axis=(1, 2)), 1.0, atol=0.12)
    values[..., CHANGE:] += 15.0
    shifted = np.median(list(by_level(values))[1], axis=1)
    assert shifted[:, CHANGE].min() > 2.5
    assert shifted[:, CHANGE + 14 :].max() < 1


@given(st.sampled_from([2.0**k for k in range(-20, 21, 8)]))
@settings(max_examples=4, deadline=None)
def test_features_of_values_do_not_depend_on_their_unit_nor_on_their_sign(unit):
    values = np.random.default_rng(0).normal(1.0, 3.0, (5, 120))
    gone, scaled, mirrored = (gone_through(values * factor, "value") for factor in (1.0, unit, -unit))
    np.testing.assert_array_equal(scaled.X, gone.X)
    np.testing.assert_array_equal(mirrored["z"], -gone["z"])
    np.testing.assert_array_equal(mirrored["flat"], gone["flat"])
    np.testing.assert_allclose(scaled.expected, gone.expected * unit, rtol=1e-12)


@pytest.mark.parametrize(("kind", "level"), [("count", 30.0), ("count", 3000.0), ("value", 30.0)])
def test_a_run_of_equal_values_is_flat(kind, level):
    values = ordinary(level)
    if kind == "value":
        values = values + np.random.default_rng(0).random(values.shape)
    values[:, CHANGE : CHANGE + 5] = values[:, CHANGE : CHANGE + 1]
    flat = gone_through(values, kind)["flat"]
    assert flat[:, 28:CHANGE].mean() < 0.1
    assert np.all(np.diff(np.median(flat[:, CHANGE : CHANGE + 5], axis=0)) > 0)
    assert np.median(flat[:, CHANGE + 4]) > 3.5
    assert np.median(flat[:, CHANGE + 5 :], axis=0).max() == 0


@pytest.mark.parametrize("kind", ["count", "value"])
def test_where_repeats_are_usual_a_run_is_not_flat(kind):
    rng = np.random.default_rng(0)
    values = np.rint(rng.normal(1000.0, 100.0, (N, 420)))
    stays = rng.random(values.shape) < 0.8
    stays[:, 400:] = True
    for day in range(1, 420):
        values[stays[:, day], day] = values[stays[:, day], day - 1]
    flat = gone_through(values, kind)["flat"]
    assert (flat[:, 300:] > 3).mean() < 0.001


def test_few_counts_are_zero_for_a_week_and_it_is_not_flat():
    values = np.random.default_rng(0).poisson(0.5, (N, 300)).astype(float)
    values[:, 290:] = 0.0
    assert gone_through(values)["flat"][:, 290:297].max() < 3


def test_a_run_that_goes_on_is_said_no_more():
    values = ordinary()
    values[:, 175:205] = values[:, 175:176]
    gone = gone_through(values)
    assert gone["flat"][:, 191:].max() < 3
    assert np.median(gone["flat"][:, 178:181]) > 3


def columns_of(features, n, rng):
    """A Baseline with numbers of any size in it."""
    state = Baseline.fresh(np.ones(n), features)
    for f in fields(state):
        array = getattr(state, f.name)
        array[...] = rng.normal(size=array.shape) * 10.0 ** rng.integers(-300, 300, array.shape)
        array[rng.random(array.shape) < 0.2] = np.nan
    return state


@pytest.mark.parametrize("grain", ["day", "hour"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_state_comes_back_from_arrow_to_the_last_bit(tmp_path, grain, n):
    state = columns_of(FeatureSet(grain, "count"), n, np.random.default_rng(0))
    table = pa.table({"other": pa.array(["x"] * n, pa.string()), **state.columns()})
    with pa.ipc.new_file(str(tmp_path / "it.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=2)
    with pa.memory_map(str(tmp_path / "it.arrow")) as source:
        back = Baseline.from_table(pa.ipc.open_file(source).read_all())
    for f in fields(state):
        np.testing.assert_array_equal(
            getattr(back, f.name).view(np.int64), getattr(state, f.name).view(np.int64), err_msg=f.name
        )
        assert getattr(back, f.name).flags.writeable


def test_states_are_taken_apart_and_joined():
    state = columns_of(FeatureSet("day", "count"), 5, np.random.default_rng(0))
    again = state.take(slice(0, 2)).joined(state.take(np.array([2, 3, 4])))
    assert len(again) == len(state) == 5
    for f in fields(state):
        np.testing.assert_array_equal(getattr(again, f.name), getattr(state, f.name))
