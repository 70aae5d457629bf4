"""Which incidents are to be told of, and in which messages: one for each that is new, worse or resolved, or a digest.

Nothing is remembered between runs but what was delivered. What is due follows from that and from what is known of the
incidents now, so that a message that was held back or could not be delivered is made anew, of what is true by then.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlencode

import numpy as np

from segwatch.core.incidents import QUIET, Incident, sentence
from segwatch.core.labels import Label
from segwatch.core.segment import digest, signed
from segwatch.core.segment import label as name_of
from segwatch.core.window import Grain, length
from segwatch.incidents import latest
from segwatch.settings import Alert

As = Literal["new", "worse", "resolved"]

_LISTED = 20
_NAMED = 5
# What is known already, or is no news to who said so.
_KNOWN = ("false", "expected", "new-normal")


@dataclass(frozen=True)
class Told:
    """What a message says of an incident: as what, and as of which period. name: what the incident is called."""

    incident_id: str
    as_: As
    as_of: np.datetime64
    name: str = field(default="", compare=False)

    @property
    def news(self) -> tuple[str, As, np.datetime64 | None]:
        """What is told once: that it is new, that it is over, and each time that it gets worse."""
        return self.incident_id, self.as_, self.as_of if self.as_ == "worse" else None


@dataclass(frozen=True)
class Event:
    """An incident that is to be told of."""

    incident: Incident
    as_: As

    @property
    def told(self) -> Told:
        one = self.incident
        return Told(one.id, self.as_, one.ts, f"{name_of(one.values)} {one.direction} since {one.first_seen}")

    @property
    def sentence(self) -> str:
        return sentence(replace(self.incident, status=self.as_))


@dataclass(frozen=True)
class Message:
    """What goes to a channel. day: of a digest. is_good: whether all that it tells of is over."""

    rule: str
    channel: str
    title: str
    body: str
    told: tuple[Told, ...]
    day: dt.date | None = None
    is_good: bool = False

    @property
    def id(self) -> str:
        """The same for the same news."""
        told = [[one.incident_id, one.as_, str(one.as_of)] for one in self.told]
        return digest([self.rule, self.channel, str(self.day), told])


@dataclass(frozen=True)
class Known:
    """What is known of a metric's incidents. said: in the order of time, from `first` on. last: the last period that
    was scored. page: address of the page, for links, or empty."""

    metric: str
    dimensions: tuple[str, ...]
    grain: Grain
    said: Sequence[Incident]
    first: np.datetime64
    last: np.datetime64
    labels: Sequence[Label]
    now: dt.datetime
    page: str = ""

    def is_open(self, one: Incident) -> bool:
        """Whether it goes on as of the last period; one that nobody followed further does not."""
        return one.status != "resolved" and bool(one.ts >= self.last - length(QUIET, self.grain))

    def link(self, path: str) -> str:
        """An address in the page."""
        return f"{self.page.rstrip('/')}{path}?{urlencode({'metric': self.metric})}"

    def is_silenced(self, id_: str) -> bool:
        """Whether people want to hear no more of an incident."""
        return any(
            label.id == id_ and (label.said in _KNOWN or (label.said == "snooze" and self.last <= label.last))
            for label in self.labels
        )


def due(rule: Alert, known: Known, told: Mapping[str, Told]) -> list[Event]:
    """What a rule has to tell a channel that was told this much, by incident; the largest impact first."""
    events = []
    for one in latest(known.said):
        before = told.get(one.id)
        as_ = _news(rule, known, one, before)
        if as_ is not None and (before is not None or _passes(rule, known, one)) and not known.is_silenced(one.id):
            events.append(Event(one, as_))
    return sorted(events, key=lambda event: (-event.incident.peak, event.incident.id))


def _news(rule: Alert, known: Known, one: Incident, before: Told | None) -> As | None:
    if before is None:
        return "new" if known.is_open(one) else None
    if before.as_ == "resolved":
        return None
    if not known.is_open(one):
        return "resolved" if "resolved" in rule.also else None
    grew = any(other.id == one.id and other.status == "worse" and other.ts > before.as_of for other in known.said)
    return "worse" if grew and "worse" in rule.also else None


def withdrawn(rule: Alert, known: Known, told: Mapping[str, Told]) -> list[Told]:
    """What was told of and is no incident any more, since its periods were scored again."""
    if "resolved" not in rule.also:
        return []
    ids = {one.id for one in known.said}
    return [
        replace(before, as_="resolved")
        for id_, before in told.items()
        if before.as_ != "resolved" and before.as_of >= known.first and id_ not in ids and not known.is_silenced(id_)
    ]


def _passes(rule: Alert, known: Known, one: Incident) -> bool:
    n_periods = 1 + int((one.last_seen - one.first_seen) / length(1, known.grain))
    share = abs(one.impact / one.expected) if one.expected and np.isfinite(one.expected) else np.inf
    return (
        _concerns(rule, known.dimensions, one)
        and one.peak >= rule.min_impact
        and share >= rule.min_impact_share
        and n_periods >= rule.min_duration
    )


def _concerns(rule: Alert, dimensions: Sequence[str], one: Incident) -> bool:
    """Whether an incident has the rule's direction, and values that it selects or that hold those.

    Of a metric without a dimension that is selected none does."""
    named = dict(zip(dimensions, one.values, strict=True))
    return rule.direction in (one.direction, "both") and all(
        name in named and (named[name] is None or named[name] in wanted) for name, wanted in rule.select.items()
    )


def messages(name: str, rule: Alert, channel: str, known: Known, told: Mapping[str, Told]) -> list[Message]:
    """The messages that are due, `max_messages` at most and one more that names the rest."""
    groups: dict[str, list[Event]] = {}
    for event in due(rule, known, told):
        groups.setdefault(_group(rule, known.dimensions, event), []).append(event)
    whole = list(groups.items())
    found = [_message(name, channel, known, group, events) for group, events in whole[: rule.max_messages]]
    rest = [event for _, events in whole[rule.max_messages :] for event in events]
    if rest:
        title = f"{known.metric}: and {len(rest):,} more incident{'s' * (len(rest) != 1)}"
        found.append(_several(name, channel, known, title, rest))
    gone = withdrawn(rule, known, told)
    return [*found, _withdrawal(name, channel, known, gone)] if gone else found


def _group(rule: Alert, dimensions: Sequence[str], event: Event) -> str:
    """What the events of one message have in common: the event itself, the run, or a dimension's value."""
    if rule.group_by == "incident":
        return event.incident.id
    if rule.group_by == "run":
        return ""
    value = dict(zip(dimensions, event.incident.values, strict=True)).get(rule.group_by)
    return f"{rule.group_by} {'any' if value is None else value}"


