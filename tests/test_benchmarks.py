import numpy as np
import peers
import pytest
import quality
import quality_data
import quality_kinds
import quality_metrics as metrics
import quality_together
from quality_data import NOT_JUDGED, ORDINARY, Case

from segwatch.core.bundle import write_bundle
from segwatch.core.decision import decide
from segwatch.core.panel import Panel
from segwatch.core.training import Prepared, Rows, fit_prepared
from segwatch.settings import Metric
from segwatch.steps import rules

NAN = float("nan")
# Two segments, eight periods: event 0 lasts periods 2 to 4 of the first, event 1 is period 5 of the second.
EVENTS = np.array([[-1, -1, 0, 0, 0, -1, -1, -2], [-1, -1, -1, -1, -1, 1, -1, -1]])
SCORES = np.array([[0.0, 0.1, 0.2, 0.9, 0.3, 0.5, 0.0, 9.0], [0.0, 0.1, 0.2, 0.1, 0.0, 0.8, 0.0, NAN]])


def hand_made():
    window = quality_data.Window(np.datetime64("2026-01-01"), np.datetime64("2026-01-09"))
    panel = quality_data._complete([("a",), ("b",)], ("name",), window, np.ones((2, 8)))
    return Case("hand-made", panel, EVENTS, ("drop", "country_outage"))


def test_what_is_not_judged_counts_nowhere_and_a_missing_score_is_the_lowest():
    case = hand_made()
    ranked = metrics.filled(SCORES)
    assert ranked[1, 7] < 0.0
    assert metrics.threshold(ranked, EVENTS, case.judged, 0) == 0.5
    assert metrics.threshold(ranked, EVENTS, case.judged, 100) == 0.2
    flags = ranked > 0.2
    assert metrics.false_alerts(flags, EVENTS, case.judged) == pytest.approx(1000 / 11)
    assert not metrics.false_alerts(ranked > 0.5, EVENTS, case.judged)


def test_average_precision_recall_and_delay_are_right_on_a_case_made_by_hand():
    case = hand_made()
    ranked = metrics.filled(SCORES)
    # The four event cells rank 1, 2, 4 and, of two equal ones at .2 one ordinary, together at 6 with 5 found.
    assert metrics.average_precision(ranked, EVENTS, case.judged) == pytest.approx((1 + 1 + 3 / 4 + 4 / 6) / 4)
    flags = ranked > 0.8
    assert metrics.recall(flags, EVENTS, case.judged) == 0.5
    assert metrics.recall_half(flags, EVENTS, case.judged) == 0.0
    assert metrics.recall_half(ranked > 0.25, EVENTS, case.judged) == 1.0
    assert metrics.delays_of(flags, EVENTS, case.judged).tolist() == [1.0]
    assert metrics.found_by_kind(case, flags) == {"drop": (1, 1), "country_outage": (0, 1)}


def test_segment_and_parent_events_are_counted_apart():
    case = hand_made()
    assert metrics.found_by_kind(case.without(case.is_parent), SCORES > 0.7) == {"drop": (1, 1)}
    result = quality.judge(case, "method", peers.Scored(SCORES, SCORES > 0.85, 2.0))
    assert (result.segment["own_recall"], result.parent["own_recall"]) == (1.0, 0.0)
    assert (result.values["own_recall"], result.values["promised"]) == (0.5, 2.0)


def test_the_longest_run_is_of_one_segment():
    flags = np.array([[1, 1, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0]], dtype=bool)
    assert metrics.longest_run(flags) == 3


def spiked():
    """Poisson counts of three segments, the last period of the second ten times what it should be."""
    window = quality_data.Window(np.datetime64("2025-01-01"), np.datetime64("2025-11-27"))
    mean = np.array([[100.0], [200.0], [300.0]]) * np.resize([1.0, 1.0, 1.1, 1.1, 1.2, 0.8, 0.7], len(window))
    values = np.random.default_rng(0).poisson(mean).astype(float)
    values[1, -1] = 10.0 * mean[1, -1]
    events = np.full((3, 60), ORDINARY)
    events[1, -1] = 0
    panel = quality_data._complete([("a",), ("b",), ("c",)], ("name",), window, values)
    truth = quality_data.Truth(mean[:, -60:], np.zeros((3, 1)))
    return Case("spiked", panel, events, ("spike",), truth)


INSTALLED = [method for method in peers.METHODS if method.is_installed]
# These know only the order of each feature's values: what is far out is to them no further than the training's largest,
# so that a row with several large features can pass it.
BY_ORDER = {"Isolation Forest": 3, "ECOD": 3}


