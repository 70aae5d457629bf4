"""Alerts: what is told of incidents, to whom, and the record of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from segwatch.alerts.channels import Channel
from segwatch.alerts.deliveries import Deliveries, Delivery, digests_by, told_by
from segwatch.alerts.plan import Known, Message, digest_message, messages
from segwatch.core.window import Window, length
from segwatch.errors import BackendError, DataError, SettingsError
from segwatch.incidents import incidents_of
from segwatch.run import Run, labels_of, scored_span
from segwatch.settings import Alert

# Periods of incidents that are looked at: an open one has a row in the last of them.
_LOOKED_AT = 200


@dataclass(frozen=True)
class Failed:
    """A message that was not delivered, and why."""

    message: Message
    reason: str


@dataclass(frozen=True)
class NotifySummary:
    """What became of the messages that were due. lost: those of which nobody knows whether they arrived, since the run
    that sent them died. problem: why nothing could be sent at all."""

    sent: tuple[Message, ...] = ()
    failed: tuple[Failed, ...] = ()
    lost: tuple[Delivery, ...] = ()
    problem: str = ""


def rules_of(run: Run) -> dict[str, Alert]:
    """The rules that are about the run's metric."""
    rules = run.settings.alerts.items()
    return {name: rule for name, rule in rules if not rule.metrics or run.metric_name in rule.metrics}


def check_deliveries(run: Run) -> None:
    """Nothing happens if what is delivered can be written down. Raises DataError if there is no table for it."""
    table = run.settings.deliveries_table
    if rules_of(run) and run.warehouse.table_schema(table) is None:
        raise DataError(f"there is no table {table!r}: run `segwatch create`, which makes it")


def planned(run: Run) -> list[Message]:
    """The messages that are due now; nothing is sent."""
    return [message for message in _due(run, _deliveries(run).read()) if message.told]


def notify(run: Run) -> NotifySummary:
    """What is due is sent and written down; what cannot be delivered is tried again by the next run."""
    if not rules_of(run):
        return NotifySummary()
    check_deliveries(run)
    deliveries = _deliveries(run)
    found = deliveries.read()
    lost = deliveries.settle(found)
    sent: list[Message] = []
    failed: list[Failed] = []
    for message in _due(run, found):
        if not message.told:
            deliveries.skip(message)
            continue
        begun = deliveries.begin(message)
        if begun is None:
            continue
        # Nothing is held open while somebody else's server is waited for.
        run.warehouse.close()
        error = _delivered(run, message)
        deliveries.end(begun, error)
        if error is None:
            sent.append(message)
        else:
            failed.append(Failed(message, error))
    return NotifySummary(tuple(sent), tuple(failed), tuple(lost))


def try_channel(run: Run, name: str) -> None:
    """The channel has got a message that says it is one. Raises as `Channel` and `Channel.send` do."""
    text = f"Alerts of {run.metric_name} arrive here."
    Channel(run.settings, name).send(Message("test", name, "segwatch: a test", text, (), is_good=True))


def _delivered(run: Run, message: Message) -> str | None:
    """Why the message was not delivered; None if it was."""
    try:
        Channel(run.settings, message.channel).send(message)
    except (BackendError, SettingsError) as error:
        return str(error)
    return None


def _clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _deliveries(run: Run) -> Deliveries:
    return Deliveries(
        run.warehouse, run.settings.deliveries_table, run.metric_name, run.metric.grain, run.run_id, _clock
    )


def _due(run: Run, found: list[Delivery]) -> Iterator[Message]:
    known = _known(run)
    if known is None:
        return
    for name, rule in rules_of(run).items():
        for channel in () if rule.is_quiet(run.now) else rule.channels:
            if rule.digest_at:
                one = digest_message(name, rule, channel, known, digests_by(found, name, channel))
                yield from [one] if one else []
            else:
                yield from messages(name, rule, channel, known, told_by(found, name, channel))


def _known(run: Run) -> Known | None:
    """None where nothing was scored yet."""
    settings, metric = run.settings, run.metric
    span = scored_span(run)
    if span is None:
        return None
    last = span[1]
    window = Window(last - length(_LOOKED_AT, metric.grain), last + length(2, metric.grain), metric.grain)
    said = incidents_of(run.warehouse, settings.incidents_table, run.metric_name, metric, window)
    return Known(
        run.metric_name, metric.dimensions, metric.grain, said, window.start, last, labels_of(run), run.now,
        settings.page_url,
    )  # fmt: skip
