import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segwatch.core.localisation import localise

SIZES = (6, 3, 4)
CODES = np.array(list(itertools.product(*map(range, SIZES)))).T


def counts(seed=0):
    rng = np.random.default_rng(seed)
    expected = rng.lognormal(7.0, 0.5, CODES.shape[1])
    return rng.poisson(expected).astype(float), expected


def inside(cell):
    return np.logical_and.reduce([CODES[d] == code for d, code in cell.items()])


@pytest.mark.parametrize("cell", [{1: 2}, {0: 4}, {0: 1, 1: 0}, {0: 3, 2: 1}])
@pytest.mark.parametrize(("factor", "direction"), [(0.3, 0), (3.0, 1)])
def test_a_set_of_values_whose_segments_all_changed_is_first(cell, factor, direction):
    for seed in range(5):
        actual, expected = counts(seed)
        actual[inside(cell)] = np.round(expected[inside(cell)] * factor)
        first = localise(CODES, actual, expected, direction=direction)[0]
        assert first.dimensions == cell and not first.also
        assert first.n_leaves == inside(cell).sum() and 0.5 < first.share < 1.5


@pytest.mark.parametrize("factor", [0.0, 8.0])
def test_a_segment_by_itself_is_first(factor):
    actual, expected = counts()
    actual[17] *= factor
    assert localise(CODES, actual, expected)[0].dimensions == dict(enumerate(CODES[:, 17]))


def test_two_values_of_a_dimension_that_broke_together_are_one_candidate():
    actual, expected = counts()
    broken = inside({0: 1}) | inside({0: 5})
    actual[broken] *= 0.2
    first = localise(CODES, actual, expected)[0]
    assert sorted([first.dimensions, *first.also], key=str) == [{0: 1}, {0: 5}]


def test_of_a_ratio_more_traffic_is_no_change():
    rng = np.random.default_rng(1)
    traffic = rng.integers(500, 5000, CODES.shape[1]).astype(float)
    traffic[inside({1: 0})] *= 6
    errors = rng.binomial(traffic.astype(int), 0.02).astype(float)
    errors[inside({2: 3})] = rng.binomial(traffic[inside({2: 3})].astype(int), 0.08)
    assert localise(CODES, errors, 0.02 * traffic, traffic)[0].dimensions == {2: 3}


def test_nothing_is_said_where_nothing_changed():
    _, expected = counts()
    assert localise(CODES, expected, expected) == []
    assert localise(CODES[:, :0], expected[:0], expected[:0]) == []
    assert localise(CODES, np.full(len(expected), np.nan), expected) == []
    assert localise(CODES, expected, np.zeros(len(expected))) == []
    with pytest.raises(ValueError, match="codes must be"):
        localise(CODES, expected[1:], expected)


@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 5.0, 1e9, -3.0, np.nan, np.inf])] * 2), min_size=72, max_size=72)
)
def test_whatever_the_numbers_the_candidates_are_in_order_and_hold_what_they_say(rows):
    actual, expected = np.array(rows).T
    with np.errstate(over="ignore", invalid="ignore"):
        found = localise(CODES, actual, expected)
    assert (np.diff([one.score for one in found]) < 1e-8).all()
    usable = np.isfinite(actual) & np.isfinite(expected)
    for one in found:
        held = np.logical_or.reduce([inside(cell) for cell in (one.dimensions, *one.also)]) & usable
        assert one.n_leaves == held.sum() > 0
