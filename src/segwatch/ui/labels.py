"""What people say of incidents: forms that label and snooze, what stands, and who did what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segwatch import actions
from segwatch.audit import audit_of
from segwatch.core.labels import Label, Said
from segwatch.labels import parse_said
from segwatch.run import labels_of
from segwatch.ui import words
from segwatch.ui.visit import Done, Visit

CHOICES: Mapping[Said, tuple[str, str]] = {
    "true": ("It was an anomaly", "its days leave the training data"),
    "false": ("A false alarm", "the like of it has to be rarer to alert again"),
    "expected": ("It was expected", "a campaign, say: its days are neither learned from nor scored"),
    "new-normal": ("It stays like this", "the next training begins the history here"),
}
"""What can be said of an incident by a button, and what that does."""
_DONE: Mapping[Said, str] = {
    "true": "Noted as an anomaly. The next training leaves these days out.",
    "false": "Noted as a false alarm. From now on the like of it has to be rarer to alert.",
    "expected": "Noted as expected. These days are left out from the next training and scoring on.",
    "new-normal": "Noted as the new normal. It is told of no more, and the next training begins the history here.",
}
_LONGEST_NOTE = 500
_ACTS = 200


def label(visit: Visit, by: str, form: Mapping[str, str]) -> Done:
    """What a form says of an incident is noted; where to go then. Raises as `actions.label_incident`."""
    id_, said, note = form.get("incident", ""), parse_said(form.get("label", "")), form.get("note", "")[:_LONGEST_NOTE]
    if said == "none":
        actions.take_back(visit.run, id_, by, note)
        return _back(visit, id_, "What was said of it is taken back.")
    until = form.get("until", "") or None if said == "expected" else None
    actions.label_incident(visit.run, id_, said, by, note, until)
    return _back(visit, id_, _DONE[said])


def snooze(visit: Visit, by: str, form: Mapping[str, str]) -> Done:
    """No alert is sent of the incident for a while; where to go then. Raises as `actions.label_incident`."""
    id_ = form.get("incident", "")
    done = actions.label_incident(visit.run, id_, "snooze", by, form.get("note", "")[:_LONGEST_NOTE], form.get("until"))
    return _back(visit, id_, f"No alert is sent of it until {done.last} is over.")


def _back(visit: Visit, id_: str, done: str) -> Done:
    return Done(visit.link(f"/incidents/{id_}"), done)


def labels_by_incident(visit: Visit) -> dict[str, list[Label]]:
    """What stands, by what it is about."""
    found: dict[str, list[Label]] = {}
    for one in labels_of(visit.run):
        found.setdefault(one.id, []).append(one)
    return found


def said_of(one: Label) -> dict[str, str]:
    """A label for people: what was said, by whom and when, and the note."""
    if one.said == "snooze":
        said = f"Snoozed until {one.last} is over"
    else:
        said = CHOICES[one.said][0] if one.said in CHOICES else one.said
    return {
        "said": said,
        "who": f"{words.shown(one.author)}, {one.at:%Y-%m-%d %H:%M} UTC",
        "note": words.shown(one.note),
    }


def audit(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Who labelled, snoozed and promoted, the latest first."""
    table = visit.project.settings.audit_table
    rows = audit_of(visit.warehouse, table, visit.metric_name, _ACTS).to_pylist()
    for row in rows:
        id_ = row["subject"].removeprefix("incident ")
        row["link"] = visit.link(f"/incidents/{id_}") if id_ != row["subject"] else ""
        if row["link"]:
            row["subject"] = f"incident {id_[:12]}"
    return "audit.html", {"title": "Audit", "rows": rows, "most": _ACTS}
