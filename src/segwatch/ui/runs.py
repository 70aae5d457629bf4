"""The views of what was run: scorings, and backtests side by side."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from segwatch.core.window import Window, length
from segwatch.ui import words
from segwatch.ui.visit import Visit
from segwatch.warehouses.asked import Asked, Cell, Order

_LOOK_BACK = 35
_MOST_BACKTESTS = 4
_MOST_WEEKS = 400


def runs(visit: Visit) -> tuple[str, dict[str, Any]]:
    """The runs that wrote the predictions of the last periods, the latest first."""
    window = visit.window_to(visit.last, _LOOK_BACK)
    version = visit.parameter("version")
    among: dict[str, frozenset[Cell]] = {"model_version": frozenset({version})} if version else {}
    rows = visit.warehouse.prediction_sums(
        visit.asked_among(window, among),
        ("run_id", "model_version"),
        ("n_rows", "n_anomalies", "first", "last", "scored_at"),
    )
    rows = rows.sort_by([("scored_at", "descending"), ("run_id", "descending")])
    return "runs.html", {"title": "Runs", "rows": rows.to_pylist(), "window": window, "version": version}


def backtests(visit: Visit) -> tuple[str, dict[str, Any]]:
    """The last backtests side by side: what would have alerted in each of their spans."""
    now = np.datetime64(visit.now.replace(tzinfo=None), "D")
    window = Window(now - length(3650, "day"), now + length(2, "day"), "day")
    asked = Asked(visit.project.settings.backtests_table, visit.metric_name, window)
    if visit.warehouse.table_schema(asked.table) is None:
        rows = []
    else:
        order = [Order("ts", "down"), Order("start")]
        rows = visit.warehouse.asked_rows(asked, order=order, limit=_MOST_WEEKS).to_pylist()
    made: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = made.setdefault(row["run_id"], {"of": row, "weeks": {}, "n_alerts": 0, "n_scored": 0})
        one["weeks"][row["start"], row["stop"]] = row | {
            "worst": [(words.shown(name), n, impact) for name, n, impact in json.loads(row["worst"])]
        }
        one["n_alerts"] += row["n_anomalies"]
        one["n_scored"] += row["n_scored"]
    shown = list(made.values())[:_MOST_BACKTESTS]
    spans = sorted({span for one in shown for span in one["weeks"]}, reverse=True)
    example = now - length(28, "day"), now
    return "backtests.html", {"title": "Backtests", "shown": shown, "spans": spans, "n": len(made), "example": example}
