"""The view that goes down through the dimensions: where a period's change comes from."""

from __future__ import annotations

import math
from typing import Any

from segwatch.core.segment import segment_id
from segwatch.core.window import Window, length
from segwatch.report import text
from segwatch.ui import words
from segwatch.ui.visit import Visit

SHOWN = 100
"""Values on a page."""


def drill(visit: Visit) -> tuple[str, dict[str, Any]]:
    """The values of a dimension under those already chosen, the largest change first."""
    grain, chosen = visit.metric.grain, visit.values
    day = visit.period("day", visit.last)
    free = [name for name in visit.dimensions if name not in chosen]
    facts = {
        "title": "Drill down",
        "day": day,
        "chosen": _crumbs(visit, day),
        "free": [(name, words.shown(name)) for name in free],
    }
    if not free:
        id_ = segment_id(visit.dimensions, [chosen[name] for name in visit.dimensions])
        return "drill.html", facts | {"by": "", "rows": [], "segment": visit.link(f"/segments/{id_}")}
    by = visit.choice("by", *free)
    window = Window(day, day + length(1, grain), grain)
    asked = visit.asked(window, {"level": visit.metric.level, **chosen})
    rows = visit.warehouse.prediction_sums(
        asked, (by,), ("n_rows", "n_anomalies", "value", "expected", "weight")
    ).to_pylist()
    kind = visit.metric.feature_set.kind
    for row in rows:
        row["impact"] = None if row["value"] is None else row["value"] - row["expected"]
        row["share"] = words.share_of(row["impact"], row["expected"])
        if kind != "count" and row["weight"]:
            # What cannot be added up is shown as its mean, and ranked by what it adds to it.
            row["value"], row["expected"] = row["value"] / row["weight"], row["expected"] / row["weight"]
    net = sum(row["impact"] or 0.0 for row in rows)
    rows.sort(key=lambda row: (-abs(row["impact"] or 0.0), str(row[by])))
    largest = max((abs(row["impact"] or 0.0) for row in rows), default=0.0) or 1.0
    rest = [name for name in free if name != by]
    page = visit.number("page", 1)
    shown = rows[(page - 1) * SHOWN : page * SHOWN]
    for row in shown:
        row["name"] = words.shown(row[by])
        row["bar"] = round(100 * abs(row["impact"] or 0.0) / largest, 1)
        row["of_change"] = (row["impact"] or 0.0) / net if net else None
        row["link"] = _next(visit, {**chosen, by: row[by]}, rest, day)
    return "drill.html", facts | {
        "by": by,
        "rows": shown,
        "n": len(rows),
        "page": page,
        "n_pages": math.ceil(len(rows) / SHOWN),
        "net": net,
        "kind": kind,
        "segment": visit.link(f"/segments/{segment_id(visit.dimensions, [chosen.get(n) for n in visit.dimensions])}")
        if len(chosen) <= 1
        else "",
    }


def _next(visit: Visit, values: dict[str, str], rest: list[str], day: Any) -> str:
    """Where a value leads: to its own values of the next dimension, or to the segment where there is none."""
    if rest:
        return visit.link_to("/drill", values, day=text.stamp(day, visit.metric.grain), by=rest[0])
    return visit.link(f"/segments/{segment_id(visit.dimensions, [values[name] for name in visit.dimensions])}")


def _crumbs(visit: Visit, day: Any) -> list[dict[str, str]]:
    """The values chosen, each with the way back to before it."""
    when = text.stamp(day, visit.metric.grain)
    return [
        {
            "name": name,
            "value": words.shown(value),
            "without": visit.link_to("/drill", {n: v for n, v in visit.values.items() if n != name}, day=when, by=name),
        }
        for name, value in visit.values.items()
    ]
