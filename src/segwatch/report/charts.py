"""Charts as inline SVG, drawn when the page is written, so that it needs no script and no network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.panel import Bools, Floats
from segwatch.core.window import Grain
from segwatch.report.columns import bools_of, floats_of, is_counted, times_of

Rows = list[dict[str, Any]]

# Names of the page's colours, so that a chart follows its light and its dark scheme.
_INK, _SOFT, _LINE, _BAND = "var(--ink)", "var(--soft)", "var(--line)", "var(--band)"
_DIRECTIONS = {"domain": ["up", "down"], "range": ["var(--up)", "var(--down)"]}
# Thousands as 12k; billions as B, which SI calls G; below one 0.05, which SI calls 50m.
_NUMBER = (
    "abs(datum.value) < 1000 ? format(datum.value, '.4~g') : abs(datum.value) < 1e15"
    " ? replace(format(datum.value, '.6~s'), 'G', 'B') : format(datum.value, '.3~e')"
)
# Both ways from zero; half an alert is no mark.
_COUNT = "datum.value % 1 ? '' : format(abs(datum.value), ',d')"


def daily_chart(rows: pa.Table, totals_of: pa.Table, grain: Grain, width: int) -> str:
    """Sums by period of value and expected value of some rows, and under them the alerts of all rows by period."""
    import altair as alt

    totals, alerts = _totals(totals_of), _alerts(rows)
    bar = min(12.0, 0.7 * width / max(1, len(totals)))
    ticks = max(5, width // 100)
    base = alt.Chart(alt.NamedData("totals")).encode(x=_time_axis(grain, ticks, labels=False))
    scale = alt.Scale(zero=False)
    lines = base.mark_line(color=_SOFT, strokeDash=[4, 3], strokeWidth=1.5).encode(
        y=alt.Y("expected:Q", title=None, scale=scale, axis=alt.Axis(labelExpr=_NUMBER, tickCount=5))
    ) + base.mark_line(color=_INK, strokeCap="round").encode(y="value:Q")
    bars = (
        alt.Chart(alt.NamedData("alerts"))
        .mark_bar(width=bar)
        .encode(
            x=_time_axis(grain, ticks),
            y=alt.Y(
                "alerts:Q",
                title=None,
                axis=alt.Axis(labelExpr=_COUNT, tickCount=4),
            ),
            color=alt.Color("direction:N", scale=alt.Scale(**_DIRECTIONS), legend=None),
        )
    )
    chart = lines.properties(width=width, height=190, title="Total of the scored segments") & bars.properties(
        width=width, height=90, title="Alerts, up and down"
    )
    return _svg(_spec(chart.resolve_scale(x="shared")), totals=totals, alerts=alerts)


def segment_chart(rows: pa.Table, grain: Grain, width: int = 360, height: int = 120) -> str:
    """Value, expected value, the interval that would not alert, and the flagged periods of one segment."""
    return _svg(_segment_spec(grain, width, height), rows=_segment_rows(rows.sort_by("ts")))


@cache
def _segment_spec(grain: Grain, width: int, height: int) -> Mapping[str, Any]:
    """What every segment's chart has in common; made once, since checking it costs more than drawing."""
    import altair as alt

    base = alt.Chart(alt.NamedData("rows")).encode(x=_time_axis(grain, max(5, width // 100)))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(labelExpr=_NUMBER, tickCount=4))
    direction = alt.Scale(domain=["up", "down"], range=["triangle-up", "triangle-down"])
    layers = [
        base.mark_area(color=_BAND).encode(y="lower:Q", y2="upper:Q"),
        base.mark_line(color=_SOFT, strokeDash=[4, 3], strokeWidth=1).encode(y="expected:Q"),
        # A period alone between two without a value is a dot only with a round cap.
        base.mark_line(color=_INK, strokeWidth=1.5, strokeCap="round").encode(y=y),
        base.transform_filter("datum.is_anomaly && isValid(datum.value)")
        .mark_point(filled=True, opacity=1, size=70)
        .encode(
            y=y,
            shape=alt.Shape("direction:N", scale=direction, legend=None),
            color=alt.Color("direction:N", scale=alt.Scale(**_DIRECTIONS), legend=None),
        ),
    ]
    return _spec(alt.layer(*layers).properties(width=width, height=height))


def _totals(rows: pa.Table) -> Rows:
    """Sums by period over the same rows for both lines; None in a period without a scored row, which breaks them."""
    counted = pa.array(is_counted(rows))
    columns = {name: pc.if_else(counted, rows[name], None) for name in ("value", "expected")}
    sums = pa.table({"ts": rows["ts"], **columns}).group_by("ts").aggregate([(name, "sum") for name in columns])
    sums = sums.sort_by("ts")
    return _rows(sums, {name: floats_of(sums, f"{name}_sum") for name in columns})


def _alerts(rows: pa.Table) -> Rows:
    """Alerts by period and direction, those down below zero."""
    counts = rows.filter(rows["is_anomaly"]).group_by(["ts", "direction"]).aggregate([([], "count_all")])
    signs = np.where(bools_of(counts, "direction", "down"), -1, 1)
    return _rows(counts, {"direction": counts["direction"], "alerts": signs * floats_of(counts, "count_all")})


def _segment_rows(rows: pa.Table) -> Rows:
    value, expected, lower, upper = (floats_of(rows, name) for name in ("value", "expected", "lower", "upper"))
    lower, upper = _drawn_band(value, expected, lower, upper, bools_of(rows, "reason", "pattern"))
    numbers = {"value": value, "expected": expected, "lower": lower, "upper": upper}
    return _rows(rows, {**numbers, "is_anomaly": rows["is_anomaly"], "direction": rows["direction"]})


def _drawn_band(
    value: Floats, expected: Floats, lower: Floats, upper: Floats, is_pattern: Bools
) -> tuple[Floats, Floats]:
    """The interval's bounds (n_rows,) as the plot can show them, NaN where there is no interval.

    A bound far from the lines would flatten them, and one that is open has no place: both end at the plot's edge.
    """
    lines = np.r_[value, expected]
    lines = lines[np.isfinite(lines)]
    exists = np.isfinite(expected) & ~is_pattern
    if not lines.size or not exists.any():
        return np.full_like(lower, np.nan), np.full_like(upper, np.nan)
    margin = 0.6 * np.abs(lines).max()
    lower = np.maximum(lower, lines.min() - margin)
    upper = np.minimum(upper, lines.max() + margin)
    bounds = np.r_[lower, upper, lines]
    bottom, top = np.nanmin(bounds), np.nanmax(bounds)
    lower, upper = np.nan_to_num(lower, nan=bottom), np.nan_to_num(upper, nan=top)
    return np.where(exists, lower, np.nan), np.where(exists, upper, np.nan)


def _time_axis(grain: Grain, ticks: int, labels: bool = True) -> Any:
    import altair as alt

    # Times are UTC texts; on a local scale a day would slip to the day before.
    axis = alt.Axis(
        format="%-d %b" if grain == "day" else "%-d %b %H:%M",
        tickCount=ticks,
        labelOverlap=True,
        labelSeparation=8,
        labels=labels,
    )
    return alt.X("ts:T", title=None, axis=axis, scale=alt.Scale(type="utc"))


def _rows(rows: pa.Table, columns: Mapping[str, Any]) -> Rows:
    """Rows as Vega reads them: times as UTC texts, None for what is no finite number."""
    times = [f"{time}Z" for time in np.datetime_as_string(times_of(rows), unit="s")]
    lists = [times, *(_plain(column) for column in columns.values())]
    return [dict(zip(("ts", *columns), row, strict=True)) for row in zip(*lists, strict=True)]


def _plain(column: Any) -> list[Any]:
    if isinstance(column, np.ndarray):
        return [float(number) if np.isfinite(number) else None for number in column]
    plain: list[Any] = column.to_pylist()
    return plain


def _spec(chart: Any) -> dict[str, Any]:
    """The chart's Vega-Lite document, which names its data and holds none."""
    document: dict[str, Any] = (
        chart.configure(font="system-ui, sans-serif", background="transparent", aria=False)
        .configure_view(stroke=None)
        .configure_title(anchor="start", frame="group", fontSize=12, fontWeight="normal", color=_SOFT, offset=8)
        .configure_axis(
            gridColor=_LINE, domainColor=_LINE, tickColor=_LINE, labelColor=_SOFT, labelFontSize=11, labelPadding=4
        )
        .to_dict()
    )
    return document


def _svg(spec: Mapping[str, Any], **datasets: Rows) -> str:
    import vl_convert

    return str(vl_convert.vegalite_to_svg({**spec, "datasets": datasets}))
