"""The audit table: who labelled, snoozed or promoted what, and when."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import pyarrow as pa

from segwatch.core.window import EVER
from segwatch.data import audit_schema
from segwatch.warehouses.asked import Asked, Order
from segwatch.warehouses.base import Warehouse

Action = Literal["label", "snooze", "promote", "rollback", "import"]


def write_audit(
    warehouse: Warehouse,
    table: str,
    metric_name: str,
    now: dt.datetime,
    *,
    author: str,
    action: Action,
    subject: str,
    detail: str,
) -> None:
    """The audit table says who did what; nothing where there is no such table, in a project of before."""
    if warehouse.table_schema(table) is None:
        return
    row = {
        "metric": metric_name, "ts": now, "author": author, "action": action, "subject": subject, "detail": detail,
    }  # fmt: skip
    batches = pa.Table.from_pylist([row], schema=audit_schema().arrow()).to_batches()
    warehouse.insert(table, batches, list(row))


def audit_of(warehouse: Warehouse, table: str, metric_name: str, limit: int | None = None) -> pa.Table:
    """Rows of the audit table, the latest first; none where there is no such table."""
    if warehouse.table_schema(table) is None:
        return audit_schema().arrow().empty_table()
    return warehouse.asked_rows(Asked(table, metric_name, EVER), order=[Order("ts", "down")], limit=limit)
