"""The page: headline numbers, the last period's alerts, every period, the worst anomalies, a table, and health."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.incidents import Incident, sentence
from segwatch.core.segment import TOTAL, counted, label, segment_id
from segwatch.core.window import Grain
from segwatch.errors import DataError
from segwatch.report import text
from segwatch.report.charts import daily_chart, segment_chart
from segwatch.report.columns import apart, flagged_of, floats_of, impact_of, is_counted, largest_first, times_of
from segwatch.report.events import Event, SegmentEvents, rank_events
from segwatch.report.health import ModelFacts, health
from segwatch.report.table import table_data

_MAX_LATEST, _MAX_ALSO, _MAX_INCIDENTS = 12, 4, 15
_DAILY_WIDTHS = {"wide": 900, "narrow": 360}
_RHYTHM: dict[Grain, str] = {"day": "Day by day", "hour": "Hour by hour"}
_SIGNS = {"up": "▲", "down": "▼"}


def render_report(
    predictions: pa.Table,
    *,
    metric: str,
    dimensions: Sequence[str],
    grain: Grain,
    model: ModelFacts | None,
    generated_at: dt.datetime,
    incidents: Sequence[Incident] = (),
    top: int = 20,
) -> str:
    """One self-contained HTML page, which loads nothing when it is opened.

    predictions: rows of one metric in the columns of the predictions table, in any order. incidents: what is known of
    each, as it is to be listed.
    top: how many segments get a chart. Raises DataError if there are no rows.
    """
    if not predictions.num_rows:
        raise DataError(f"there are no predictions of {metric} in this Window: run `segwatch infer` first")
    flagged = flagged_of(predictions)
    last = predictions.filter(pc.equal(predictions["ts"], pc.max(predictions["ts"])))
    ranked = rank_events(predictions, dimensions, grain)
    segments, rollups = apart(predictions, dimensions)
    totals = predictions.filter(pc.equal(predictions["level"], TOTAL))
    # The total's own row stands for what did not arrive, too; the sum of the segments' rows would dip.
    totals = totals if is_counted(totals).any() else segments
    page = Template(_resource("page.html"))
    return page.substitute(
        title=escape(metric),
        style=_resource("palette.css") + _resource("page.css"),
        subtitle=escape(_subtitle(predictions, grain, model, generated_at)),
        numbers=_numbers(predictions, segments, rollups, totals, last, grain),
        incidents=_incidents(incidents, dimensions, {one.segment_id for one in ranked[:top]}),
        latest=_latest(last, dimensions, grain, {one.segment_id for one in ranked[:top]}),
        rhythm=_RHYTHM[grain],
        daily=_daily(predictions, totals, grain),
        worst=_worst(predictions, ranked, grain, top),
        table_hidden="" if flagged.num_rows else " hidden",
        data=table_data(flagged, dimensions, grain),
        health=health(predictions, last, dimensions, grain, model, generated_at),
        script=_resource("page.js"),
    )


def _resource(name: str) -> str:
    return resources.files("segwatch.report").joinpath(name).read_text(encoding="utf-8")


def _subtitle(rows: pa.Table, grain: Grain, model: ModelFacts | None, generated_at: dt.datetime) -> str:
    version = f" · model version {model.version}, {text.age(model.age(generated_at))} old" if model else ""
    written = text.moment(np.datetime64(generated_at.replace(tzinfo=None)), "hour")
    return f"{_span(rows, grain)}{version} · written {written} UTC"


def _span(rows: pa.Table, grain: Grain) -> str:
    times = times_of(rows)
    return text.span(times.min(), times.max(), grain)


def _numbers(
    rows: pa.Table, segments: pa.Table, rollups: pa.Table, totals: pa.Table, last: pa.Table, grain: Grain
) -> str:
    """What the last period asks for first, then the whole span."""
    last_segments, last_totals = (part.filter(pc.equal(part["ts"], pc.max(last["ts"]))) for part in (segments, totals))
    of_last = _numbers_of_last(last, last_segments, last_totals, grain)
    facts = [*of_last, *_numbers_of_all(rows, segments, rollups, grain)]
    return "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in facts)


def _numbers_of_last(last: pa.Table, segments: pa.Table, totals: pa.Table, grain: Grain) -> list[tuple[str, str]]:
    when, alerts = _span(last, grain), flagged_of(last).num_rows
    value, expected = _totals(totals)
    percent = text.percent(text.share_of(value - expected, expected))
    return [
        (text.number(alerts), f"{text.plural(alerts, 'alert')} on {when}"),
        (text.short(value), f"total on {when}" + (f", {percent} against expected" if percent else "")),
        (text.number(_n_scored(segments)), f"of {text.count(segments.num_rows, 'segment')} scored on {when}"),
    ]


def _numbers_of_all(rows: pa.Table, segments: pa.Table, rollups: pa.Table, grain: Grain) -> list[tuple[str, str]]:
    flagged = flagged_of(rows)
    alerts, watched = flagged.num_rows, counted(*(len(pc.unique(some["segment_id"])) for some in (segments, rollups)))
    rate = round(1000 * alerts / max(1, _n_scored(rows)), 1)
    return [
        (text.number(alerts), f"{text.plural(alerts, 'alert')} in {text.count(len(pc.unique(rows['ts'])), grain)}"),
        (text.number(len(pc.unique(flagged["segment_id"]))), f"of {watched} with alerts"),
        (text.number(rate), f"alerts per 1,000 scored {'rows' if rollups.num_rows else f'segment-{grain}s'}"),
    ]


def _n_scored(rows: pa.Table) -> int:
    return int(pc.sum(pc.equal(rows["status"], "ok")).as_py())


def _totals(rows: pa.Table) -> tuple[float, float]:
    """Value and expected value of the rows that have both; NaN if none has."""
    counted = is_counted(rows)
    if not counted.any():
        return np.nan, np.nan
    return float(floats_of(rows, "value")[counted].sum()), float(floats_of(rows, "expected")[counted].sum())


def _incidents(known: Sequence[Incident], dimensions: Sequence[str], charted: Collection[str]) -> str:
    """What broke, each in one line; nothing if there is none."""
    if not known:
        return ""
    lines = "".join(_incident_line(one, dimensions, charted) for one in known[:_MAX_INCIDENTS])
    more = len(known) - _MAX_INCIDENTS
    rest = f'<p class="note">and {more:,} more: see <code>segwatch incidents</code></p>' if more > 0 else ""
    return f'<section><h2>Incidents</h2><ul class="incidents">{lines}</ul>{rest}</section>'


def _incident_line(one: Incident, dimensions: Sequence[str], charted: Collection[str]) -> str:
    said, id_ = escape(sentence(one)), segment_id(dimensions, one.values)
    text_ = f'<a href="#{_anchor(id_)}">{said}</a>' if id_ in charted else said
    named = ", ".join(one.labels[:_MAX_ALSO])
    more = f" and {one.n_segments - _MAX_ALSO:,} more" if one.n_segments > _MAX_ALSO else ""
    of = f'<span class="note">most of it in {escape(named)}{more}</span>' if one.n_segments > 1 else ""
    return f'<li class="{one.status}">{_sign(one.direction)}<span>{text_}</span>{of}</li>'


def _latest(last: pa.Table, dimensions: Sequence[str], grain: Grain, charted: Collection[str]) -> str:
    """The last period's alerts, the largest impact first; nothing if there are none."""
    alerts = flagged_of(last)
    if not alerts.num_rows:
        return ""
    worst = alerts.take(pa.array(largest_first(impact_of(alerts))[:_MAX_LATEST]))
    lines = "".join(_latest_line(row, dimensions, charted) for row in worst.to_pylist())
    link = urlencode([(grain, text.stamp(times_of(last)[0], grain))])
    more = alerts.num_rows - worst.num_rows
    rest = f'<p class="note">and <a href="#{link}">{more:,} more in the table</a></p>' if more else ""
    return f'<section><h2>Alerts on {_span(last, grain)}</h2><ul class="latest">{lines}</ul>{rest}</section>'


