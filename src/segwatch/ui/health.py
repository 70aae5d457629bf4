"""The view of what the page rests on: whether the data arrived, whether it could be scored, and by which model."""

from __future__ import annotations

from typing import Any

import numpy as np

from segwatch.core.window import Window, length
from segwatch.errors import ModelError
from segwatch.gaps import gaps_of
from segwatch.report import text
from segwatch.steps import model_name
from segwatch.ui import words
from segwatch.ui.visit import Visit
from segwatch.warehouses.asked import Order

_LOOK_BACK = 28
_MOST_SHOWN = 50


def health(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Rows by status period by period, and for one of them the data that did not arrive and the unscored segments."""
    grain = visit.metric.grain
    day = visit.period("day", visit.last)
    sums = visit.warehouse.prediction_sums(
        visit.asked(visit.window_to(visit.last, _LOOK_BACK)), ("ts", "status"), ("n_rows", "scored_at")
    ).to_pylist()
    statuses = sorted({row["status"] for row in sums}, key=lambda status: (status != "ok", status))
    periods: dict[Any, dict[str, Any]] = {}
    for row in sums:
        one = periods.setdefault(row["ts"], {"ts": row["ts"], "counts": {}, "scored_at": row["scored_at"]})
        one["counts"][row["status"]] = row["n_rows"]
        one["scored_at"] = max(one["scored_at"], row["scored_at"])
    ordered = [periods[ts] for ts in sorted(periods, reverse=True)]
    for one in ordered:
        one["link"] = visit.link("/health", day=words.stamp(one["ts"], grain))
        ended = words.as_time(one["ts"]) + length(1, grain)
        one["lag"] = text.age((words.as_time(one["scored_at"]) - ended).astype("timedelta64[us]").item())
    return "health.html", {
        "title": "Health",
        "day": day,
        "statuses": statuses,
        "periods": ordered,
        "model": _model(visit),
        "age": text.age(
            visit.now.replace(tzinfo=None) - (visit.last + length(1, grain)).astype("datetime64[us]").item()
        ),
        **_of_day(visit, day),
    }


def _of_day(visit: Visit, day: np.datetime64) -> dict[str, Any]:
    """Gaps and unscored segments of a period."""
    grain, names = visit.metric.grain, visit.dimensions
    window = Window(day, day + length(1, grain), grain)
    unscored = {"no_data", "new_segment", "too_short", "ended"}
    asked = visit.asked_among(window, {"status": frozenset(unscored)})
    columns = (*names, "segment_id", "status", "reason")
    silent = visit.warehouse.asked_rows(asked, columns, [Order("status"), Order("segment_id")], _MOST_SHOWN).to_pylist()
    n_silent = visit.warehouse.prediction_sums(asked, (), ("n_rows",)).to_pylist()[0]["n_rows"]
    gaps = []
    if any(row["status"] == "no_data" for row in silent):
        rows = visit.warehouse.asked_rows(visit.asked(window), ("ts", *names, "status", "reason", "value"))
        gaps = list(gaps_of(rows, names, grain))
    for row in silent:
        row["name"] = visit.name_of(row)
        row["link"] = visit.link(f"/segments/{row['segment_id']}")
    return {"silent": silent, "n_silent": n_silent, "gaps": gaps[:_MOST_SHOWN], "n_gaps": len(gaps)}


def _model(visit: Visit) -> dict[str, Any] | None:
    """The champion and its age; None where there is none."""
    try:
        version = visit.project.registry().resolve(model_name(visit.metric_name))
    except ModelError:
        return None
    return {
        "version": version.version,
        "age": text.age(visit.now - version.created_at),
        "window": (version.parameters.get("window_start", "?"), version.parameters.get("window_end", "?")),
    }
