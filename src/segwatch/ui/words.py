"""What the page says of incidents, values and times."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from segwatch.core.segment import label
from segwatch.core.window import Grain
from segwatch.report import text

# Of the whole change; less is nothing to tell.
_WORTH_SAYING = 0.01
SIGNS = {"up": "▲", "down": "▼"}


def shown(name: str | None) -> str:
    """A name as it can be read: what would break the line, or turn its direction, stands as it is written in code."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name or "")


def named(values: Sequence[str | None]) -> str:
    """`it/ios/paid`, of a roll-up `it/*/*`, of all `total`."""
    return shown(label(values))


def breakable(name: str) -> Markup:
    """A name that may go on in the next line behind each of its slashes."""
    return Markup("/<wbr>").join(name.split("/"))


def cause(dimensions: Sequence[str], values: Sequence[str | None]) -> str:
    """What a set of dimension values is, for people: `platform ios, country it`; `everything` for all."""
    known = [f"{name} {value}" for name, value in zip(dimensions, values, strict=True) if value is not None]
    return shown(", ".join(known)) or "everything"


def number(value: float | None) -> str:
    return text.number(math.nan if value is None else value)


def signed(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else text.signed(value)


def percent(share: float | None) -> str:
    return "–" if share is None else text.percent(share) or "–"


def part(share: float | None) -> str:
    """A share without a sign: `62 %`."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * abs(share):.0f}\N{NO-BREAK SPACE}%"


def p_value(value: float | None) -> str:
    return text.p_value(math.nan if value is None else value)


def stamp(time: Any, grain: Grain) -> str:
    """`2026-10-13`, with the hour where the grain is one."""
    return text.stamp(as_time(time), grain)


def moment(time: Any, grain: Grain) -> str:
    """`13 Oct 2026`, with the hour where the grain is one."""
    return text.moment(as_time(time), grain)


def span(first: Any, last: Any, grain: Grain) -> str:
    return text.span(as_time(first), as_time(last), grain)


def as_time(time: Any) -> np.datetime64:
    """A time of a warehouse, which is UTC, without its zone."""
    return time if isinstance(time, np.datetime64) else np.datetime64(time.replace(tzinfo=None), "us")


def as_scalar(time: np.datetime64) -> pa.Scalar:
    """A time as the warehouses' columns of times compare it."""
    return pa.scalar(time.astype("datetime64[us]").item().replace(tzinfo=dt.UTC), pa.timestamp("us", "UTC"))


def sentence(one: Mapping[str, Any], grain: Grain) -> str:
    """When and how much, of a row of `segwatch.incidents.known`:

    `Fell by 97 % on 11 Oct 2026: 19,721 less than expected in 9 segments, 93 % of that day’s whole fall.`
    """
    is_up = one["direction"] == "up"
    share = one["worst_impact_share"]
    by = f" by {part(share)}" if share is not None else ""
    first, last = as_time(one["first_seen"]), as_time(one["last_seen"])
    when = f"on {span(first, last, grain)}"
    more = "more" if is_up else "less"
    said = f"{'Rose' if is_up else 'Fell'}{by} {when}: {number(abs(one['total_impact']))} {more} than expected"
    if one["n_segments"] > 1:
        said += f" in {one['n_segments']:,} segments"
    whole = one["worst_change_share"]
    if whole is not None and whole >= _WORTH_SAYING:
        at_worst = "" if first == last else " at its worst"
        said += f", {part(min(1.0, whole))} of that {grain}’s whole {'rise' if is_up else 'fall'}{at_worst}"
    return said + "."


def share_of(impact: float | None, expected: float | None) -> float | None:
    """impact / |expected|, None against zero or where one is missing."""
    if impact is None or expected is None:
        return None
    share = text.share_of(impact, expected)
    return share if math.isfinite(share) else None


def sparkline(values: Sequence[float | None], expected: Sequence[float | None], width: int, height: int) -> Any:
    """Points of two lines as large as a word, the value's and the expected one's; None where nothing is known."""
    known = [v for v in (*values, *expected) if v is not None and math.isfinite(v)]
    if len(known) < 2 or len(values) < 2:
        return None
    low, high = min(known), max(known)
    scale = (height - 4) / ((high - low) or 1.0)
    step = (width - 4) / (len(values) - 1)

    def lines(series: Sequence[float | None]) -> list[str]:
        """The line's unbroken parts."""
        parts: list[list[str]] = [[]]
        for i, value in enumerate(series):
            if value is None or not math.isfinite(value):
                parts.append([])
            else:
                parts[-1].append(f"{2 + step * i:.1f},{height - 2 - scale * (value - low):.1f}")
        return [" ".join(points) for points in parts if len(points) > 1]

    return {"value": lines(values), "expected": lines(expected)}