def _latest_line(row: Mapping[str, Any], dimensions: Sequence[str], charted: Collection[str]) -> str:
    name = escape(label(row[d] for d in dimensions))
    if row["segment_id"] in charted:
        name = f'<a href="#{_anchor(row["segment_id"])}">{name}</a>'
    value, expected = (math.nan if row[c] is None else row[c] for c in ("value", "expected"))
    change = _change(value - expected, expected)
    return f'<li>{_sign(row["direction"])}<span class="name">{name}</span><span class="number">{change}</span></li>'


def _anchor(segment_id: str) -> str:
    return escape(f"segment-{segment_id}")


def _sign(direction: str | None) -> str:
    """A triangle up or down, both for an event of both; screen readers have the sign of the number."""
    name = direction if direction in _SIGNS else "mixed"
    signs = _SIGNS.get(name, "".join(_SIGNS.values()))
    return f'<span class="sign {name}" aria-hidden="true">{signs}</span>'


def _change(impact: float, expected: float) -> str:
    """`−15,195 (−97 %)`, the share where there is one."""
    percent = text.percent(text.share_of(impact, expected))
    return text.signed(impact) + (f" ({percent})" if percent else "")


def _daily(rows: pa.Table, totals: pa.Table, grain: Grain) -> str:
    if not is_counted(totals).any():
        return f"<p>No segment was scored in these {grain}s: see Health.</p>"
    name = (
        f"{_span(rows, grain)}: total and expected value of the scored segments, and the number of alerts, by {grain}"
    )
    # Drawn twice, since text scaled down to a telephone cannot be read.
    charts = "".join(
        f'<div class="{size}">{daily_chart(rows, totals, grain, width)}</div>' for size, width in _DAILY_WIDTHS.items()
    )
    return f'{_key()}<div role="img" aria-label="{name}">{charts}</div>'


