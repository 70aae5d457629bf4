"""The views of segments: the list with search and filters, and the page of one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.segment import level, segment_id
from segwatch.core.window import Window, length
from segwatch.report import text
from segwatch.ui import words
from segwatch.ui.charts import CHARTED, chart_of
from segwatch.ui.guard import Refused
from segwatch.ui.visit import PERIODS, Visit
from segwatch.warehouses.asked import Asked, Cell, Order, words_of

SHOWN = 50
"""Segments on a page."""
RELATIVES = 8
"""Segments of each kind that a segment's page names."""
STATUSES = ("ok", "new_segment", "too_short", "no_data", "ended")
_MOST_PERIODS = 1000
_LISTED = ("segment_id", "level", "value", "expected", "impact", "p_value", "is_anomaly", "direction", "status")
_ORDERS = {
    "impact": (Order("impact", "size"), Order("segment_id")),
    "p": (Order("p_value"), Order("segment_id")),
    "value": (Order("value", "down"), Order("segment_id")),
}


def segments(visit: Visit) -> tuple[str, dict[str, Any]]:
    """The segments of a period, searched, filtered and ordered by the warehouse."""
    grain = visit.metric.grain
    day = visit.period("day", visit.last)
    kind = visit.choice("kind", "segments", "rollups", "all")
    status, flagged = visit.choice("status", "", *STATUSES), visit.choice("flagged", "", "yes")
    order, page = visit.choice("order", *_ORDERS), visit.number("page", 1, 100_000)
    asked = _asked(visit, Window(day, day + length(1, grain), grain), kind, status, flagged)
    columns = (*visit.dimensions, *_LISTED)
    rows = visit.warehouse.asked_rows(asked, columns, _ORDERS[order], SHOWN, (page - 1) * SHOWN).to_pylist()
    sums = visit.warehouse.prediction_sums(asked, (), ("n_rows", "n_anomalies")).to_pylist()[0]
    return "segments.html", {
        "title": "Segments",
        "rows": [_named(visit, row) for row in rows],
        "n": sums["n_rows"],
        "n_alerts": sums["n_anomalies"],
        "page": page,
        "n_pages": math.ceil(sums["n_rows"] / SHOWN),
        "day": day,
        "kind": kind,
        "status": status,
        "statuses": [("", "all"), *((one, one.replace("_", " ")) for one in STATUSES)],
        "flagged": flagged,
        "order": order,
    }


def _asked(visit: Visit, window: Window, kind: str, status: str, flagged: str) -> Asked:
    among: dict[str, frozenset[Cell]] = {name: frozenset({value}) for name, value in visit.values.items()}
    if kind == "segments":
        among["level"] = frozenset({visit.metric.level})
    if status:
        among["status"] = frozenset({status})
    if flagged:
        among["is_anomaly"] = frozenset({True})
    without = {"level": visit.metric.level} if kind == "rollups" else {}
    asked = visit.asked_among(window, among)
    return replace(asked, without=without, words=words_of(visit.parameter("q")), searched=visit.dimensions)


def _named(visit: Visit, row: dict[str, Any]) -> dict[str, Any]:
    row["name"] = visit.name_of(row)
    row["share"] = words.share_of(row["impact"], row["expected"])
    row["link"] = visit.link(f"/segments/{row['segment_id']}")
    return row


def segment(visit: Visit) -> tuple[str, dict[str, Any]]:
    """One segment or roll-up: its chart, the periods that were flagged, and what is around it."""
    id_, grain = visit.request.path_params["id"], visit.metric.grain
    last = visit.period("end", visit.last + length(1, grain)) - length(1, grain)
    window = visit.window_to(last, visit.number("periods", PERIODS, _MOST_PERIODS))
    values = _values_of(visit, id_, window)
    rows = visit.warehouse.asked_rows(visit.of_segment(window, values), _columns(visit), [Order("ts")])
    latest = rows.slice(rows.num_rows - 1).to_pylist()[0]
    what = words.cause(visit.dimensions, values)
    chosen = {name: value for name, value in zip(visit.dimensions, values, strict=True) if value is not None}
    flagged = [_flagged(row, grain) for row in reversed(rows.filter(rows["is_anomaly"]).to_pylist())]
    day = words.as_time(latest["ts"]).astype(visit.last.dtype)
    return "segment.html", {
        "title": words.named(values),
        "what": what,
        "latest": latest,
        "chosen": chosen,
        "is_rollup": None in values,
        "window": window,
        "last": last,
        "periods": len(window),
        "has_earlier": window.start > visit.span[0],
        "chart": chart_of(rows, what, grain),
        "flagged": flagged,
        "day": day,
        "share": words.share_of(latest["impact"], latest["expected"]),
        "parents": _parents(visit, values, day),
        "others": _others(visit, values, day),
        "children": _children(visit, chosen, day) if None in values else [],
        "drill": visit.link_to("/drill", chosen, day=text.stamp(day, grain)),
    }


