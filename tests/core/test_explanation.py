import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segwatch.core.baseline import Recursion
from segwatch.core.bundle import Rules, write_bundle
from segwatch.core.explanation import (
    Detectable,
    Explanation,
    Part,
    Period,
    SimilarPeriod,
    from_json,
    incident_of,
    parts_of,
    step_down,
    to_json,
)
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.incidents import Incident
from segwatch.core.panel import Segments
from segwatch.core.training import Prepared, Rows, fit_prepared
from segwatch.core.words import changed, feature_words, number, rarity, sentences, shares, when

from .simulated import counts, panel_of, weekly

N_TIMES, SCORED = 300, 28
RECURSION, RULES = Recursion(FeatureSet("day", "count")), Rules(0.01, 0.1, 90)
DAY = np.datetime64("2026-11-20")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A bundle, the segments of rows, and the rows: ordinary ones, a spike, a shift and a run of equal values."""
    rng = np.random.default_rng(5)
    values = counts(rng, np.outer([4.0, 40.0, 600.0, 9000.0], weekly(N_TIMES, 1.0)))
    prepared = Prepared.of(panel_of(values[:, :-SCORED].copy()), RECURSION)
    fitted = fit_prepared(prepared, RULES.min_history)
    bundle = write_bundle(tmp_path_factory.mktemp("bundle") / "it", "m", prepared, RULES, fitted)
    values[1, -20], values[2, -15:-7], values[3, -9:] = 400.0, np.rint(0.7 * values[2, -15:-7]), values[3, -9]
    rows = Rows.of(Prepared.of(panel_of(values), RECURSION), SCORED)
    i, t = np.nonzero(rows.is_complete)
    return bundle, [prepared.panel.segments.ids[k] for k in i], rows.X[i, t]


def test_the_score_falls_by_the_stated_part_when_the_top_feature_is_reset(scored):
    bundle, ids, X = scored
    parts, before, typical = parts_of(bundle, ids, X), bundle.score(ids, X)[0], bundle.typical(ids)
    reset = X.copy()
    for row, (top, *_) in enumerate(parts):
        reset[row, FEATURES.index(top.feature)] = typical[row, FEATURES.index(top.feature)]
    np.testing.assert_allclose(before - bundle.score(ids, reset)[0], [top.part for top, *_ in parts], atol=1e-9)
    assert max(top.part for top, *_ in parts) > 1


def test_no_other_feature_by_itself_takes_more_away_than_the_top_one(scored):
    bundle, ids, X = scored
    before, typical = bundle.score(ids, X)[0], bundle.typical(ids)
    falls = []
    for k in range(X.shape[1]):
        reset = X.copy()
        reset[:, k] = typical[:, k]
        falls.append(before - bundle.score(ids, reset)[0])
    tops = [top.part for top, *_ in parts_of(bundle, ids, X)]
    np.testing.assert_allclose(tops, np.max(falls, axis=0), atol=1e-9)


def test_parts_add_up_to_the_score_less_that_of_the_typical_row(scored):
    bundle, ids, X = scored
    sums = [sum(one.part for one in parts) for parts in parts_of(bundle, ids, X)]
    typical = bundle.score(ids, bundle.typical(ids))[0]
    np.testing.assert_allclose(sums, bundle.score(ids, X)[0] - typical, atol=1e-9)


def test_every_feature_has_one_part_with_its_value(scored):
    bundle, ids, X = scored
    for row, parts in enumerate(parts_of(bundle, ids, X)):
        assert sorted(one.feature for one in parts) == sorted(FEATURES)
        assert all(one.value == X[row, FEATURES.index(one.feature)] for one in parts)


def test_many_rows_at_once_are_taken_apart_as_one_at_a_time(scored):
    bundle, ids, X = scored
    together = parts_of(bundle, ids, X)
    for row in range(0, len(ids), 7):
        [alone] = parts_of(bundle, [ids[row]], X[row : row + 1])
        assert [one.feature for one in alone] == [one.feature for one in together[row]]
        np.testing.assert_allclose([one.part for one in alone], [one.part for one in together[row]], atol=1e-9)


def test_a_lone_spike_is_put_down_to_the_value_and_a_run_of_equal_ones_to_the_run(scored):
    bundle, ids, X = scored
    tops = {id_: set() for id_ in ids}
    for id_, row, parts in zip(ids, X, parts_of(bundle, ids, X), strict=True):
        if np.abs(row).max() > 5:
            tops[id_].add(parts[0].feature)
    names = list(dict.fromkeys(ids))
    assert "z" in tops[names[1]] and "flat" in tops[names[3]]


def test_no_rows_have_no_parts(scored):
    bundle, _, X = scored
    assert parts_of(bundle, [], X[:0]) == []


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_whatever_the_score_the_parts_are_what_resets_in_their_order_take_away(n, d, seed):
    rng = np.random.default_rng(seed)
    X, typical, weights = rng.normal(size=(n, d)), rng.normal(size=(n, d)), rng.normal(size=(d, d))

    def score(rows):
        return np.sin(rows @ weights).sum(axis=1) + (rows**2).sum(axis=1)

    found = step_down(score, X, typical)
    now = X.copy()
    for turn in range(d):
        before = score(now)
        now[np.arange(n), found.features[:, turn]] = typical[np.arange(n), found.features[:, turn]]
        np.testing.assert_allclose(before - score(now), found.parts[:, turn], atol=1e-9)
    np.testing.assert_array_equal(now, typical)


def test_parts_are_kept_as_json_and_read_back():
    parts = (Part("z", -7.25, 3.5), Part("flat", 0.0, -1e-9))
    assert to_json(parts) == '[["z",-7.25,3.5],["flat",0.0,-0.0]]'
    assert from_json(to_json(parts)) == (parts[0], Part("flat", 0.0, 0.0))
    assert from_json(None) == ()


DIMENSIONS = ("country", "platform", "channel")
LEAVES = tuple(itertools.product(("de", "es", "fr", "it"), ("app", "ios", "web"), ("free", "paid")))
ROLLUPS = ((None, None, None), ("it", None, None), (None, "ios", None), (None, None, "paid"), ("de", None, None))
SEGMENTS = Segments(DIMENSIONS, LEAVES + ROLLUPS)
AT = {values: place for place, values in enumerate(SEGMENTS.values)}


def period(broken, unscored=()):
    """A day on which the rows in `broken` fell to a tenth, alerting."""
    n = len(SEGMENTS)
    value, p_value = np.full(n, 100.0), np.full(n, 0.6)
    for values in broken:
        rows = [AT[values]]
        value[rows], p_value[rows] = 10.0, 1e-6
    for values in unscored:
        p_value[AT[values]] = np.nan
    return Period(SEGMENTS, value, np.full(n, 100.0), value - 100.0, p_value, p_value < 0.01)


IOS = [leaf for leaf in LEAVES if leaf[1] == "ios"]
ONE = ("it", "ios", "paid")


def test_parents_are_the_rollups_that_hold_a_segment_the_total_last():
    parents = [row.values for row in period([]).parents(AT[ONE])]
    assert parents == [("it", None, None), (None, "ios", None), (None, None, "paid"), (None, None, None)]
    assert period([]).parents(AT[None, None, None]) == ()
    assert [row.values for row in period([]).parents(AT["de", None, None])] == [(None, None, None)]


def test_inside_a_rollup_are_the_rows_next_to_it_of_the_largest_impact():
    day = period([(None, "ios", None), ONE])
    assert day.inside(AT[None, None, None])[0].values == (None, "ios", None)
    assert len(day.inside(AT[None, None, None])) == 3
    assert day.inside(AT["it", None, None])[0].values == ONE
    assert day.inside(AT[ONE]) == ()


def test_siblings_differ_in_one_dimension_and_are_counted():
    day = period([*IOS, ("it", "web", "paid")], unscored=[("es", "ios", "paid")])
    country, platform, channel = day.siblings(AT[ONE])
    assert (country.values, country.n, country.n_fell, country.n_alerts) == ((None, "ios", "paid"), 2, 2, 2)
    assert (platform.values, platform.n, platform.n_fell) == (("it", None, "paid"), 2, 1)
    assert platform.largest[0].values == ("it", "web", "paid") and platform.largest[0].impact == -90
    assert (channel.n, channel.n_fell, channel.n_rose) == (1, 1, 0)
    [group] = day.siblings(AT["it", None, None])
    assert [row.values for row in group.largest] == [("de", None, None)]


@pytest.mark.parametrize(
    ("broken", "suspect"),
    [
        (IOS, (None, "ios", None)),
        ([ONE], ONE),
        ([leaf for leaf in LEAVES if leaf[0] == "it"], ("it", None, None)),
        ([leaf for leaf in LEAVES if leaf[1:] == ("ios", "paid")], (None, "ios", "paid")),
        (list(LEAVES), (None, None, None)),
        # One that fell besides is no sign that its platform or its country did.
        ([ONE, ("de", "ios", "paid")], ONE),
        # Both of its lines fell, but little of what they span.
        ([ONE, *((c, "ios", "paid") for c in ("de", "es", "fr")), ("it", "web", "paid")], (None, "ios", "paid")),
    ],
)
def test_what_moved_with_its_siblings_is_suspected_to_be_theirs(broken, suspect):
    assert period(broken).suspect(AT[ONE]) == suspect


def incident(values, direction="down", impact=-900.0, status="new"):
    return Incident(
        "id", DAY, DAY, DAY, status, direction, values, impact, 1000.0, 1.0, impact, 900.0, 8, ("a",), ("x",)
    )


def test_the_narrowest_incident_around_a_row_is_its_own():
    row = period(IOS).row(AT[ONE])
    total, ios, up = incident((None,) * 3), incident((None, "ios", None)), incident(ONE, "up", 9.0)
    assert incident_of(row, [total, ios, up]) is ios
    assert incident_of(row, [incident((None, "ios", None), status="resolved"), up]) is None
    assert incident_of(row, [incident((None, "web", None))]) is None


def test_a_sum_that_alerted_names_the_largest_incident_inside_it():
    row = period([(None, None, None)]).row(AT[None, None, None])
    small, large = incident(ONE, impact=-5.0), incident((None, "ios", None))
    assert incident_of(row, [small, large]) is large
    assert incident_of(dataclasses.replace(row, is_anomaly=False), [small, large]) is None


def explained(**changes):
    day = period([*IOS, (None, "ios", None)])
    row = dataclasses.replace(day.row(AT[ONE]), value=12.0, expected=310.0, impact=-298.0, p_value=1 / 1200)
    told = Explanation(
        metric="new_users", kind="count", grain="day", ts=DAY, row=row, status="ok", reason=None, verdict="flagged",
        n_rows=29, lower=250.0, upper=372.0, score=4.0, model_version="3",
        parts=(Part("z", -8.0, 7.1), Part("short", -4.0, 2.6), Part("long", -1.0, 0.3), Part("flat", 0.0, 0.0)),
        parents=day.parents(AT[ONE]), inside=(), siblings=day.siblings(AT[ONE]), incident=None,
        suspect=day.suspect(AT[ONE]),
        similar=(SimilarPeriod(DAY - 7, 301.0, 310.0, 0.2),), detectable=Detectable(0.18, np.nan, DAY - 3),
    )  # fmt: skip
    return dataclasses.replace(told, **changes)


def test_an_alert_in_words():
    assert sentences(explained()) == [
        "it/ios/paid had 12 new users on 2026-11-20 where 310 were expected (96 % fewer).",
        "It was flagged: as rare as one day in 1,200.",
        "Values from 250 to 372 would not have alerted.",
        "What sets it apart from a typical day: the value itself, lower than expected (71 %); the last 3 days"
        " together, lower than expected (26 %).",
        "The most similar normal days: 2026-11-13 (301, expected 310). Even the nearest of them is unlike it.",
        "What it is part of: it/*/* 100 of 100 expected (0 %); */ios/* 10 of 100 expected (-90 %, flagged); */*/paid"
        " 100 of 100 expected (0 %); the total 100 of 100 expected (0 %).",
        "By country, of the 3 others of */ios/paid: 3 fell, 3 alerted (the largest: de/ios/paid -90, es/ios/paid -90,"
        " fr/ios/paid -90).",
        "By platform, of the 2 others of it/*/paid: none stood out (the largest: it/app/paid +0, it/web/paid +0).",
        "By channel, of the 1 other of it/ios/*: 1 fell, 1 alerted (the largest: it/ios/free -90).",
        "This looks like a matter of */ios/* rather than of it/ios/paid alone.",
        "The smallest change of a single day that is usually noticed here: a drop of 18 % and no rise (evaluated on"
        " the days before 2026-11-17).",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": "ordinary"}, "It was not flagged, as it is not rare enough: as rare as one day in 1,200."),
        ({"verdict": "chance"}, "but among the 29 rows of this day some are as rare by chance."),
        ({"verdict": "small"}, "the difference is smaller than the settings ask for"),
        ({"verdict": "budget"}, "the alert budget has room for rarer ones only"),
        ({"verdict": "ongoing"}, "the value is in order again"),
        ({"verdict": "ended", "reason": "no row since 2026-01-01"}, "has ended: no row since 2026-01-01."),
        ({"lower": np.nan, "upper": np.nan}, "No value would have passed"),
        ({"lower": np.nan, "upper": np.nan, "verdict": "ordinary"}, "No value would have alerted here."),
        ({"lower": 0.0}, "Values up to 372 would not have alerted."),
        ({"upper": np.nan}, "Values from 250 on would not have alerted."),
        ({"parts": (Part("z", 0.0, -1.0),)}, "Nothing sets it apart from a typical day."),
        ({"detectable": None}, "run `segwatch evaluate`"),
        ({"detectable": Detectable(np.nan, np.nan, DAY)}, "No change of a single day would usually be noticed here"),
        ({"notes": ("the model is gone",)}, "Note: the model is gone."),
        ({"parts": (Part("of_old", 1.0, 2.0),)}, "What sets it apart from a typical day: of_old (100 %)."),
        ({"suspect": ONE}, "This looks like a matter of it/ios/paid alone."),
        ({"suspect": (None, None, None)}, "a matter of everything rather than of it/ios/paid alone."),
        ({"incident": incident((None, "ios", None))}, "It belongs to the incident id: */ios/* down 90 % (-900)"),
        ({"kind": "value", "lower": -5.0}, "Values from -5 to 372 would not have alerted."),
        ({"kind": "ratio", "metric": "conversion"}, "conversion of it/ios/paid was 12 on 2026-11-20 where 310 was"),
    ],
)
def test_what_else_is_said(changes, said):
    assert any(said in text for text in sentences(explained(**changes)))


def test_a_row_without_a_value_or_a_model_says_why_and_no_more_of_its_score():
    row = explained().row
    gone = dataclasses.replace(row, value=np.nan, expected=np.nan, impact=np.nan, p_value=np.nan)
    nothing = {"verdict": "unscored", "reason": "the data did not arrive", "parts": (), "similar": (), "suspect": None}
    first, second, *_ = sentences(explained(row=gone, **nothing))
    assert first == "it/ios/paid has no value of new users on 2026-11-20: the data did not arrive."
    assert second.startswith("What it is part of")
    assert not any("segwatch evaluate" in text for text in sentences(explained(row=gone, detectable=None, **nothing)))
    first, *_ = sentences(explained(row=dataclasses.replace(gone, value=3.0), **{**nothing, "reason": "first seen"}))
    assert first == "it/ios/paid had 3 new users on 2026-11-20. Nothing was expected of it: first seen."


def test_every_feature_has_words_for_both_directions_and_grains():
    for name in FEATURES:
        for value, grain in itertools.product((-1.0, 1.0), ("day", "hour")):
            words = feature_words(Part(name, value, 1.0), grain)
            assert "{" not in words and name not in words.split()


def test_numbers_times_and_rarity_read_well():
    assert [number(x) for x in (0.0, -0.0, 3.25, 0.01234, 1240.4, 9.999, -5.0)] == [
        "0", "0", "3.25", "0.0123", "1,240", "10", "-5"
    ]  # fmt: skip
    assert when(np.datetime64("2026-11-20T14", "h"), "hour") == "2026-11-20 14:00"
    assert [rarity(p, "day") for p in (0.9, 0.1, 1e-3 / 1.234, 1e-12)] == [
        "a day like most others", "as rare as one day in 10", "as rare as one day in 1,200",
        "rarer than one day in a million",
    ]  # fmt: skip


def test_a_value_that_is_as_good_as_expected_is_no_change():
    row = dataclasses.replace(explained().row, value=1001.0, expected=1000.0)
    assert changed(row, True) == "" and changed(dataclasses.replace(row, expected=0.0), True) == ""
    assert changed(dataclasses.replace(row, expected=0.5), True) == "200,100 % more"
    assert changed(dataclasses.replace(row, expected=-2002.0), False) == "150 % higher"


def test_small_parts_are_not_told():
    assert [one.part.feature for one in shares((Part("z", 1, 96.0), Part("flat", 1, 4.0)))] == ["z"]
    assert shares((Part("z", 1, -1.0),)) == []