def _worst(rows: pa.Table, ranked: Sequence[SegmentEvents], grain: Grain, top: int) -> str:
    if not ranked:
        return f"<p>No anomalies in {_span(rows, grain)}.</p>"
    charted = ranked[:top]
    # Once for all, since a search of every row for each card is slow with thousands of segments.
    theirs = rows.filter(pc.is_in(rows["segment_id"], pa.array([one.segment_id for one in charted])))
    cards = "".join(_card(one, theirs, grain) for one in charted)
    n = counted(*(sum(one.is_rollup is wanted for one in ranked) for wanted in (False, True)))
    shown = f"The {top} worst of {n} with alerts" if len(ranked) > top else f"{n} with alerts"
    key = _key('<i class="band"></i>range that would not alert')
    return f'<p class="note">{shown}</p>{key}<div class="cards">{cards}</div>'


def _key(*more: str) -> str:
    """What the lines and signs of a chart are."""
    lines = ('<i class="line"></i>value', '<i class="dashed"></i>expected')
    signs = (f"{_sign(direction)} alert {direction}" for direction in _SIGNS)
    return f'<p class="key">{"".join(f"<span>{mark}</span>" for mark in (*lines, *more, *signs))}</p>'


def _card(one: SegmentEvents, rows: pa.Table, grain: Grain) -> str:
    main, *others = one.events
    sentence = escape(_sentence(main, grain))
    named = f'role="img" aria-label="{escape(one.segment)}, {_span(rows, grain)}. {sentence}"'
    chart = segment_chart(rows.filter(pc.equal(rows["segment_id"], one.segment_id)), grain)
    return (
        f'<article class="{main.direction}" id="{_anchor(one.segment_id)}">'
        f"<h3>{_sign(main.direction)} {escape(one.segment)}</h3><p>{sentence}</p>"
        f"<div {named}>{chart}</div>{_also(others, grain)}</article>"
    )


def _sentence(event: Event, grain: Grain) -> str:
    pattern = ", by its pattern rather than its value" if event.is_pattern else ""
    change = _change(event.impact, event.expected)
    when, p = text.span(event.first, event.last, grain), text.p_value(event.p_value)
    return f"{when}: {change} against expected{pattern}, p = {p}"


def _also(others: Sequence[Event], grain: Grain) -> str:
    """The next largest events in the order of time."""
    if not others:
        return ""
    named = sorted(others[:_MAX_ALSO], key=lambda event: event.first)
    spans = "; ".join(text.span(event.first, event.last, grain) for event in named)
    more = f" and {len(others) - len(named)} more" if len(others) > len(named) else ""
    return f'<p class="also">also {spans}{more}</p>'
