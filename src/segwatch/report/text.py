"""Numbers and times as people read them."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np

from segwatch.core.window import Grain

_MINUS = "\N{MINUS SIGN}"
_LONGEST = 1e15
# Millions from ten of them on, so that most totals keep all their digits.
_SHORT = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e7, 1e6, "M"))


def number(value: float) -> str:
    """Whole from a thousand, three digits below: `20,984`, `47.5`, `0.0123`; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= _LONGEST:
        text = f"{value:.2e}".replace("e+", "e")
    elif abs(value) >= 999.5 or value == round(value):
        text = f"{value:,.0f}"
    elif abs(value) >= 0.001:
        text = f"{value:.3g}"
    else:
        text = f"{value:.2e}".replace("e-0", "e-")
    return text.replace("-", _MINUS) if text != "-0" else "0"


def short(value: float) -> str:
    """A number that fits a headline: `86,372`, `10.8M`, `1T`."""
    for least, size, name in _SHORT:
        if least <= abs(value) < _LONGEST:
            return number(value / size) + name
    return number(value)


def signed(value: float) -> str:
    """A number with its sign in any case."""
    return f"+{number(value)}" if value > 0 else number(value)


def percent(share: float) -> str:
    """A signed share: `−97 %`; empty where there is none, as against an expected value of zero."""
    if not math.isfinite(share):
        return ""
    return f"{signed(round(100 * share))}\N{NO-BREAK SPACE}%"


def p_value(value: float) -> str:
    """Two significant digits: `0.0042`, `1.9e-17`."""
    return f"{value:.2g}".replace("e-0", "e-") if math.isfinite(value) else "–"


def share_of(impact: float, expected: float) -> float:
    """impact / |expected|, NaN against zero."""
    return impact / abs(expected) if expected else math.nan


def moment(time: np.datetime64, grain: Grain) -> str:
    """`13 Oct 2026`, with the hour where the grain is one."""
    at = _datetime(time)
    return f"{at.day} {at:%b %Y}" + (f" {at:%H:%M}" if grain == "hour" else "")


def stamp(time: np.datetime64, grain: Grain) -> str:
    """`2026-10-13`, with the hour where the grain is one; texts sort as their times do."""
    return f"{_datetime(time):%Y-%m-%d %H:%M}"[: 16 if grain == "hour" else 10]


def span(first: np.datetime64, last: np.datetime64, grain: Grain) -> str:
    """Both ends, without saying twice what they share: `13–14 Oct 2026`, `30 Sep – 2 Oct 2026`."""
    start, end = _datetime(first), _datetime(last)
    if first == last:
        return moment(first, grain)
    if grain == "hour":
        tail = f"{end:%H:%M}" if start.date() == end.date() else moment(last, grain)
        return f"{moment(first, grain)} – {tail}"
    if (start.year, start.month) == (end.year, end.month):
        return f"{start.day}–{moment(last, grain)}"
    head = f"{start.day} {start:%b}" if start.year == end.year else moment(first, grain)
    return f"{head} – {moment(last, grain)}"


def count(n: int, noun: str) -> str:
    """`1 day`, `1,234 days`."""
    return f"{n:,} {plural(n, noun)}"


def plural(n: int, noun: str) -> str:
    """The noun for so many: `day`, `days`."""
    return noun if n == 1 else f"{noun}s"


def age(elapsed: dt.timedelta) -> str:
    """`under an hour`, `5 hours`, `3 days`: days from two of them on."""
    hours = int(elapsed.total_seconds() // 3600)
    if hours < 1:
        return "under an hour"
    return count(hours, "hour") if hours < 48 else count(hours // 24, "day")


def _datetime(time: np.datetime64) -> dt.datetime:
    at: dt.datetime = time.astype("datetime64[us]").item()
    return at
