"""What people do to a metric: label and snooze its incidents, tell of past events, move its champion; all audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segwatch import steps
from segwatch.audit import Action, write_audit
from segwatch.core.incidents import Incident
from segwatch.core.labels import Label, Said, alarms_of
from segwatch.core.segment import label as name_of
from segwatch.core.window import Window, length, parse_last
from segwatch.data.events import read_events
from segwatch.errors import BackendError, DataError, ModelError, UsageError
from segwatch.incidents import incidents_with, latest
from segwatch.labels import write_labels
from segwatch.registries import ModelVersion
from segwatch.run import Run, labels_of, scored_span
from segwatch.warehouses.asked import Asked, Cell

_KEYS = ("metric", "label_id", "ts")
_SHORTEST_ID = 4


def find_incident(run: Run, id_: str) -> Incident:
    """What is known of the incident with an id, or with the only one that begins so.

    Raises DataError if there is none, UsageError if there are several.
    """
    if len(id_) < _SHORTEST_ID:
        raise UsageError(f"{id_!r} is too short for an incident: give {_SHORTEST_ID} digits of its id or more")
    known = latest(incidents_with(run.warehouse, run.settings.incidents_table, run.metric_name, run.metric, id_))
    found = [one for one in known if one.id.startswith(id_)]
    if not found:
        raise DataError(f"{run.metric_name} has no incident {id_!r}: `segwatch incidents` lists them")
    if len(found) > 1:
        raise UsageError(f"{len(found)} incidents begin with {id_!r}: give more of the id")
    return found[0]


def label_incident(run: Run, id_: str, said: Said, author: str, note: str = "", last: str | None = None) -> Label:
    """What somebody said of an incident is in the labels table, and that they did in the audit table.

    last: of what is expected, and of a snooze, the last period or the day that ends it, as it may not be over.
    Raises UsageError if a snooze has none or it is no period after the incident's first.
    """
    incident = find_incident(run, id_)
    ends = _last(run, incident, said, last)
    found = Label(
        incident.id, said, run.now, _named(author), incident.values, incident.first_seen, ends, incident.direction,
        _alarms(run, incident, said), note.strip(),
    )  # fmt: skip
    write_labels(run.warehouse, run.settings.labels_table, run.metric_name, run.metric, [found], _KEYS)
    detail = f"{said} to {ends}" if last else said
    _audit(run, author, "snooze" if said == "snooze" else "label", f"incident {incident.id}", detail, note)
    return found


def _last(run: Run, incident: Incident, said: Said, last: str | None) -> np.datetime64:
    if last is None:
        if said == "snooze":
            raise UsageError("say with --until to which period it is snoozed")
        if said == "expected" and incident.status != "resolved":
            # Its days are no alerts from now on, so that nobody could tell when it ended.
            raise UsageError("the incident goes on: say with --until to which period it is expected")
        return incident.last_seen
    if said not in ("snooze", "expected"):
        raise UsageError(f"--until says how long something is snoozed or expected; {said} has no end")
    ends = parse_last(last, run.metric.grain, "--until")
    if ends < incident.first_seen:
        raise UsageError(f"--until {ends} is before the incident, which began at {incident.first_seen}")
    return ends


def _alarms(run: Run, incident: Incident, said: Said) -> tuple[tuple[str, float], ...]:
    """What alerted in the incident, where the label acts on that."""
    if said not in ("false", "new-normal"):
        return ()
    dimensions, grain = run.metric.dimensions, run.metric.grain
    window = Window(incident.first_seen, incident.last_seen + length(1, grain), grain)
    # Of all that is scored in the weeks of an incident, few rows alert.
    alerts: dict[str, frozenset[Cell]] = {
        "is_anomaly": frozenset([True]),
        "direction": frozenset([incident.direction]),
    }
    asked = Asked(run.settings.predictions_table, run.metric_name, window, alerts)
    rows = run.warehouse.asked_rows(asked, ["segment_id", "p_value", "is_anomaly", "direction", *dimensions])
    return tuple(sorted(alarms_of(rows, incident.values, incident.direction, dimensions).items()))


def import_events(run: Run, path: Path, author: str) -> Sequence[Label]:
    """What a CSV file says of past events is in the labels table; returns what did not stand there yet.

    The same file again leaves the same table, with who said it first and when.
    """
    author = _named(author)
    told = {one.id: one for one in read_events(path, run.metric, author, run.now)}
    standing = {(one.id, one.note) for one in labels_of(run)}
    new = [one for one in told.values() if (one.id, one.note) not in standing]
    write_labels(run.warehouse, run.settings.labels_table, run.metric_name, run.metric, new, _KEYS)
    _audit(run, author, "import", f"file {path.name}", f"{len(told)} events, {len(new)} of them new", "")
    return new


def unknown_values(run: Run, labels: Sequence[Label]) -> list[str]:
    """Dimension values of labels that the last scored period does not have, `platform IOS`: a slip, perhaps."""
    table, name = run.settings.predictions_table, run.metric_name
    span = scored_span(run) if run.warehouse.table_schema(table) is not None else None
    if span is None:
        return []
    grain, last = run.metric.grain, span[1]
    asked = Asked(table, name, Window(last, last + length(1, grain), grain), {"level": frozenset({run.metric.level})})
    found = []
    for d, dimension in enumerate(run.metric.dimensions):
        given = {one.values[d] for one in labels} - {None}
        if given:
            known = run.warehouse.prediction_sums(asked, (dimension,), ("n_rows",))[dimension].to_pylist()
            found += [f"{dimension} {value}" for value in sorted(map(str, given - set(known)))]
    return found


def take_back(run: Run, id_: str, author: str, note: str = "") -> Label:
    """A label, of an incident or from a file, no longer holds; a snooze is none. Raises DataError if there is none."""
    said = [one for one in labels_of(run) if one.said != "snooze"]
    found = [one for one in said if one.id.startswith(id_) and len(id_) >= _SHORTEST_ID]
    if len(found) != 1:
        raise DataError(f"{len(found)} labels of {run.metric_name} begin with {id_!r}: `segwatch labels list` has them")
    gone = replace(found[0], said="none", at=run.now, author=_named(author), alarms=(), note=note.strip())
    write_labels(run.warehouse, run.settings.labels_table, run.metric_name, run.metric, [gone], _KEYS)
    _audit(run, author, "label", f"label {gone.id} of {name_of(gone.values)}", "none", note)
    return gone


def promote(run: Run, version: str, author: str) -> ModelVersion:
    """A version is the champion. Raises UsageError if nobody is named."""
    author, before = _named(author), _champion(run)
    return _moved(run, author, "promote", before, run.registry.promote(steps.model_name(run.metric_name), version))


def rollback(run: Run, author: str) -> ModelVersion:
    """The version that was champion before the champion is so again. Raises UsageError if nobody is named."""
    author, before = _named(author), _champion(run)
    return _moved(run, author, "rollback", before, run.registry.rollback(steps.model_name(run.metric_name)))


def _moved(run: Run, author: str, action: Action, before: str, champion: ModelVersion) -> ModelVersion:
    """The audit table says that another version is the champion."""
    try:
        _audit(run, author, action, f"version {champion.version}", f"champion before: {before}", "")
    except BackendError as error:
        raise BackendError(
            f"version {champion.version} is the champion, but the audit table could not be told so: {error}"
        ) from error
    return champion


def _champion(run: Run) -> str:
    try:
        return run.registry.resolve(steps.model_name(run.metric_name)).version
    except ModelError:
        return "none"


def _named(author: str) -> str:
    """Raises UsageError if nobody is named."""
    if not author.strip():
        raise UsageError("say with --by who says it")
    return author.strip()


def _audit(run: Run, author: str, action: Action, subject: str, detail: str, note: str) -> None:
    said = f"{detail}: {note.strip()}" if note.strip() else detail
    write_audit(
        run.warehouse, run.settings.audit_table, run.metric_name, run.now,
        author=_named(author), action=action, subject=subject, detail=said,
    )  # fmt: skip
