"""The views of incidents: the list that the page opens with, and one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.window import EVER, Window, length
from segwatch.incidents import known
from segwatch.report import text
from segwatch.ui import words
from segwatch.ui.charts import CHARTED, drawing, summed
from segwatch.ui.guard import Refused
from segwatch.ui.labels import CHOICES, labels_by_incident, said_of
from segwatch.ui.visit import PERIODS, Moved, Visit, address
from segwatch.warehouses.asked import Asked, Cell, Order, words_of

SHOWN = 25
"""Incidents on a page, and segments of one."""
_LOOK_BACK = 90
_SPARK_PERIODS, _SPARK_AFTER = 28, 7
# Periods over which the incidents on a page may lie, to have a line each.
_SPARKS_OVER = 60
# Segments of which many can be looked up by their ids in no time.
_QUICK = 20_000
_LISTED = (
    "incident_id",
    "ts",
    "status",
    "direction",
    "first_seen",
    "last_seen",
    "level",
    "segment_id",
    "impact",
    "impact_share",
    "change_share",
    "total_impact",
    "n_segments",
)


def incidents(visit: Visit) -> tuple[str, dict[str, Any]]:
    """What broke: the open incidents first, those of the largest impact first."""
    last, grain = visit.last, visit.metric.grain
    start = visit.period("start", last - length(_LOOK_BACK - 1, grain))
    end = visit.period("end", last + length(1, grain))
    window = _window(visit, start, end)
    status, direction = visit.choice("status", "all", "open", "resolved"), visit.choice("direction", "", "up", "down")
    among: dict[str, frozenset[Cell]] = {name: frozenset({value}) for name, value in visit.values.items()}
    if direction:
        among["direction"] = frozenset({direction})
    columns = [*_LISTED, *visit.dimensions]
    found = known(visit.warehouse.asked_rows(_asked(visit, window, among), columns))
    found = _searched(found, visit)
    is_over = pc.equal(found["status"], "resolved")
    n_open = found.num_rows - int(pc.sum(is_over).as_py() or 0)
    if status != "all":
        found = found.filter(is_over if status == "resolved" else pc.invert(is_over))
    ranked = _ranked(found)
    page = visit.number("page", 1)
    rows = ranked.slice((page - 1) * SHOWN, SHOWN).to_pylist()
    latest = _latest(visit)
    labels = labels_by_incident(visit)
    sparks = _sparks(visit, rows, latest["n_segments"])
    for row in rows:
        row["said"] = words.sentence(row, grain)
        row["spark"] = sparks.get(row["incident_id"])
        row["labels"] = [said_of(one)["said"] for one in labels.get(row["incident_id"], ())]
        row["is_open"] = row["status"] != "resolved"
        row["link"] = visit.link(f"/incidents/{row['incident_id']}")
    return "incidents.html", {
        "title": "Incidents",
        "rows": rows,
        "n": found.num_rows,
        "n_open": n_open,
        "page": page,
        "n_pages": math.ceil(found.num_rows / SHOWN),
        "window": window,
        "status": status,
        "direction": direction,
        "latest": latest,
    }


def _latest(visit: Visit) -> dict[str, Any]:
    """What the last period had: segments, and alerts of segments and of roll-ups together."""
    of_last = visit.asked(visit.window_to(visit.last, 1))
    sums = visit.warehouse.prediction_sums(of_last, ("level",), ("n_rows", "n_anomalies"))
    by_level = {row["level"]: row for row in sums.to_pylist()}
    return {
        "n_segments": by_level.get(visit.metric.level, {}).get("n_rows", 0),
        "n_alerts": sum(row["n_anomalies"] for row in by_level.values()),
    }


def _window(visit: Visit, start: np.datetime64, end: np.datetime64) -> Window:
    if not start < end:
        raise Refused(400, f"start {start} is not before end {end}: no period lies between them.")
    return Window(start, end, visit.metric.grain)


def _asked(visit: Visit, window: Window, among: Mapping[str, frozenset[Cell]]) -> Asked:
    return Asked(visit.project.settings.incidents_table, visit.metric_name, window, among)


def _searched(found: pa.Table, visit: Visit) -> pa.Table:
    """Those of the incidents that hold every word of the search in a dimension value."""
    for word in words_of(visit.parameter("q")):
        is_found: Any = pa.scalar(False)
        for name in visit.dimensions:
            is_found = pc.or_(is_found, pc.fill_null(pc.match_substring(found[name], word, ignore_case=True), False))
        if found.num_rows:
            found = found.filter(is_found)
    return found


def _ranked(found: pa.Table) -> pa.Table:
    if not found.num_rows:
        return found
    is_over = pc.equal(found["status"], "resolved")
    keys = pa.table(
        {"over": pc.cast(is_over, pa.int8()), "size": pc.abs(found["total_impact"]), "id": found["incident_id"]}
    )
    order = [("over", "ascending"), ("size", "descending"), ("id", "ascending")]
    return found.take(pc.sort_indices(keys, sort_keys=order))


def _sparks(visit: Visit, rows: Sequence[Mapping[str, Any]], n_segments: int) -> dict[str, Any]:
    """The weeks around each incident, of causes that are watched themselves, by the incident's id."""
    grain = visit.metric.grain
    ends = {
        row["incident_id"]: min(visit.last, _period(visit, row["last_seen"]) + length(_SPARK_AFTER, grain))
        for row in rows
    }
    if not ends:
        return {}
    is_quick = n_segments <= _QUICK
    window = visit.window_to(max(ends.values()), _SPARKS_OVER if is_quick else _SPARK_PERIODS)
    asked = [replace(visit.asked(window), without={"level": visit.metric.level})]
    of_segments = frozenset[Cell](row["segment_id"] for row in rows if row["level"] == visit.metric.level)
    if of_segments and is_quick:
        asked.append(visit.asked_among(window, {"segment_id": of_segments}))
    columns = ("ts", "segment_id", "value", "expected")
    series = pa.concat_tables([visit.warehouse.asked_rows(one, columns) for one in asked]).sort_by("ts")
    found = {}
    for row in rows:
        start, end = (
            words.as_scalar(time)
            for time in (ends[row["incident_id"]] - length(_SPARK_PERIODS, grain), ends[row["incident_id"]])
        )
        is_own = pc.equal(series["segment_id"], row["segment_id"])
        is_near = pc.and_(pc.greater(series["ts"], start), pc.less_equal(series["ts"], end))
        own = series.filter(pc.and_(is_own, is_near))
        found[row["incident_id"]] = words.sparkline(own["value"].to_pylist(), own["expected"].to_pylist(), 120, 28)
    return found