def _values_of(visit: Visit, id_: str, window: Window) -> list[str | None]:
    """The dimension values of a segment, looked for where that is quick first. Raises Refused if it has no rows."""
    grain = window.grain
    for within in (Window(window.end - length(1, grain), window.end, grain), window):
        asked = visit.asked(within, {"segment_id": id_})
        found = visit.warehouse.asked_rows(asked, visit.dimensions, limit=1).to_pylist()
        if found:
            return [found[0][name] for name in visit.dimensions]
    raise Refused(404, f"{visit.metric_name} has no segment {words.shown(id_[:40])} in {window}.")


def _columns(visit: Visit) -> tuple[str, ...]:
    """The columns of a segment's page; a table of before may lack what explains its alerts."""
    held = visit.warehouse.table_schema(visit.project.settings.predictions_table)
    explained = ("contributions",) if held is not None and "contributions" in held.names else ()
    return (*CHARTED, "impact", "p_value", "status", "model_version", *explained)


def _flagged(row: dict[str, Any], grain: str) -> dict[str, Any]:
    row["share"] = words.share_of(row["impact"], row["expected"])
    row["why"] = [
        {"name": words.feature(name, grain), "part": part}
        for name, _, part in sorted(json.loads(row.get("contributions") or "[]"), key=lambda one: -abs(one[2]))
    ]
    return row


def _parents(visit: Visit, values: Sequence[str | None], day: np.datetime64) -> list[dict[str, Any]]:
    """The watched sums that hold the segment: the total, and those of one of its values."""
    names = visit.dimensions
    held = [tuple(v if i == kept else None for i, v in enumerate(values)) for kept in range(len(names))]
    sums = {one for one in (*held, (None,) * len(names)) if one != tuple(values)}
    levels = frozenset[Cell](level(names, one) for one in sums)
    if not levels:
        return []
    ids = pa.array([segment_id(names, one) for one in sums])
    found = _of_day(visit, day, {"level": levels}, None)
    held_by = found.filter(pc.is_in(found["segment_id"], ids)).sort_by("level").to_pylist()
    return [_named(visit, row) for row in held_by]


def _others(visit: Visit, values: Sequence[str | None], day: np.datetime64) -> list[dict[str, Any]]:
    """Segments that differ from it in one dimension alone, by the dimension; those that changed most first."""
    own = segment_id(visit.dimensions, values)
    found = []
    for at, name in enumerate(visit.dimensions):
        if values[at] is None:
            continue
        same = {
            other: frozenset[Cell]({value})
            for i, (other, value) in enumerate(zip(visit.dimensions, values, strict=True))
            if i != at and value is not None
        }
        same["level"] = frozenset({level(visit.dimensions, values)})
        rows = _of_day(visit, day, same, RELATIVES + 1).to_pylist()
        rows = [_named(visit, row) for row in rows if row["segment_id"] != own][:RELATIVES]
        if rows:
            found.append({"dimension": name, "rows": rows})
    return found


def _children(visit: Visit, chosen: Mapping[str, str], day: np.datetime64) -> list[dict[str, Any]]:
    """The segments of a roll-up that changed most."""
    among = {name: frozenset[Cell]({value}) for name, value in chosen.items()}
    rows = _of_day(visit, day, {**among, "level": frozenset({visit.metric.level})}, RELATIVES).to_pylist()
    return [_named(visit, row) for row in rows]


def _of_day(visit: Visit, day: np.datetime64, among: Mapping[str, frozenset[Cell]], limit: int | None) -> pa.Table:
    window = Window(day, day + length(1, visit.metric.grain), visit.metric.grain)
    columns = (*visit.dimensions, *_LISTED)
    return visit.warehouse.asked_rows(visit.asked_among(window, among), columns, _ORDERS["impact"], limit)
