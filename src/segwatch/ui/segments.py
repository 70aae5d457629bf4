"""The views of segments: the list with search and filters, and the page of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.explanation import from_json
from segwatch.core.labels import Label
from segwatch.core.segment import holds, level
from segwatch.core.window import Window, length
from segwatch.core.words import feature_words, sentences, shares
from segwatch.detectability import detectable_of
from segwatch.explanations import ScoredPeriod
from segwatch.incidents import incidents_of
from segwatch.report import text
from segwatch.run import labels_of
from segwatch.ui import words
from segwatch.ui.charts import CHARTED, drawing
from segwatch.ui.guard import Refused
from segwatch.ui.labels import said_of
from segwatch.ui.visit import PERIODS, Visit
from segwatch.warehouses.asked import Asked, Cell, Order, words_of

SHOWN = 50
"""Segments on a page."""
RELATIVES = 8
"""Segments of each kind that a segment's page names."""
STATUSES = ("ok", "new_segment", "too_short", "no_data", "ended")
_MOST_PERIODS = 1000
_LISTED = ("segment_id", "level", "value", "expected", "impact", "p_value", "is_anomaly", "direction", "status")
_EXPLAINED = (
    *_LISTED, "ts", "denominator", "lower", "upper", "impact_share", "score", "prediction", "reason", "model_version"
)  # fmt: skip
_OF_SEGMENT = (*CHARTED, "impact", "p_value", "status", "model_version")
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
    rows = visit.warehouse.asked_rows(
        visit.of_segment(window, values), (*_OF_SEGMENT, *_explaining(visit)), [Order("ts")]
    )
    latest = rows.slice(rows.num_rows - 1).to_pylist()[0]
    what = words.cause(visit.dimensions, values)
    chosen = {name: value for name, value in zip(visit.dimensions, values, strict=True) if value is not None}
    flagged = [_flagged(visit, row) for row in reversed(rows.filter(rows["is_anomaly"]).to_pylist())]
    day = visit.period("day", words.as_time((flagged[0] if flagged else latest)["ts"]).astype(visit.last.dtype))
    with drawing(rows, what, grain) as chart:
        around = _around(visit, values, day)
        read = {
            **_told(visit, id_, day, around),
            "labels": _labels(visit, values),
            **_named_around(visit, values, around),
            "children": _children(visit, chosen, day) if None in values else [],
        }
    return "segment.html", {
        "title": words.named(values),
        "what": what,
        "latest": latest,
        "chosen": chosen,
        "is_rollup": None in values,
        "window": window,
        "last": last,
        "periods": len(window),
        "usual": PERIODS,
        "has_earlier": window.start > visit.span[0],
        "chart": chart.result(),
        "flagged": flagged,
        "day": day,
        "share": words.share_of(latest["impact"], latest["expected"]),
        **read,
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


def _explaining(visit: Visit) -> tuple[str, ...]:
    """The column of what made an alert; a table of before may lack it."""
    held = visit.warehouse.table_schema(visit.project.settings.predictions_table)
    return ("contributions",) if held is not None and "contributions" in held.names else ()


def _flagged(visit: Visit, row: dict[str, Any]) -> dict[str, Any]:
    grain = visit.metric.grain
    row["share"] = words.share_of(row["impact"], row["expected"])
    row["why"] = [
        {"name": words.shown(feature_words(one.part, grain)), "part": one.share}
        for one in shares(from_json(row.get("contributions")))
    ]
    row["link"] = visit.here(day=text.stamp(words.as_time(row["ts"]), grain)) + "#why"
    return row


def _labels(visit: Visit, values: Sequence[str | None]) -> list[dict[str, str]]:
    """What people said of the segment, or of what holds it, the latest first."""
    theirs = [one for one in labels_of(visit.run) if holds(one.values, values)]
    return [{**said_of(one), "of": words.named(one.values), "span": _span(one)} for one in reversed(theirs)]


def _span(one: Label) -> str:
    return str(one.first) if one.first == one.last else f"{one.first} to {one.last}"


def _told(visit: Visit, id_: str, day: np.datetime64, around: pa.Table) -> dict[str, Any]:
    """Why the segment alerted on a period or did not, in sentences, none where it has no row; and its incident."""
    if id_ not in around["segment_id"].to_pylist():
        return {"told": [], "incident": ""}
    window, settings = _day(visit, day), visit.project.settings
    said = incidents_of(visit.warehouse, settings.incidents_table, visit.metric_name, visit.metric, window)
    scored = ScoredPeriod(visit.metric_name, visit.metric, around, said)
    notices = detectable_of(visit.warehouse, settings.detectability_table, visit.metric_name, visit.metric.grain, id_)
    found = scored.explanation(scored.find(id_), notices)
    if found.verdict == "chance":
        [of_day] = visit.warehouse.prediction_sums(visit.asked(window), (), ("n_rows",)).to_pylist()
        found = replace(found, n_rows=of_day["n_rows"])
    link = visit.link(f"/incidents/{found.incident.id}") if found.incident else ""
    return {"told": [words.shown(sentence) for sentence in sentences(found)], "incident": link}


def _around(visit: Visit, values: Sequence[str | None], day: np.datetime64) -> pa.Table:
    """The row of a segment, of the watched sums that hold it, and of those that differ from it in one dimension alone.

    Those that changed most come first.
    """
    names, own_level = visit.dimensions, level(visit.dimensions, values)
    known = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    if len(known) >= 2:
        most = min(visit.metric.max_rollup_order, len(known) - 1)
        parents = [_exactly(visit, dict(some)) for n in range(most + 1) for some in combinations(known.items(), n)]
        others = [_kind(own_level, {n: v for n, v in known.items() if n != name}) for name in known]
        return _rows_of(visit, day, [*parents, *others])
    itself = _rows_of(visit, day, [_exactly(visit, {}), _exactly(visit, known)])
    if not known:
        return itself
    # All of its kind differ from it in its one dimension: too many to read.
    beside = _rows_of(visit, day, [_kind(own_level, {})], RELATIVES + 1)
    return pa.concat_tables([itself, beside.filter(pc.invert(pc.is_in(beside["segment_id"], itself["segment_id"])))])


def _named_around(visit: Visit, values: Sequence[str | None], around: pa.Table) -> dict[str, Any]:
    """What is around a segment, without itself: sums that hold it, and by the dimension those beside it."""
    names, own_level = visit.dimensions, level(visit.dimensions, values)
    known = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    rows = [_named(visit, row) for row in around.select([*visit.dimensions, *_LISTED]).to_pylist()]
    held_by = sorted((row for row in rows if row["level"] != own_level), key=lambda row: str(row["level"]))
    beside = {
        name: [row for row in rows if row["level"] == own_level and row[name] != known[name]][:RELATIVES]
        for name in known
    }
    return {"parents": held_by, "others": [{"dimension": n, "rows": found} for n, found in beside.items() if found]}


def _rows_of(
    visit: Visit, day: np.datetime64, either: Sequence[Mapping[str, frozenset[Cell]]], limit: int | None = None
) -> pa.Table:
    """Rows of a period that are of one of these kinds."""
    asked = replace(visit.asked(_day(visit, day)), either=tuple(either))
    return visit.warehouse.asked_rows(
        asked, (*visit.dimensions, *_EXPLAINED, *_explaining(visit)), _ORDERS["impact"], limit
    )


def _exactly(visit: Visit, values: Mapping[str, str]) -> dict[str, frozenset[Cell]]:
    """A roll-up of these values, as it is asked for."""
    return _kind(level(visit.dimensions, [values.get(name) for name in visit.dimensions]), values)


def _kind(of_level: str, values: Mapping[str, str]) -> dict[str, frozenset[Cell]]:
    """Segments or roll-ups of a level with these values, as they are asked for."""
    return {"level": frozenset({of_level}), **{name: frozenset({value}) for name, value in values.items()}}


def _children(visit: Visit, chosen: Mapping[str, str], day: np.datetime64) -> list[dict[str, Any]]:
    """The segments of a roll-up that changed most."""
    rows = _rows_of(visit, day, [_kind(visit.metric.level, chosen)], RELATIVES)
    return [_named(visit, row) for row in rows.to_pylist()]


def _day(visit: Visit, day: np.datetime64) -> Window:
    return Window(day, day + length(1, visit.metric.grain), visit.metric.grain)