def _period(visit: Visit, time: Any) -> np.datetime64:
    return words.as_time(time).astype(visit.last.dtype)


def incident(visit: Visit) -> tuple[str, dict[str, Any]]:
    """One incident: its chart, the segments that it is made of, and how it went on."""
    id_ = visit.request.path_params["id"]
    said = visit.warehouse.asked_rows(_asked(visit, EVER, {"incident_id": frozenset({id_})}), order=[Order("ts")])
    if not said.num_rows:
        _look_elsewhere(visit, id_)
        raise Refused(404, f"There is no incident {words.shown(id_[:40])} of {visit.metric_name}.")
    one = known(said).to_pylist()[0]
    values = {name: one[name] for name in visit.dimensions if one[name] is not None}
    periods = [row for row in said.to_pylist() if row["status"] != "resolved"]
    grain = visit.metric.grain
    day = visit.period("day", _period(visit, one["worst_ts"]))
    with drawing(_charted(visit, one, values), visit.cause_of(one), grain) as chart:
        labels = labels_by_incident(visit).get(id_, [])
        segments = _segments(visit, values, day, one["direction"])
    return "incident.html", {
        "title": visit.cause_of(one),
        "one": one,
        "said": words.sentence(one, grain),
        "values": values,
        "periods": periods,
        "day": day,
        "chart": chart.result(),
        "segments": segments,
        "labels": [said_of(label) for label in labels],
        "is_labelled": any(label.said != "snooze" for label in labels),
        "choices": CHOICES,
        "is_segment": one["level"] == visit.metric.level,
        "drill": visit.link_to("/drill", values, day=text.stamp(day, grain)),
        "segment": visit.link(f"/segments/{one['segment_id']}"),
    }


def _look_elsewhere(visit: Visit, id_: str) -> None:
    """Raises Moved if the incident is another metric's: links in alerts do not say of which one it is."""
    if visit.parameter("metric"):
        return
    settings = visit.project.settings
    for name in settings.metrics:
        asked = Asked(settings.incidents_table, name, EVER, {"incident_id": frozenset({id_})})
        if visit.warehouse.asked_rows(asked, ("ts",), limit=1).num_rows:
            raise Moved(address(visit.request.url.path, {"metric": name}))


def _segments(visit: Visit, values: Mapping[str, str], day: np.datetime64, direction: str) -> list[dict[str, Any]]:
    """The cause's segments on a period, those that changed most in its direction first."""
    window = Window(day, day + length(1, visit.metric.grain), visit.metric.grain)
    columns = (
        *visit.dimensions,
        "segment_id",
        "value",
        "expected",
        "impact",
        "is_anomaly",
        "direction",
        "p_value",
        "status",
    )
    order = [Order("impact", "up" if direction == "down" else "down"), Order("segment_id")]
    asked = visit.asked(window, {"level": visit.metric.level, **values})
    rows: list[dict[str, Any]] = visit.warehouse.asked_rows(asked, columns, order, SHOWN).to_pylist()
    for row in rows:
        row["name"] = visit.name_of(row)
        row["share"] = words.share_of(row["impact"], row["expected"])
        row["link"] = visit.link(f"/segments/{row['segment_id']}")
    return rows


def _charted(visit: Visit, one: Mapping[str, Any], values: Mapping[str, str]) -> pa.Table | None:
    """Value against expected of the cause over the weeks before it and after: its own rows where it is watched."""
    grain = visit.metric.grain
    first, last = (_period(visit, one[name]) for name in ("first_seen", "last_seen"))
    end = min(visit.last, last + length(14, grain))
    periods = max(PERIODS, int((end - first) / length(1, grain)) + 14)
    window = visit.window_to(end, min(periods, 400))
    is_watched = visit.warehouse.asked_rows(
        visit.asked(visit.window_to(last, 1), {"segment_id": one["segment_id"]}), ("ts",), limit=1
    ).num_rows
    if is_watched:
        of = visit.of_segment(window, [one[name] for name in visit.dimensions])
        return visit.warehouse.asked_rows(of, CHARTED)
    if visit.metric.feature_set.kind == "value":
        return None
    sums = visit.warehouse.prediction_sums(
        visit.asked(window, {"level": visit.metric.level, **values}), ("ts",), ("value", "expected", "weight")
    )
    return summed(sums, visit.metric.feature_set.kind == "ratio")
