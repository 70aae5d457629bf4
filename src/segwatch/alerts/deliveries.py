"""The deliveries table: every message that was sent or tried, so that none is sent twice and none is forgotten.

A message is written down as `sending` before it is sent, and as `delivered` or `failed` after. A run that dies in
between leaves `sending`: nobody knows whether it arrived, so it is not sent again, and the next run says so. A run
sends only what no other has written down; of two that do so at the same moment neither may, and the next run does.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from segwatch.alerts.plan import Message, Told
from segwatch.core.window import Grain, Window, unit
from segwatch.data import deliveries_schema
from segwatch.warehouses.asked import Asked, Order
from segwatch.warehouses.base import Warehouse

State = Literal["sending", "delivered", "failed", "unknown", "withdrawn", "empty"]

# Incidents that last longer are told of anew.
_REMEMBERED_DAYS = 180
# A run that has been sending for so long is dead.
_ALIVE = dt.timedelta(minutes=15)
_TOLD = ("sending", "delivered", "unknown")
# Of a digest that told of nothing: what comes later that day waits for the next one.
_DONE = (*_TOLD, "empty")


@dataclass(frozen=True)
class Delivery:
    """A row of the table."""

    id: str
    at: dt.datetime
    rule: str
    channel: str
    state: State
    title: str
    told: tuple[Told, ...]
    day: dt.date | None
    run_id: str

    def tells_of(self, other: Delivery) -> bool:
        """Whether both tell the same channel the same of an incident, or are digests of one day."""
        if (self.rule, self.channel) != (other.rule, other.channel):
            return False
        if self.day is not None or other.day is not None:
            return self.day == other.day
        return not {told.news for told in self.told}.isdisjoint(told.news for told in other.told)


class Deliveries:
    """What was delivered of a metric."""

    def __init__(
        self,
        warehouse: Warehouse,
        table: str,
        metric: str,
        grain: Grain,
        run_id: str,
        clock: Callable[[], dt.datetime],
    ) -> None:
        """clock: UTC, not the run's time, which may lie hours before it sends."""
        self._warehouse = warehouse
        self._table = table
        self._metric = metric
        self._grain = grain
        self._run_id = run_id
        self._clock = clock

    def read(self) -> list[Delivery]:
        """The deliveries of the last half year, in the order of time."""
        today = np.datetime64(self._clock().replace(tzinfo=None), "D")
        window = Window(today - np.timedelta64(_REMEMBERED_DAYS, "D"), today + np.timedelta64(2, "D"))
        every = Asked(self._table, self._metric, window)
        rows = self._warehouse.asked_rows(every, order=[Order("ts"), Order("delivery_id")])
        return [self._delivery(row) for row in rows.to_pylist()]

    def begin(self, message: Message) -> Delivery | None:
        """It is written down that the message is being sent; None where another run has done so."""
        ours = self._of(message)
        if self._is_told_by_others(ours):
            return None
        self._insert(ours, "sending")
        # Who reads after it has written sees all who may have read before that.
        if not self._is_told_by_others(ours):
            return ours
        self._insert(ours, "withdrawn")
        return None

    def skip(self, message: Message) -> None:
        """It is written down that the message, a digest, has nothing to tell."""
        self._insert(self._of(message), "empty")

    def _of(self, message: Message) -> Delivery:
        return Delivery(
            message.id, self._clock(), message.rule, message.channel, "sending", message.title, message.told,
            message.day, self._run_id,
        )  # fmt: skip

    def _is_told_by_others(self, ours: Delivery) -> bool:
        others = (one for one in self.read() if one.run_id != self._run_id and one.state in _TOLD)
        return any(one.tells_of(ours) for one in others)

    def end(self, ours: Delivery, error: str | None) -> None:
        """It is written down that what was begun was delivered, or why not."""
        self._insert(ours, "delivered" if error is None else "failed", error)

    def settle(self, found: Sequence[Delivery]) -> list[Delivery]:
        """Those that a dead run was sending, which are unknown from now on."""
        lost = [one for one in found if one.state == "sending" and one.at < self._clock() - _ALIVE]
        for one in lost:
            self._insert(one, "unknown", "the run died while it was sent")
        return lost

    def _insert(self, one: Delivery, state: State, error: str | None = None) -> None:
        told: list[Any] = [[each.incident_id, each.as_, str(each.as_of), each.name] for each in one.told]
        row = {
            "metric": self._metric,
            "ts": one.at,
            "delivery_id": one.id,
            "rule": one.rule,
            "channel": one.channel,
            "state": state,
            "title": one.title,
            "incidents": json.dumps({"day": str(one.day), "told": told} if one.day else {"told": told}),
            "error": error,
            "run_id": one.run_id,
        }
        rows = pa.Table.from_pylist([row], schema=deliveries_schema().arrow())
        self._warehouse.insert(self._table, rows.to_batches(), ["metric", "delivery_id", "run_id"])

    def _delivery(self, row: dict[str, Any]) -> Delivery:
        said = json.loads(row["incidents"])
        told = tuple(
            Told(id_, as_, np.datetime64(as_of, unit(self._grain)), *name) for id_, as_, as_of, *name in said["told"]
        )
        day = dt.date.fromisoformat(said["day"]) if "day" in said else None
        return Delivery(
            row["delivery_id"], row["ts"], row["rule"], row["channel"], row["state"], row["title"], told, day,
            row["run_id"],
        )  # fmt: skip


def told_by(found: Sequence[Delivery], rule: str, channel: str) -> dict[str, Told]:
    """The last that a rule told a channel of each incident, digests apart."""
    return {
        told.incident_id: told
        for one in found
        if (one.rule, one.channel) == (rule, channel) and one.day is None and one.state in _TOLD
        for told in one.told
    }


def digests_by(found: Sequence[Delivery], rule: str, channel: str) -> list[dt.date]:
    """The days whose digest a rule sent to a channel, or which had nothing to tell."""
    return [
        one.day
        for one in found
        if (one.rule, one.channel) == (rule, channel) and one.day is not None and one.state in _DONE
    ]