def _message(name: str, channel: str, known: Known, group: str, events: Sequence[Event]) -> Message:
    if len(events) > 1:
        of = f" of {group}" if group else ""
        return _several(name, channel, known, f"{known.metric}: {len(events):,} incidents{of}", events)
    [event] = events
    body = "\n".join([event.sentence, *_details(event, known)])
    title = f"{known.metric}: {event.sentence}"
    return Message(name, channel, title, body, (event.told,), is_good=event.as_ == "resolved")


def _withdrawal(name: str, channel: str, known: Known, gone: Sequence[Told]) -> Message:
    what = gone[0].name if len(gone) == 1 else f"{len(gone):,} incidents"
    lines = [one.name for one in gone[:_LISTED]]
    if len(gone) > _LISTED:
        lines.append(f"and {len(gone) - _LISTED:,} more")
    lines.append("Scored again, as rows came late or by another model, these periods no longer alert.")
    title = f"{known.metric}: {what}: withdrawn"
    return Message(name, channel, title, "\n".join(lines), tuple(gone), is_good=True)


def _several(
    name: str, channel: str, known: Known, title: str, events: Sequence[Event], said: Sequence[str] = ()
) -> Message:
    """One message of several events. said: a line for each, in place of its own sentence."""
    lines = list((said or [event.sentence for event in events])[:_LISTED])
    if len(events) > _LISTED:
        lines.append(f"and {len(events) - _LISTED:,} more: see `segwatch incidents`")
    if known.page:
        lines.append(known.link("/"))
    is_good = all(event.as_ == "resolved" for event in events)
    return Message(name, channel, title, "\n".join(lines), tuple(event.told for event in events), is_good=is_good)


def _details(event: Event, known: Known) -> Iterator[str]:
    one = event.incident
    if event.as_ != "resolved" and np.isfinite(one.share):
        verb = "fell" if one.direction == "down" else "rose"
        yield f"It accounts for {100 * min(one.share, 1.0):.0f} % of all that {verb} in this {known.grain}."
    if event.as_ != "resolved" and one.last_seen != one.first_seen:
        yield f"Since {one.first_seen} it is {signed(one.total_impact)} in all."
    if one.n_segments > 1:
        named = ", ".join(one.labels[:_NAMED])
        more = f" and {one.n_segments - _NAMED:,} more" if one.n_segments > _NAMED else ""
        yield f"Most of it is in {named}{more}."
    if known.page:
        yield known.link(f"/incidents/{one.id}")
    yield f"What was it? segwatch label --metric {known.metric} {one.id[:12]} true, false, expected or new-normal"


def digest_message(name: str, rule: Alert, channel: str, known: Known, sent: Iterable[dt.date]) -> Message | None:
    """The digest that was due last: what goes on, and what is over since the day before; it tells of nothing where
    there is nothing to tell. None where it was sent."""
    local = known.now.astimezone(rule.zone)
    # That of the day before is still to be sent where no run came after its hour.
    day = local.date() - dt.timedelta(days=local.time() < rule.digest_time)
    if day in set(sent):
        return None
    yesterday = known.last - np.timedelta64(24, "h")
    told = [
        Event(one, "resolved" if one.status == "resolved" else "worse" if one.status == "worse" else "new")
        for one in latest(known.said)
        if (known.is_open(one) or (one.status == "resolved" and one.ts > yesterday))
        and _passes(rule, known, one)
        and not known.is_silenced(one.id)
    ]
    told.sort(key=lambda event: (event.as_ == "resolved", -event.incident.peak, event.incident.id))
    n_open = sum(event.as_ != "resolved" for event in told)
    title = f"{known.metric}, {local.date()}: {n_open} open, {len(told) - n_open} resolved"
    lines = [sentence(event.incident) for event in told]
    return replace(_several(name, channel, known, title, told, lines), day=day)
