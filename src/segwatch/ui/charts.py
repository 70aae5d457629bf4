"""Charts of the page, drawn when it is asked for; each twice, since text scaled down to a telephone cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.window import Grain
from segwatch.report import text
from segwatch.report.charts import segment_chart
from segwatch.report.columns import times_of

_SIZES = ((960, 240), (360, 170))
CHARTED = ("ts", "value", "expected", "lower", "upper", "is_anomaly", "direction", "reason")
"""Columns that a chart is drawn from."""


@dataclass(frozen=True)
class Chart:
    """SVG for a wide and for a narrow page, and what it shows in words. has_band: whether an interval is drawn."""

    wide: str
    narrow: str
    said: str
    has_band: bool


def chart_of(rows: pa.Table, what: str, grain: Grain) -> Chart | None:
    """The chart of rows of one segment or roll-up; None where there is nothing to draw."""
    if not rows.num_rows or pc.all(pc.is_null(rows["value"])).as_py():
        return None
    times = times_of(rows)
    flagged = rows.filter(rows["is_anomaly"])
    when = ", ".join(text.moment(time, grain) for time in sorted(times_of(flagged))[:8])
    more = f" and {flagged.num_rows - 8} more" if flagged.num_rows > 8 else ""
    said = f"{what}, {text.span(times.min(), times.max(), grain)}: value and expected value by {grain}."
    said += f" Alerts on {when}{more}." if when else " No alerts."
    wide, narrow = (_hidden(segment_chart(rows, grain, *size)) for size in _SIZES)
    has_band = bool(pc.any(pc.and_(pc.is_valid(rows["lower"]), pc.is_valid(rows["expected"]))).as_py())
    return Chart(wide, narrow, said, has_band)


@contextmanager
def drawing(rows: pa.Table | None, what: str, grain: Grain) -> Iterator[Future[Chart | None]]:
    """The chart is drawn while what runs inside reads on; None where there are no rows to draw."""
    with ThreadPoolExecutor(1, "draw") as pool:
        yield pool.submit(lambda: None if rows is None else chart_of(rows, what, grain))


def _hidden(svg: str) -> str:
    """The drawing without its parts' own names, which say less than the sentence that stands for it."""
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def warm(grain: Grain) -> None:
    """The first chart takes a second, which no request should wait for."""
    import datetime as dt

    times = [dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in (1, 2)]
    numbers = pa.array([1.0, 2.0])
    rows = pa.table(
        {
            "ts": pa.array(times, pa.timestamp("us", "UTC")),
            **dict.fromkeys(("value", "expected", "lower", "upper"), numbers),
            "is_anomaly": pa.array([False, True]),
            "direction": pa.array([None, "up"]),
            "reason": pa.nulls(2, pa.string()),
        }
    )
    chart_of(rows, "", grain)


def summed(sums: pa.Table, is_ratio: bool) -> pa.Table:
    """Sums by period as rows that can be drawn; they have no interval and no alerts."""
    n = sums.num_rows
    weight = sums["weight"] if is_ratio else pa.chunked_array([pa.array([1.0] * n)])
    nothing, texts = pa.nulls(n, pa.float64()), pa.nulls(n, pa.string())
    numbers = {name: pc.divide(sums[name], weight) for name in ("value", "expected")}
    # Open on both sides: no interval is drawn where the reason is a pattern.
    return pa.table(
        {
            "ts": sums["ts"],
            **numbers,
            "lower": nothing,
            "upper": nothing,
            "is_anomaly": pa.array([False] * n),
            "direction": texts,
            "reason": pa.array(["pattern"] * n),
        }
    )
