"""The labels table: what people said of incidents and of days.

It only grows: a later row on the same thing counts in place of an earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.labels import SAID, Label, Said, followed, standing
from segwatch.core.segment import label
from segwatch.core.window import EVER, period_of, utc_of
from segwatch.data import incident_labels_schema
from segwatch.errors import DataError, UsageError
from segwatch.settings import Metric
from segwatch.warehouses.asked import Asked, Order
from segwatch.warehouses.base import Warehouse

_MOST_ASKED = 100


def read_labels(
    warehouse: Warehouse, table: str, incidents_table: str, metric_name: str, metric: Metric
) -> list[Label]:
    """What stands of a metric's labels, each as long as its incident went on; none where there is no table yet.

    Those of values of a dimension that the metric no longer has are about no segment of today's.
    """
    if warehouse.table_schema(table) is None:
        return []
    every = Asked(table, metric_name, EVER)
    rows = warehouse.asked_rows(every, order=[Order("ts"), Order("label_id")])
    said = standing(_label(row, metric) for row in rows.to_pylist() if _is_of(row, metric))
    if not said or warehouse.table_schema(incidents_table) is None:
        return said
    ids = frozenset(one.id for one in said)
    # A long list of ids takes longer to ask for than all incidents.
    among = {"incident_id": ids} if len(ids) <= _MOST_ASKED else {}
    seen = warehouse.asked_rows(Asked(incidents_table, metric_name, EVER, among), ("incident_id", "last_seen"))
    ended = seen.filter(pc.is_in(seen["incident_id"], pa.array(list(ids)))).group_by("incident_id")
    latest = ended.aggregate([("last_seen", "max")]).to_pylist()
    last_seen = {row["incident_id"]: period_of(row["last_seen_max"], metric.grain) for row in latest}
    return followed(said, last_seen)


def write_labels(
    warehouse: Warehouse, table: str, metric_name: str, metric: Metric, labels: Iterable[Label], keys: Sequence[str]
) -> int:
    """The table holds the labels too, in place of rows that are the same in the keys; returns how many.

    Raises DataError if there is no such table.
    """
    if warehouse.table_schema(table) is None:
        raise DataError(f"there is no table {table!r}: run `segwatch create`, which makes it")
    rows = [_row(one, metric_name, metric.dimensions) for one in labels]
    batches = pa.Table.from_pylist(rows, schema=incident_labels_schema().arrow()).to_batches()
    return warehouse.insert(table, batches, keys)


def _row(one: Label, metric_name: str, dimensions: Sequence[str]) -> dict[str, object]:
    named = {name: value for name, value in zip(dimensions, one.values, strict=True) if value is not None}
    return {
        "metric": metric_name,
        "label_id": one.id,
        "ts": one.at,
        "author": one.author,
        "label": one.said,
        "first_ts": utc_of(one.first),
        "last_ts": utc_of(one.last),
        "direction": one.direction,
        "dimensions": json.dumps(named, ensure_ascii=False),
        "alarms": json.dumps([list(pair) for pair in one.alarms]),
        "note": one.note or None,
    }


def _is_of(row: Mapping[str, Any], metric: Metric) -> bool:
    return set(json.loads(row["dimensions"])) <= set(metric.dimensions)


def _label(row: Mapping[str, Any], metric: Metric) -> Label:
    """Inverse of `_row`."""
    named = json.loads(row["dimensions"])
    first, last = (period_of(row[name], metric.grain) for name in ("first_ts", "last_ts"))
    return Label(
        id=row["label_id"],
        said=row["label"],
        at=row["ts"],
        author=row["author"],
        values=tuple(named.get(name) for name in metric.dimensions),
        first=first,
        last=last,
        direction=row["direction"],
        alarms=tuple((id_, p) for id_, p in json.loads(row["alarms"])),
        note=row["note"] or "",
    )


def label_facts(one: Label) -> dict[str, object]:
    """A label for people and machines."""
    return {
        "id": one.id,
        "label": one.said,
        "cause": label(one.values),
        "direction": one.direction,
        "first": str(one.first),
        "last": str(one.last),
        "author": one.author,
        "at": one.at.isoformat(timespec="seconds"),
        "note": one.note,
    }


def parse_said(text: str) -> Said:
    """What a label says. Raises UsageError if it is none of what can be said of an incident."""
    known = {said: said for said in SAID if said != "snooze"}
    if text not in known:
        raise UsageError(f"{text!r} is no label: say one of {', '.join(known)}")
    return known[text]
