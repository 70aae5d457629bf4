"""Public holidays of the generated countries: fixed days, and those that move with Easter."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_FIXED = {
    "it": "01-01 01-06 04-25 05-01 06-02 08-15 11-01 12-08 12-25 12-26",
    "fr": "01-01 05-01 05-08 07-14 08-15 11-01 11-11 12-25",
    "de": "01-01 05-01 10-03 12-25 12-26",
    "es": "01-01 01-06 05-01 08-15 10-12 11-01 12-06 12-08 12-25",
    "gb": "01-01 12-25 12-26",
    "us": "01-01 06-19 07-04 11-11 12-25",
    "no": "01-01 05-01 05-17 12-25 12-26",
}
_USUAL = "01-01 05-01 12-25"
# Good Friday, Easter Monday, Ascension, Whit Monday.
_AFTER_EASTER = (-2, 1, 39, 50)


def is_holiday(country: str, days: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(n_days,) 1 on public holidays of the country, else 0. days: since 1970-01-01."""
    dates = days.astype("datetime64[D]")
    years = range(int(dates[0].item().year), int(dates[-1].item().year) + 1)
    return np.isin(dates, np.concatenate([_holidays(country, year) for year in years])).astype(np.float64)


@lru_cache(maxsize=4096)
def _holidays(country: str, year: int) -> npt.NDArray[np.datetime64]:
    fixed = [np.datetime64(f"{year}-{day}") for day in _FIXED.get(country, _USUAL).split()]
    easter = np.datetime64(_easter(year))
    return np.array([*fixed, *(easter + np.timedelta64(k, "D") for k in _AFTER_EASTER)], dtype="datetime64[D]")


def _easter(year: int) -> dt.date:
    """Easter Sunday of the Gregorian calendar (Meeus 1991, the anonymous algorithm)."""
    a, (b, c) = year % 19, divmod(year, 100)
    d, e = divmod(b, 4)
    g = (8 * b + 13) // 25
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    n = (32 + 2 * e + 2 * i - h - k) % 7
    m = (a + 11 * h + 22 * n) // 451
    month, day = divmod(h + n - 7 * m + 114, 31)
    return dt.date(year, month, day + 1)
