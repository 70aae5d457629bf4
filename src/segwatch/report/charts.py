"""Charts as inline SVG, drawn when the page is written, so that it needs no script and no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.window import Grain

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 1050
_BLUE, _RED, _GREY = "#2457a6", "#c8352b", "#8a919c"


def daily_chart(rows: pa.Table, grain: Grain) -> str:
    """Total value and expected value, and the alerts of each period."""
    import altair as alt

    scored = rows.filter(pc.equal(rows["status"], "ok"))
    total = _frame(scored.group_by("ts").aggregate([("value", "sum"), ("expected", "sum")]))
    flagged = scored.filter(scored["is_anomaly"])
    counts = _frame(flagged.group_by(["ts", "direction"]).aggregate([([], "count_all")]))
    time = _time_axis(alt, grain)
    bar = min(12.0, 0.7 * _WIDTH / max(1, total.shape[0]))
    base = alt.Chart(total).encode(x=time)
    lines = base.mark_line(color=_GREY, strokeDash=[4, 3]).encode(
        y=alt.Y("expected_sum:Q", title="total", axis=alt.Axis(format="~s"), scale=alt.Scale(zero=False))
    ) + base.mark_line(color=_BLUE).encode(y="value_sum:Q")
    bars = (
        alt.Chart(counts)
        .mark_bar(width=bar)
        .encode(
            x=time,
            y=alt.Y("count_all:Q", title="alerts"),
            color=alt.Color(
                "direction:N",
                scale=alt.Scale(domain=["up", "down"], range=[_BLUE, _RED]),
                legend=alt.Legend(orient="top", title=None),
            ),
        )
    )
    return _svg(
        (lines.properties(width=_WIDTH, height=190) & bars.properties(width=_WIDTH, height=90)).resolve_scale(
            x="shared"
        )
    )


def segment_chart(rows: pa.Table, grain: Grain) -> str:
    """Value, expected value, the interval that would not alert, and the flagged periods of one segment."""
    import altair as alt

    frame = _frame(rows.select(["ts", "value", "expected", "lower", "upper", "is_anomaly"]))
    top = frame["value"].max()
    # An interval open above reaches past the plot; without this its band would have a hole.
    frame["upper"] = frame["upper"].where(frame["upper"].notna() | frame["lower"].isna(), top)
    frame["upper"] = frame["upper"].clip(upper=1.6 * max(top, frame["expected"].max()))
    base = alt.Chart(frame).encode(x=_time_axis(alt, grain))
    y = alt.Y("value:Q", title=None, axis=alt.Axis(format="~s", tickCount=4))
    layers = [
        base.mark_area(color=_BLUE, opacity=0.13).encode(y="lower:Q", y2="upper:Q"),
        base.mark_line(color=_GREY, strokeDash=[4, 3], strokeWidth=1).encode(y="expected:Q"),
        base.mark_line(color=_BLUE, strokeWidth=1.5).encode(y=y),
        base.transform_filter("datum.is_anomaly").mark_point(color=_RED, filled=True, opacity=1, size=45).encode(y=y),
    ]
    return _svg(alt.layer(*layers).properties(width=470, height=140))


def _time_axis(alt: Any, grain: Grain) -> Any:
    # Times are UTC texts; drawn in local time a day would slip to the day before.
    return alt.X(
        "utcyearmonthdatehours(ts):T",
        title=None,
        axis=alt.Axis(format="%d %b" if grain == "day" else "%d %b %H:%M", tickCount=8, labelOverlap=True),
        scale=alt.Scale(type="utc"),
    )


def _frame(rows: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = rows.sort_by("ts").to_pandas()
    frame["ts"] = frame["ts"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return frame


def _svg(chart: Any) -> str:
    import altair as alt
    import vl_convert

    font = "system-ui, sans-serif"
    with alt.data_transformers.enable("default", max_rows=None):
        spec = (
            chart.configure(font=font, background="transparent")
            .configure_view(stroke=None)
            .configure_axis(gridColor="#e4e7ec", domainColor="#c5cad3", labelColor="#5b6370", titleColor="#5b6370")
        )
        return str(vl_convert.vegalite_to_svg(spec.to_json()))