@pytest.mark.parametrize("method", INSTALLED, ids=lambda method: method.name)
def test_every_method_ranks_an_obvious_spike_first(method):
    case = spiked()
    scored = method.score(case)
    assert scored.scores.shape == scored.flags.shape == case.events.shape
    assert np.isfinite(scored.scores).all()
    rank = 1 + np.count_nonzero(scored.scores > scored.scores[1, -1])
    assert rank <= BY_ORDER.get(method.name, 1), rank
    assert scored.flags[1, -1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: quality_data.generated(9, seed=1, days=200),
        lambda: quality_data.near_constant(8, days=200),
        lambda: quality_data.sparse_totals(2, segments=20, days=200),
        lambda: quality_data.hourly(6, days=30, scored_days=7),
        lambda: quality_kinds.conversions(8, days=200),
        lambda: quality_kinds.balances(8, days=200),
    ],
    ids=["generator", "near-constant", "sparse totals", "hourly", "conversion rates", "balances"],
)
def test_a_data_set_is_the_same_each_time_and_its_events_can_be_seen(make):
    case, again = make(), make()
    np.testing.assert_array_equal(case.panel.values, again.panel.values)
    np.testing.assert_array_equal(case.events, again.events)
    assert set(np.unique(case.events)) - {ORDINARY, NOT_JUDGED} <= set(range(len(case.kinds)))
    assert (case.judged & (case.events >= 0)).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: quality_data.near_constant(16, days=200),
        lambda: quality_data.sparse_totals(2),
        lambda: quality_kinds.conversions(20, days=200),
        lambda: quality_kinds.balances(20, days=200),
    ],
)
def test_the_events_lie_where_the_values_changed(make):
    """An event's cells differ more from the same weekdays before than its segment's other cells do."""
    case = make()
    values, first = case.values, case.values.shape[1] - case.scored
    usual = np.median([values[:, first - 7 * k : first - 7 * k + 7] for k in range(2, 9)], axis=0)
    off = np.abs(values[:, first:] - np.resize(usual.T, (case.scored, len(values))).T)
    for number, kind in enumerate(case.kinds):
        if kind == "flat_line":
            continue
        row, columns = np.nonzero(case.events == number)
        assert off[row, columns].mean() > 1.25 * off[row[0], case.events[row[0]] == ORDINARY][:20].mean(), number


def test_the_truth_of_the_generator_is_what_made_its_counts():
    case = quality_data.generated(60, seed=1, days=120)
    ordinary = case.judged & (case.events == ORDINARY)
    values = case.panel.values[:, -case.scored :]
    assert values[ordinary].sum() / np.broadcast_to(case.truth.mean, values.shape)[ordinary].sum() == pytest.approx(
        1.0, abs=0.03
    )
    p_values = peers.oracle(case).p_values[ordinary]
    assert 0.03 < (p_values <= 0.05).mean() < 0.06


def until(panel, scored):
    """The Panel as it was before the scored periods."""
    window = quality_data.Window(panel.window.start, panel.window.times[-scored], panel.window.grain)
    return Panel(panel.history, window, panel.values[:, :-scored].copy())


def test_scores_and_flags_of_segwatch_are_those_that_the_product_decides(tmp_path):
    case = quality_data.generated(12, seed=1, days=400, with_truth=False)
    learned = until(case.panel, case.scored)
    defaults = Metric(table="t", time="ts", value="n", dimensions=quality_data.DIMENSIONS)
    before = Prepared.of(learned, defaults.recursion)
    bundle = write_bundle(
        tmp_path / "bundle", "new_users", before, rules(defaults), fit_prepared(before, defaults.min_history)
    )
    scored = peers.segwatch(case)
    i, t = np.nonzero(~np.isnan(scored.scores))
    later = Rows.of(Prepared.of(case.panel, defaults.recursion), case.scored)
    ids = [case.panel.segments.ids[k] for k in i]
    decisions = decide(bundle, ids, t, later.values[i, t], later.contexts[i, t], later.X[i, t])
    np.testing.assert_allclose(-np.log(decisions.p_value), scored.scores[i, t], rtol=1e-6)
    np.testing.assert_array_equal(decisions.is_anomaly, scored.flags[i, t])
    assert len(i) > 500 and scored.flags.any()


def test_what_was_learned_does_not_depend_on_what_is_scored():
    case = spiked()
    other = spiked()
    other.panel.values[:, -case.scored :] = 7.0
    (rows, before), (_, same) = (peers.rows_of(one, one.panel) for one in (case, other))
    assert rows.values.shape[1] == before.values.shape[1] + case.scored
    np.testing.assert_array_equal(before.X, same.X)


def test_the_tables_hold_each_method_and_say_nothing_where_nothing_is_known():
    case = hand_made()
    results = [quality.judge(case, name, peers.Scored(SCORES, SCORES > 0.8), seed=1) for name in ("one", "other")]
    first = quality.tables(results)[0].splitlines()
    assert [line.split(" | ")[0] for line in first[-2:]] == ["| one", "| other"]
    assert first[-1].endswith("| - |")


def test_the_svm_finds_rows_whose_features_deviate_together_and_hardly_loses_one_that_one_shows():
    found = quality_together.found_together(quality_data.generated(40, seed=1, days=500, with_truth=False))
    assert min(found["1 of 4.5"]) > 0.95
    svm, largest = found["3 of 3"]
    assert svm > 0.9 and largest < 0.1
