import numpy as np
import pytest

from segwatch.core.injection import INJECTIONS, Injection, as_metrics, by_size, inject

from .test_evaluation import HOLDOUT, RULES, prepared


@pytest.fixture(scope="module")
def found():
    return list(inject(prepared(), RULES, HOLDOUT))


def test_each_event_is_injected_once_a_week_and_large_ones_are_found_at_once(found):
    assert len(found) == 12
    for one in found:
        assert {len(delays) for delays in one.delays.values()} == {4}
        assert one.delays[Injection("zero_out", 1.0)] == [0, 0, 0, 0]
        assert one.n_rows == HOLDOUT


def test_larger_changes_are_found_more_often_and_earlier(found):
    (whole,) = by_size([one for one in found if 100 <= one.size < 1000])
    for kind in ("drop", "rise", "level_down", "drift_down"):
        recalls = [whole.recalls[one] for one in INJECTIONS if one.kind == kind]
        assert recalls == sorted(recalls)
    drifts = [whole.delays[Injection("drift_down", size)] for size in (0.2, 0.4, 0.6)]
    assert drifts == sorted(drifts, reverse=True)


def test_the_smallest_drop_is_where_found_and_missed_part(found):
    calm, wild = found, list(inject(prepared(noise=0.2), RULES, HOLDOUT))
    for one in calm:
        assert 0.08 < one.smallest_drop < 0.35
        assert 0.08 < one.smallest_rise < 0.5
    assert np.nanmedian([one.smallest_drop for one in wild]) > 2 * np.median([one.smallest_drop for one in calm])


def test_every_kind_changes_what_it_says():
    values = np.array([10.0, 20.0, 30.0, 40.0])
    assert Injection("drop", 0.4).apply(values).tolist() == [6, 12, 18, 24]
    assert Injection("drift_down", 0.4).apply(values).tolist() == [9, 16, 21, 24]
    assert Injection("flat_line", 1.0).apply(values).tolist() == [10, 10, 10, 10]


def test_what_is_registered_is_what_was_found_by_size(found):
    metrics, sizes = as_metrics(found), by_size(found)
    names = [f"{one.low:.0f}_to_{one.high:.0f}" for one in sizes]
    for name, one in zip(names, sizes, strict=True):
        assert metrics[f"found_{name}_drop_40"] == one.recalls[Injection("drop", 0.4)]
        assert metrics[f"found_{name}_zero_out"] == 1.0
        assert metrics[f"smallest_drop_{name}"] == one.smallest_drop
