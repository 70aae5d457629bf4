"""The view of the model's versions, and what can be done with them."""

from __future__ import annotations

from typing import Any

from segwatch import actions
from segwatch.errors import ModelError
from segwatch.registries import ModelVersion
from segwatch.registries.base import CHAMPION
from segwatch.report import text
from segwatch.steps import model_name
from segwatch.ui.visit import Done, Visit

_FIGURES = {
    "segments_ok": "fitted",
    "alert_rate": "alert rate",
    "recall_drop_30": "drops of 30\N{NO-BREAK SPACE}% found",
    "recall_drop_60": "drops of 60\N{NO-BREAK SPACE}% found",
    "recall_spike_60": "rises of 60\N{NO-BREAK SPACE}% found",
}


def models(visit: Visit) -> tuple[str, dict[str, Any]]:
    """The versions, newest first: what each was trained on, how it did, what the gate said, and which one scores."""
    name = model_name(visit.metric_name)
    try:
        versions = visit.project.registry().versions(name)
    except ModelError:
        versions = []
    return "models.html", {
        "title": "Models",
        "name": name,
        "figures": _FIGURES,
        "rows": [_row(visit, version) for version in versions],
    }


def _row(visit: Visit, version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "is_champion": CHAMPION in version.aliases,
        "aliases": [alias for alias in version.aliases if alias != CHAMPION],
        "age": text.age(visit.now - version.created_at),
        "registered": f"{version.created_at:%Y-%m-%d %H:%M}",
        "window": (version.parameters.get("window_start", "?"), version.parameters.get("window_end", "?")),
        "figures": [_figure(name, version.metrics.get(name)) for name in _FIGURES],
        "gate": version.tags.get("segwatch.gate", ""),
        "runs": visit.link("/runs", version=version.version),
    }


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if name == "segments_ok" else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def promote(visit: Visit, by: str, version: str) -> Done:
    """The version is the champion; where to go then. Raises ModelError if there is no such version."""
    made = actions.promote(visit.run, version, by)
    return Done(visit.link("/models"), f"Version {made.version} is the champion.")


def rollback(visit: Visit, by: str) -> Done:
    """The champion before it is the champion again; where to go then. Raises ModelError if there was none."""
    made = actions.rollback(visit.run, by)
    return Done(visit.link("/models"), f"Version {made.version} is the champion again.")
