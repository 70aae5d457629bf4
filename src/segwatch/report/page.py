"""The page: headline numbers, days, the worst anomalies, a table to filter, and the health of the model."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.segment import label
from segwatch.core.window import Grain
from segwatch.errors import DataError
from segwatch.report import text
from segwatch.report.charts import daily_chart, segment_chart
from segwatch.report.columns import flagged_of, floats_of, times_of
from segwatch.report.events import Event, SegmentEvents, rank_events

MAX_TABLE_ROWS = 20_000
_MAX_SILENT = 200


@dataclass(frozen=True)
class ModelFacts:
    """The model version that made the latest predictions."""

    name: str
    version: str
    trained_start: str
    trained_end: str
    registered_at: dt.datetime
    segments_fitted: int
    metrics: Mapping[str, float]


def render_report(
    predictions: pa.Table,
    *,
    metric: str,
    dimensions: Sequence[str],
    grain: Grain,
    model: ModelFacts | None,
    generated_at: dt.datetime,
    top: int = 20,
) -> str:
    """One self-contained HTML page, which loads nothing when it is opened.

    predictions: rows of one metric in the columns of the predictions table, in any order.
    top: how many segments get a chart. Raises DataError if there are no rows.
    """
    if not predictions.num_rows:
        raise DataError(f"there are no predictions of {metric} in this Window: run `segwatch infer` first")
    ranked = rank_events(predictions, dimensions, grain)
    page = Template(_resource("page.html"))
    return page.substitute(
        title=escape(metric),
        style=_resource("page.css"),
        subtitle=escape(_subtitle(predictions, grain, model, generated_at)),
        numbers=_numbers(predictions, grain),
        daily=daily_chart(predictions, grain),
        cards="".join(_card(one, predictions, grain) for one in ranked[:top]) or "<p>No anomaly in these days.</p>",
        shown=f"{min(top, len(ranked))} of {text.count(len(ranked), 'segment')} with alerts",
        data=_table_data(predictions, dimensions, grain),
        health=_health(predictions, dimensions, grain, model, generated_at),
        script=_resource("page.js"),
    )


def _resource(name: str) -> str:
    return resources.files("segwatch.report").joinpath(name).read_text(encoding="utf-8")


def _subtitle(rows: pa.Table, grain: Grain, model: ModelFacts | None, generated_at: dt.datetime) -> str:
    times = times_of(rows)
    version = f" · model version {model.version}" if model else ""
    written = text.moment(np.datetime64(generated_at.replace(tzinfo=None)), "hour")
    return f"{text.span(times.min(), times.max(), grain)}{version} · written {written} UTC"


def _numbers(rows: pa.Table, grain: Grain) -> str:
    scored = pc.sum(pc.equal(rows["status"], "ok")).as_py()
    flagged = flagged_of(rows)
    latest = flagged.filter(pc.equal(flagged["ts"], pc.max(rows["ts"]))).num_rows
    facts = {
        "segments": len(pc.unique(rows["segment_id"])),
        f"{grain}s": len(pc.unique(rows["ts"])),
        "alerts": flagged.num_rows,
        "segments with alerts": len(pc.unique(flagged["segment_id"])),
        f"alerts per 1,000 segment-{grain}s": round(1000 * flagged.num_rows / max(1, scored), 1),
        f"alerts on the last {grain}": latest,
    }
    return "".join(f"<div><b>{text.number(value)}</b><span>{name}</span></div>" for name, value in facts.items())


def _card(one: SegmentEvents, rows: pa.Table, grain: Grain) -> str:
    main, *others = one.events
    chart = segment_chart(rows.filter(pc.equal(rows["segment_id"], one.segment_id)), grain)
    spans = "; ".join(text.span(event.first, event.last, grain) for event in others[:4])
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    also = f'<p class="also">also {escape(spans + more)}</p>' if others else ""
    return (
        f'<article class="{main.direction}"><h3>{escape(one.segment)}</h3>'
        f"<p>{escape(_sentence(main, grain))}</p>{chart}{also}</article>"
    )


def _sentence(event: Event, grain: Grain) -> str:
    percent = text.percent(text.share_of(event.impact, event.expected))
    share = f" ({percent})" if percent else ""
    pattern = ", by its pattern rather than its value" if event.is_pattern else ""
    when = text.span(event.first, event.last, grain)
    return f"{when}: {text.signed(event.impact)}{share} against expected{pattern}, p = {text.p_value(event.p_value)}"


def _table_data(rows: pa.Table, dimensions: Sequence[str], grain: Grain) -> str:
    """The flagged rows as JSON that no value can break out of."""
    flagged = flagged_of(rows)
    impact = floats_of(flagged, "value") - floats_of(flagged, "expected")
    order = np.argsort(-np.abs(impact), kind="stable")[:MAX_TABLE_ROWS]
    kept = flagged.take(pa.array(order))
    columns = {
        grain: [text.stamp(time, grain) for time in times_of(kept)],
        **{name: kept[name].to_pylist() for name in dimensions},
        "direction": kept["direction"].to_pylist(),
        **{name: _rounded(kept[name]) for name in ("value", "expected", "lower", "upper")},
        "impact": [round(float(x), 1) for x in impact[order]],
        "p_value": [float(f"{p:.2g}") for p in kept["p_value"].to_pylist()],
    }
    document = {
        "names": list(columns),
        "filters": [*dimensions, "direction"],
        "rows": list(zip(*columns.values(), strict=True)),
        "total": flagged.num_rows,
    }
    return json.dumps(document, ensure_ascii=True).replace("<", "\\u003c")


def _rounded(column: pa.ChunkedArray) -> list[float | None]:
    return [None if value is None else round(value, 1) for value in column.to_pylist()]


def _health(
    rows: pa.Table, dimensions: Sequence[str], grain: Grain, model: ModelFacts | None, generated_at: dt.datetime
) -> str:
    last = rows.filter(pc.equal(rows["ts"], pc.max(rows["ts"])))
    parts = [
        _definition_list(f"Segments on the last {grain}", _counts(last)),
        _definition_list("Rows", _counts(rows)),
        _model_facts(model, generated_at),
        _silent_segments(last, dimensions, grain),
    ]
    return "".join(parts)


def _counts(rows: pa.Table) -> dict[str, str]:
    counts = pc.value_counts(rows["status"]).to_pylist()
    return {row["values"]: f"{row['counts']:,}" for row in sorted(counts, key=lambda row: -row["counts"])}


def _model_facts(model: ModelFacts | None, generated_at: dt.datetime) -> str:
    if model is None:
        return "<div><h3>Model</h3><p>The version that made these predictions is no longer in the registry.</p></div>"
    facts = {
        "version": f"{model.name} {model.version}",
        "age": text.count((generated_at - model.registered_at).days, "day"),
        "trained on": f"{model.trained_start} to {model.trained_end} (exclusive)",
        "fitted segments": f"{model.segments_fitted:,}",
    }
    rates = {n.replace("_", " "): f"{v:.3f}" for n, v in model.metrics.items() if "rate" in n or n.startswith("recall")}
    return _definition_list("Model", facts | rates)


def _silent_segments(last: pa.Table, dimensions: Sequence[str], grain: Grain) -> str:
    silent = last.filter(pc.not_equal(last["status"], "ok"))
    if not silent.num_rows:
        return ""
    lines = [
        f"<li><b>{escape(label(row[d] for d in dimensions))}</b>"
        f" {escape(row['status'])}: {escape(row['reason'] or '')}</li>"
        for row in silent.slice(0, _MAX_SILENT).to_pylist()
    ]
    more = f"<p>and {silent.num_rows - _MAX_SILENT:,} more</p>" if silent.num_rows > _MAX_SILENT else ""
    return f"<div class=wide><h3>Not scored on the last {grain}</h3><ul>{''.join(lines)}</ul>{more}</div>"


def _definition_list(title: str, facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<div><h3>{escape(title)}</h3><dl>{rows}</dl></div>"
