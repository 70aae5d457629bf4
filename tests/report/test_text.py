import datetime as dt
import math

import numpy as np
import pytest

from segwatch.report import text


@pytest.mark.parametrize(
    ("value", "written"),
    [(20_984.4, "20,984"), (999.7, "1,000"), (47.53, "47.5"), (0.01234, "0.0123"), (1.9e-5, "1.90e−5"), (0, "0"),
     (-7.124, "−7.12"), (1e12, "1,000,000,000,000"), (1.234e18, "1.23e18"), (math.nan, "–"), (math.inf, "–")],
)  # fmt: skip
def test_a_number_keeps_the_digits_that_people_read(value, written):
    assert text.number(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(9_999_999, "9,999,999"), (10_810_624, "10.8M"), (-2.5e9, "−2.5B"), (1e12, "1T"), (math.nan, "–")],
)
def test_a_headline_fits_its_place(value, written):
    assert text.short(value) == written


@pytest.mark.parametrize(
    ("hours", "written"),
    [(-1, "under an hour"), (0.5, "under an hour"), (1, "1 hour"), (47, "47 hours"), (48, "2 days"), (999, "41 days")],
)
def test_an_age_is_in_hours_up_to_two_days(hours, written):
    assert text.age(dt.timedelta(hours=hours)) == written


@pytest.mark.parametrize(
    ("first", "last", "grain", "written"),
    [("2026-10-13", "2026-10-13", "day", "13 Oct 2026"), ("2026-10-13", "2026-10-14", "day", "13–14 Oct 2026"),
     ("2026-09-30", "2026-10-02", "day", "30 Sep – 2 Oct 2026"),
     ("2025-12-31", "2026-01-01", "day", "31 Dec 2025 – 1 Jan 2026"),
     ("2026-10-13T05", "2026-10-13T07", "hour", "13 Oct 2026 05:00 – 07:00")],
)  # fmt: skip
def test_a_span_says_nothing_twice(first, last, grain, written):
    assert text.span(np.datetime64(first), np.datetime64(last), grain) == written
