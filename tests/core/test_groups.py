import itertools

import numpy as np
import pytest

from segwatch.core.groups import LEAST_MEMBERS, TOTAL, Groups, GroupScales
from segwatch.core.panel import Segments

COUNTRIES, PLATFORMS, CHANNELS = ("de", "es", "fr", "it"), ("app", "ios", "web"), ("ads", "mail", "seo")
NAMES = tuple(itertools.product(COUNTRIES, PLATFORMS, CHANNELS))
GROUPS = Groups.of(Segments(("country", "platform", "channel"), NAMES))
SD = np.random.default_rng(5).uniform(0.05, 0.3, len(NAMES))
TRIALS = 200


def where(dimension, value):
    return np.array([values[dimension] == value for values in NAMES])


def effects(shock, n_missing=0):
    """(TRIALS, n_groups) effects of a shock (n_segments,) amid noise."""
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(TRIALS, len(NAMES))) * SD + shock
    residuals[:, rng.permutation(len(NAMES))[:n_missing]] = np.nan
    return np.array([GROUPS.effects(one, SD) for one in residuals])


def place(*key):
    return GROUPS.keys.index(key)


@pytest.mark.parametrize("n_missing", [0, 9])
def test_the_shock_of_one_country_is_found_and_does_not_leak(n_missing):
    found = effects(-0.5 * where(0, "it"), n_missing)
    it = place(0, "it")
    assert found[:, it].mean() == pytest.approx(-0.5, abs=0.05)
    assert found[:, it].max() < -0.3
    others = np.delete(found, it, axis=1)
    assert np.abs(others).mean(axis=0).max() < 0.005
    assert np.abs(others).max() < 0.15


def test_shocks_of_two_dimensions_are_told_apart():
    found = effects(0.3 * where(1, "web") - 0.5 * where(0, "it"))
    assert found[:, place(1, "web")].mean() == pytest.approx(0.3, abs=0.05)
    assert found[:, place(0, "it")].mean() == pytest.approx(-0.5, abs=0.05)
    assert np.abs(np.delete(found, [place(1, "web"), place(0, "it")], axis=1)).mean(axis=0).max() < 0.005


def test_what_all_segments_share_is_the_totals_alone():
    found = effects(np.full(len(NAMES), 0.3))
    assert found[:, place(*TOTAL)].mean() == pytest.approx(0.3, abs=0.03)
    assert np.abs(found[:, 1:]).mean(axis=0).max() < 0.005


def test_a_quiet_day_gives_zeros():
    found = effects(np.zeros(len(NAMES)))
    assert (found == 0).mean() > 0.97
    assert np.abs(found).max() < 0.1


def test_a_segment_of_its_own_does_not_move_its_groups():
    shock = np.zeros(len(NAMES))
    shock[7] = -3.0
    assert np.abs(effects(shock)).mean() < 0.005


def test_a_value_that_fewer_than_four_segments_have_is_no_group():
    names = (
        [("it", f"p{i}") for i in range(4)] + [("fr", f"p{i}") for i in range(4)] + [("de", f"p{i}") for i in range(3)]
    )
    groups = Groups.of(Segments(("country", "platform"), tuple(names)))
    assert LEAST_MEMBERS == 4
    assert groups.keys == (TOTAL, (0, "fr"), (0, "it"))
    assert groups.members[1].tolist() == [2] * 4 + [1] * 4 + [-1] * 3
    assert (groups.members[2] == -1).all()


def test_the_only_large_value_of_a_dimension_is_no_group_beside_the_total():
    names = [("it", str(i)) for i in range(9)] + [("fr", "0")]
    assert Groups.of(Segments(("country", "platform"), tuple(names))).keys == (TOTAL,)


def test_three_segments_share_nothing():
    groups = Groups.of(Segments(("name",), (("a",), ("b",), ("c",))))
    assert groups.effects(np.full(3, -5.0), np.full(3, 0.1)).tolist() == [0.0]
    assert GROUPS.effects(np.full(len(NAMES), np.nan), SD).tolist() == [0.0] * len(GROUPS.keys)


def test_rollups_are_in_no_group():
    rollups = ((None, None, None), ("it", None, None), (None, "web", None))
    groups = Groups.of(Segments(("country", "platform", "channel"), (*NAMES, *rollups)))
    assert groups.keys == GROUPS.keys
    assert (groups.members[:, len(NAMES) :] == -1).all()
    np.testing.assert_array_equal(groups.members[:, : len(NAMES)], GROUPS.members)
    alone = np.append(np.zeros(len(NAMES)), [-9.0] * 3)
    assert not groups.effects(alone, np.full(len(alone), 0.1)).any()


def test_a_part_of_the_segments_keeps_all_groups():
    part = GROUPS.take(np.array([30, 2]))
    assert part.keys == GROUPS.keys
    spread = part.spread(np.arange(len(GROUPS.keys), dtype=float))
    np.testing.assert_array_equal(spread, GROUPS.spread(np.arange(len(GROUPS.keys), dtype=float))[:, [30, 2]])
    few = Groups.of(Segments(("name",), (("a",), ("b",))))
    assert few.spread(np.array([3.0])).tolist() == [[3.0, 3.0], [0.0, 0.0]]


def test_what_a_group_usually_does_is_known_after_it_moved_a_few_times():
    rng, scales = np.random.default_rng(0), GroupScales.fresh(3)
    assert scales.z(np.array([9.0, 9.0, 9.0])).tolist() == [0.0, 0.0, 0.0]
    for _ in range(4):
        scales.update(rng.normal(0.0, [0.1, 1.0, 0.0]))
    assert not scales.z(np.ones(3)).any()
    for _ in range(400):
        scales.update(rng.normal(0.0, [0.1, 1.0, 0.0]))
    np.testing.assert_allclose(scales.scale[:2], [0.1, 1.0], rtol=0.25)
    np.testing.assert_allclose(scales.z(np.array([0.5, -2.0, 1.0])), [5.0, -2.0, 0.0], rtol=0.3)


def test_one_shock_does_not_make_its_group_one_of_shocks():
    rng, scales = np.random.default_rng(0), GroupScales.fresh(1)
    for _ in range(100):
        scales.update(rng.normal(0.0, 0.1, 1))
    before = scales.scale[0]
    scales.update(np.array([-5.0]))
    assert scales.scale[0] < 1.1 * before
    assert scales.z(np.array([-5.0]))[0] < -20
