"""The views of segments: the list with search and filters, and the page of one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segwatch.core.segment import level
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
    day = visit.period("day", visit.last)
    kind = visit.choice("kind", "segments", "rollups", "all")
    status, flagged = visit.choice("status", "", *STATUSES), visit.choice("flagged", "", "yes")
    order, page = visit.choice("order", *_ORDERS), visit.number("page", 1, 100_000)
    asked = _asked(visit, _day(visit, day), kind, status, flagged)
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
        **_around(visit, values, day),
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


def _around(visit: Visit, values: Sequence[str | None], day: np.datetime64) -> dict[str, Any]:
    """The watched sums that hold a segment, and those that differ from it in one dimension alone, by the dimension.

    Those that changed most come first.
    """
    names, own_level = visit.dimensions, level(visit.dimensions, values)
    known = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    if len(known) < 2:
        # All of its kind differ from it in its one dimension: too many to read.
        parents, others = ([_exactly(visit, {})] if known else []), [_kind(own_level, {})] if known else []
        rows = [*_of_day(visit, day, parents, None), *_of_day(visit, day, others, RELATIVES + 1)]
    else:
        parents = [_exactly(visit, one) for one in ({}, *({name: value} for name, value in known.items()))]
        others = [_kind(own_level, {n: v for n, v in known.items() if n != name}) for name in known]
        rows = _of_day(visit, day, [*parents, *others], None)
    held_by = sorted((row for row in rows if row["level"] != own_level), key=lambda row: str(row["level"]))
    beside = {
        name: [row for row in rows if row["level"] == own_level and row[name] != known[name]][:RELATIVES]
        for name in known
    }
    return {"parents": held_by, "others": [{"dimension": n, "rows": found} for n, found in beside.items() if found]}


def _of_day(
    visit: Visit, day: np.datetime64, either: Sequence[Mapping[str, frozenset[Cell]]], limit: int | None
) -> list[dict[str, Any]]:
    if not either:
        return []
    asked = replace(visit.asked(_day(visit, day)), either=tuple(either))
    rows = visit.warehouse.asked_rows(asked, (*visit.dimensions, *_LISTED), _ORDERS["impact"], limit)
    return [_named(visit, row) for row in rows.to_pylist()]


def _exactly(visit: Visit, values: Mapping[str, str]) -> dict[str, frozenset[Cell]]:
    """A roll-up of these values, as it is asked for."""
    return _kind(level(visit.dimensions, [values.get(name) for name in visit.dimensions]), values)


def _kind(of_level: str, values: Mapping[str, str]) -> dict[str, frozenset[Cell]]:
    """Segments or roll-ups of a level with these values, as they are asked for."""
    return {"level": frozenset({of_level}), **{name: frozenset({value}) for name, value in values.items()}}


def _children(visit: Visit, chosen: Mapping[str, str], day: np.datetime64) -> list[dict[str, Any]]:
    """The segments of a roll-up that changed most."""
    return _of_day(visit, day, [_kind(visit.metric.level, chosen)], RELATIVES)


def _day(visit: Visit, day: np.datetime64) -> Window:
    return Window(day, day + length(1, visit.metric.grain), visit.metric.grain)
