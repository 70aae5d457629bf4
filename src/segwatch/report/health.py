"""Whether the model and the data can be relied on: segments by status, the model's version and age."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.segment import label
from segwatch.core.window import Grain, length, unit
from segwatch.report import text
from segwatch.report.columns import apart

_MAX_SILENT = 200
_EVALUATED = {
    "prediction_rate": "rows at or under alpha",
    "alert_rate": "rows that alerted",
    "recall_drop_30": "drops of 30 % found",
    "recall_drop_60": "drops of 60 % found",
    "recall_spike_30": "rises of 30 % found",
    "recall_spike_60": "rises of 60 % found",
}


@dataclass(frozen=True)
class ModelFacts:
    """The model version that made the latest predictions. segments: how many it knows, as text; n_fitted: of them."""

    name: str
    version: str
    trained_start: str
    trained_end: str
    registered_at: dt.datetime
    segments: str
    n_fitted: int
    metrics: Mapping[str, float]

    def age(self, now: dt.datetime) -> dt.timedelta:
        """Time since the version was registered."""
        return now - self.registered_at


def health(
    rows: pa.Table,
    last: pa.Table,
    dimensions: Sequence[str],
    grain: Grain,
    model: ModelFacts | None,
    generated_at: dt.datetime,
) -> str:
    """HTML of all that. last: the rows of the last period."""
    parts = [_statuses(rows, last, dimensions, grain), _model(model, grain, generated_at), _versions(rows)]
    if model:
        parts += [_evaluation(model, grain), _detectability(model, grain)]
    return "".join([*parts, _silent_segments(last, dimensions, grain)])


def _statuses(rows: pa.Table, last: pa.Table, dimensions: Sequence[str], grain: Grain) -> str:
    """Rows by status on the last period and in all, the most frequent first; those of roll-ups apart."""
    (segments, rollups), (last_segments, last_rollups) = (apart(some, dimensions) for some in (rows, last))
    table = _status_table("Segments by status", segments, last_segments, grain)
    return table + (_status_table("Roll-ups by status", rollups, last_rollups, grain) if rollups.num_rows else "")


def _status_table(title: str, rows: pa.Table, last: pa.Table, grain: Grain) -> str:
    in_all, in_last = _counts(rows, "status"), _counts(last, "status")
    lines = "".join(
        f'<tr><th scope="row">{escape(_status(status))}</th>'
        f'<td class="number">{in_last.get(status, 0):,}</td><td class="number">{n:,}</td></tr>'
        for status, n in in_all.items()
    )
    periods = text.count(len(pc.unique(rows["ts"])), grain)
    return (
        f"<div><h3>{title}</h3><table><thead><tr>"
        f'<th scope="col">status</th><th scope="col" class="number">last {grain}</th>'
        f'<th scope="col" class="number">{periods}</th></tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _counts(rows: pa.Table, column: str) -> dict[str, int]:
    counts = pc.value_counts(rows[column]).to_pylist()
    return {row["values"]: row["counts"] for row in sorted(counts, key=lambda row: -row["counts"])}


def _status(status: str) -> str:
    return "scored" if status == "ok" else status.replace("_", " ")


def _model(model: ModelFacts | None, grain: Grain, generated_at: dt.datetime) -> str:
    if model is None:
        return "<div><h3>Model</h3><p>The version that made these predictions is no longer in the registry.</p></div>"
    facts = {
        "name": model.name,
        "version": model.version,
        "age": text.age(model.age(generated_at)),
        "trained on": _trained_on(model, grain),
        "segments": f"{model.n_fitted:,} fitted of {model.segments}",
    }
    return _definition_list("Model", facts)


def _trained_on(model: ModelFacts, grain: Grain) -> str:
    if not model.trained_start or not model.trained_end:
        return "unknown"
    end = np.datetime64(model.trained_end, unit(grain))
    return text.span(np.datetime64(model.trained_start, unit(grain)), end - length(1, grain), grain)


def _versions(rows: pa.Table) -> str:
    """Rows by the version that scored them; nothing if one did all."""
    counts = _counts(rows, "model_version")
    if len(counts) < 2:
        return ""
    return _definition_list("Rows by model version", {version: f"{n:,}" for version, n in counts.items()})


def _evaluation(model: ModelFacts, grain: Grain) -> str:
    """How the version did on the periods held out when it was trained."""
    rates = {what: model.metrics[name] for name, what in _EVALUATED.items() if name in model.metrics}
    facts = {what: f"{100 * rate:.1f}\N{NO-BREAK SPACE}%" for what, rate in rates.items()}
    return _definition_list(f"On {grain}s held out of training", facts) if facts else ""


def _detectability(model: ModelFacts, grain: Grain) -> str:
    """What the version would have found of changes injected into the held-out periods, by size of the segment."""
    sizes = [
        name.removeprefix("found_").removesuffix("_drop_40") for name in model.metrics if name.endswith("_drop_40")
    ]
    if not sizes:
        return ""
    columns = {
        f"drop of 40 % on one {grain}": "found_{}_drop_40",
        "level 40 % lower": "found_{}_level_down_40",
        "level 40 % higher": "found_{}_level_up_40",
        "smallest drop": "smallest_drop_{}",
        "smallest rise": "smallest_rise_{}",
    }
    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{escape(_size(size))}</th>'
        + "".join(f'<td class="number">{_rate(model, name.format(size))}</td>' for name in columns.values())
        + "</tr>"
        for size in sizes
    )
    title = "Share of injected changes that would have been found"
    table = f'<thead><tr><th scope="col">usual value</th>{head}</tr></thead><tbody>{lines}</tbody>'
    return (
        f'<div class="full"><h3>{title}</h3><div class="scroll" role="region" aria-label="{title}" tabindex="0">'
        f"<table>{table}</table></div></div>"
    )


def _size(size: str) -> str:
    """`10_to_100` in words."""
    return " ".join(f"{int(word):,}" if word.isdigit() else word for word in size.split("_"))


def _rate(model: ModelFacts, name: str) -> str:
    return f"{100 * model.metrics[name]:.0f}\N{NO-BREAK SPACE}%" if name in model.metrics else "none"


def _silent_segments(last: pa.Table, dimensions: Sequence[str], grain: Grain) -> str:
    # What holds most comes first: a country that is silent explains its segments.
    silent = last.filter(pc.not_equal(last["status"], "ok"))
    silent = pa.concat_tables(reversed(apart(silent, dimensions)))
    if not silent.num_rows:
        return ""
    lines = "".join(
        f"<li><b>{escape(label(row[d] for d in dimensions))}</b>"
        f" {escape(_status(row['status']))}{escape(': ' + row['reason'] if row['reason'] else '')}</li>"
        for row in silent.slice(0, _MAX_SILENT).to_pylist()
    )
    more = f"<p>and {silent.num_rows - _MAX_SILENT:,} more</p>" if silent.num_rows > _MAX_SILENT else ""
    title = f"Not scored on the last {grain}"
    return (
        f'<div class="full"><h3>{title}</h3>'
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><ul>{lines}</ul>{more}</div></div>'
    )


def _definition_list(title: str, facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<div><h3>{escape(title)}</h3><dl>{rows}</dl></div>"
