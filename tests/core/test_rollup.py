import itertools

import numpy as np
import pytest

from segwatch.core.rollup import Rollups, with_rollups

from .simulated import panel_of

NAN = np.nan
NAMES = tuple(itertools.product(("de", "it"), ("app", "web")))
DIMENSIONS = ("country", "platform")
TOTAL, IT, WEB = (None, None), ("it", None), (None, "web")


def panel(values=((1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0)), names=NAMES, dimensions=DIMENSIONS, exposure=None):
    return panel_of(values, names, dimensions, exposure)


def filled(panel, expected=0.0):
    """The Panel's values, its roll-ups filled with that much expected of every segment."""
    rollups = Rollups.of(panel)
    for column in range(panel.values.shape[1]):
        values = panel.values[:, column].copy()
        rollups.fill(values, np.full(len(values), expected))
        panel.values[:, column] = values
    return panel


def row(panel, values):
    return panel.values[panel.segments.values.index(values)]


def test_the_total_and_each_value_of_a_dimension_are_summed():
    whole = filled(with_rollups(panel(), 1))
    assert whole.segments.values[:4] == NAMES
    assert set(whole.segments.values[4:]) == {TOTAL, ("de", None), IT, (None, "app"), WEB}
    assert row(whole, TOTAL).tolist() == [16, 20]
    assert row(whole, IT).tolist() == [12, 14]
    assert row(whole, WEB).tolist() == [10, 12]
    assert whole.segments.levels[4] == "total" and whole.segments.labels[4] == "total"


@pytest.mark.parametrize(("order", "n"), [(-1, 0), (0, 1), (1, 5), (2, 5)])
def test_so_many_dimensions_are_kept_and_never_all(order, n):
    assert with_rollups(panel(), order).segments.is_rollup.sum() == n


def test_pairs_of_three_dimensions_are_summed_where_they_are_asked_for():
    names = tuple(itertools.product("ab", "cd", "ef"))
    whole = with_rollups(panel(np.ones((8, 2)), names, ("x", "y", "z")), 2)
    assert sum(v.count(None) == 1 for v in whole.segments.values) == 12


def test_a_rollup_of_one_segment_or_of_the_segments_of_another_is_left_out():
    whole = with_rollups(panel(np.ones((3, 2)), (("it", "app"), ("it", "web"), ("it", "tv"))), 1)
    assert whole.segments.values[3:] == (TOTAL,)


def test_what_did_not_arrive_is_made_up_for_by_what_was_expected():
    whole = with_rollups(panel([[4.0], [NAN], [5.0], [6.0]]), 1)
    assert row(filled(whole, 3.0), TOTAL).tolist() == [18]
    assert row(whole, ("de", None)).tolist() == [7]
    assert row(whole, IT).tolist() == [11]


def test_a_sum_of_which_most_is_missing_is_none():
    whole = filled(with_rollups(panel([[1.0], [NAN], [NAN], [NAN]]), 1), 3.0)
    assert np.isnan([row(whole, one)[0] for one in (TOTAL, ("de", None), IT, WEB)]).all()


def test_a_segment_of_which_nothing_is_expected_yet_is_not_missed():
    whole = filled(with_rollups(panel([[4.0], [5.0], [6.0], [NAN]]), 1), NAN)
    assert row(whole, TOTAL).tolist() == [15]
    assert row(whole, IT).tolist() == [6]


def test_a_rollup_lives_from_its_first_segments_first_row_to_the_last_ones_last():
    whole = with_rollups(panel([[NAN, 1.0, NAN, NAN], [NAN, NAN, 1.0, NAN], [1.0] * 4, [1.0] * 4]), 1)
    at = whole.segments.values.index(("de", None))
    times = whole.window.times
    assert (whole.history.first_seen[at], whole.history.last_seen[at]) == (times[1], times[2])


def test_rollups_of_ratios_are_the_sums_of_both_and_ready_at_once():
    exposure = np.array([[10.0, 10.0], [20.0, NAN], [30.0, NAN], [40.0, NAN]])
    values = np.array([[1.0, 2.0], [3.0, NAN], [5.0, NAN], [7.0, NAN]])
    whole = with_rollups(panel(values, exposure=exposure), 1)
    assert Rollups.of(whole).is_filled
    assert row(whole, TOTAL).tolist() == [16, 2]
    assert whole.exposure[whole.segments.values.index(TOTAL)].tolist() == [100, 10]
    at = whole.segments.values.index(IT)
    np.testing.assert_array_equal([whole.values[at, 1], whole.exposure[at, 1]], [NAN, NAN])


def test_known_rollups_keep_their_places_before_new_ones():
    before = with_rollups(panel(np.ones((2, 2)), (("de", "app"), ("it", "app"))), 1)
    assert before.segments.values == (("de", "app"), ("it", "app"), TOTAL)
    leaves = panel(np.ones((4, 2)), (("de", "app"), ("it", "app"), ("de", "web"), ("it", "web")))
    later = with_rollups(leaves, 1, before.history)
    assert later.segments.values[:3] == before.segments.values
    assert set(later.segments.values[3:]) == {("de", "web"), ("it", "web"), ("de", None), IT, (None, "app"), WEB}
    assert row(filled(later), TOTAL).tolist() == [4, 4]


def test_a_known_rollup_stays_where_it_would_not_be_made_now():
    before = with_rollups(panel(), 1)
    later = with_rollups(panel(), 0, before.history)
    assert later.segments == before.segments


def test_a_panel_without_rollups_has_none():
    assert Rollups.of(panel()) is None


def test_a_rollup_expects_what_its_segments_expect_together():
    whole = with_rollups(panel(), 1)
    effects, expected = np.zeros(len(whole.segments)), np.full(len(whole.segments), np.nan)
    expected[:4], effects[:2] = [10.0, 30.0, 60.0, np.nan], np.log(0.5)
    Rollups.of(whole).combine(effects, expected)
    of = dict(zip(whole.segments.values, np.exp(effects), strict=True))
    assert of[TOTAL] == pytest.approx(80 / 100)
    assert of["de", None] == pytest.approx(0.5)
    assert of[IT] == 1.0
