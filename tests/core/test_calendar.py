import datetime as dt

import numpy as np
import pytest

from segwatch.core.baseline import Recursion
from segwatch.core.calendar import Occasion, holidays_of, lay_out
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Segments
from segwatch.core.rollup import with_rollups
from segwatch.core.training import Prepared, Rows
from segwatch.core.window import Window

from .simulated import START, counts, panel_of, weekly

DIMENSIONS = ("country", "platform")
NAMES = tuple((country, platform) for country in ("de", "it") for platform in ("app", "ios", "tv", "web"))
N_TIMES = 800
DAY = Recursion(FeatureSet("day", "count"), 7)


def date(column):
    return (START + column).item()


def test_an_occasion_concerns_the_segments_that_have_its_values():
    segments = Segments(DIMENSIONS, (*NAMES, ("it", None), (None, None)))
    window = Window(START, START + np.timedelta64(5, "D"))
    days = lay_out([Occasion(date(1), date(2), "fair", "IT", {"country": "it"})], segments, window)
    concerned = [values[0] == "it" for values in segments.values]
    np.testing.assert_array_equal(days.at(1) >= 0, concerned)
    np.testing.assert_array_equal(days.at(2) >= 0, concerned)
    assert (days.at(0) < 0).all() and (days.at(3) < 0).all()
    assert days.keys == (("IT", "fair"),) and not days.masked().any()


def test_what_is_masked_is_no_kind_and_an_occasion_outside_the_window_is_none():
    segments, window = Segments(DIMENSIONS, NAMES), Window(START, START + np.timedelta64(5, "D"))
    outage = Occasion(date(3), date(3), "outage", where={"platform": "web"}, is_masked=True)
    days = lay_out([outage], segments, window)
    assert days.keys == () and (days.at(3) < 0).all()
    np.testing.assert_array_equal(days.masked()[:, 3], [platform == "web" for _, platform in NAMES])
    assert days.masked().sum() == 2
    assert lay_out([Occasion(dt.date(2020, 1, 1), dt.date(2020, 1, 1), "old")], segments, window) is None


def test_hours_of_a_day_are_all_of_the_occasion():
    window = Window(np.datetime64("2025-01-06T22"), np.datetime64("2025-01-08T02"), "hour")
    days = lay_out([Occasion(dt.date(2025, 1, 7), dt.date(2025, 1, 7), "fair")], Segments(("c",), (("it",),)), window)
    assert (days.codes[0] >= 0).tolist() == [False] * 2 + [True] * 24 + [False] * 2


def test_public_holidays_move_and_days_in_lieu_are_of_their_kind():
    window = Window(np.datetime64("2025-01-01"), np.datetime64("2027-01-01"))
    countries = {"Italia": "it", "Bavaria": "DE-BY", "<null>": "<null>", "moon": "XX"}
    found, unknown = holidays_of("country", countries, window)
    assert unknown == ["<null>", "moon"]
    easter = [one.first for one in found if one.where == {"country": "Italia"} and one.kind == "Easter Monday"]
    assert easter[:2] == [dt.date(2025, 4, 21), dt.date(2026, 4, 6)]
    assert dt.date(2025, 1, 6) in [one.first for one in found if one.where == {"country": "Bavaria"}]
    assert not any("observed" in one.kind for one in found)


def with_fairs(every=60, share=0.5, others=0.7):
    """Counts of two countries; in one of them a fair, every so many days, leaves a share, of the app another one."""
    rng = np.random.default_rng(4)
    mean = np.outer(rng.uniform(100.0, 900.0, len(NAMES)), weekly(N_TIMES, 1.0))
    fairs = np.arange(every, N_TIMES, every)
    for i, (country, platform) in enumerate(NAMES):
        if country == "it":
            mean[i, fairs] *= others if platform == "app" else share
    return counts(rng, mean), fairs


def z_of(days, values, rollups=False):
    panel = panel_of(values, NAMES, DIMENSIONS)
    panel = with_rollups(panel, 1) if rollups else panel
    prepared = Prepared.of(panel, DAY, lay_out(days, panel.segments, panel.window))
    return Rows.of(prepared, N_TIMES).X[..., 0], prepared


def test_the_effect_of_a_kind_is_learned_with_each_segments_own_part_and_expected_the_next_time():
    values, fairs = with_fairs()
    occasions = [Occasion(date(t), date(t), "fair", "IT", {"country": "it"}) for t in fairs]
    known, prepared = z_of(occasions, values, rollups=True)
    plain, _ = z_of([], values, rollups=True)
    last = fairs[-4:]
    it = [i for i, name in enumerate(prepared.panel.segments.values) if name[0] == "it"]
    assert np.abs(plain[it][:, last]).mean() > 4
    assert np.abs(known[it][:, last]).mean() < 1.5
    # The roll-up of the country expects what its segments do.
    rollup = prepared.panel.segments.values.index(("it", None))
    assert np.abs(known[rollup, last]).max() < 3
    app = NAMES.index(("it", "app"))
    effects = np.exp(prepared.shared.known[:, last]).mean(axis=1)
    assert effects[app] == pytest.approx(0.7, abs=0.07)
    assert effects[NAMES.index(("it", "web"))] == pytest.approx(0.5, abs=0.07)
    assert np.abs(prepared.shared.known[NAMES.index(("de", "web")), last]).max() < 0.1


def test_a_day_of_which_something_is_known_may_be_a_day_like_others():
    values, fairs = with_fairs()
    ordinary = counts(np.random.default_rng(9), np.outer(np.full(len(NAMES), 400.0), weekly(N_TIMES, 1.0)))
    values[:, fairs[-1] :] = ordinary[:, fairs[-1] :] * values[:, :50].mean(axis=1, keepdims=True) / 400.0
    occasions = [Occasion(date(t), date(t), "fair", "IT", {"country": "it"}) for t in fairs]
    known, _ = z_of(occasions, np.rint(values))
    assert np.abs(known[:, fairs[-1]]).max() < 4


def test_what_a_country_did_on_the_date_last_year_is_expected():
    rng = np.random.default_rng(5)
    mean = np.outer(rng.uniform(100.0, 900.0, len(NAMES)), weekly(N_TIMES, 1.0))
    feast = 300
    for t in (feast, feast + 365):
        mean[4:, t] *= 0.4
    values = counts(rng, mean)
    z, prepared = z_of([], values)
    assert np.abs(z[4:, feast]).min() > 2.5
    assert np.abs(z[4:, feast + 365]).mean() < 2
    assert (prepared.shared.known[4:, feast + 365] < -0.5).all()
    assert np.abs(prepared.shared.known[:4, feast + 365]).max() < 0.3


def test_masked_days_teach_nothing_and_are_not_scored():
    values, _ = with_fairs()
    broken = values.copy()
    broken[:, 700:705] = 0.0
    outage = [Occasion(date(700), date(704), "outage", is_masked=True)]
    panel = panel_of(broken, NAMES, DIMENSIONS)
    days = lay_out(outage, panel.segments, panel.window)
    days.mask(panel)
    masked = Prepared.of(panel, DAY, days)
    rows = Rows.of(masked, N_TIMES)
    assert not rows.is_complete[:, 700:705].any() and rows.is_complete[:, 705:].all()
    assert np.abs(rows.X[:, 705:712, 0]).mean() < 1.5
