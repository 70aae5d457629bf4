"""What a run says: progress bars and tables for people, or JSON lines for machines, all on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segwatch.core.segment import counted, label, signed

if TYPE_CHECKING:
    from rich.console import Console

    from segwatch.alerts import NotifySummary
    from segwatch.core.bundle import ModelBundle
    from segwatch.core.explanation import Explanation, Row
    from segwatch.core.incidents import Incident
    from segwatch.core.training import Progress
    from segwatch.gaps import Gap
    from segwatch.runner import BacktestWeek, EvaluateSummary, InferSummary, TrainSummary

_MAX_GAPS, _MAX_INCIDENTS = 5, 10


class QuietObserver:
    """Says nothing."""

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Progress]:  # noqa: ARG002
        yield lambda _: None


class JsonObserver:
    """One JSON line when a step begins."""

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Progress]:
        say_json("step", step=name, items=total)
        yield lambda _: None


class BarObserver:
    """One progress bar per step, gone when the step is done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Progress]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = [
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(name, total=total)
            yield lambda n: bars.advance(task, n)


class TextServingObserver:
    """Says where the server listens, what it serves, and the bugs that it meets."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say

    def listening(self, url: str) -> None:
        self._say("serve", listening=url)

    def ready(self, bundle: ModelBundle, seconds: float) -> None:
        self._say("serve", **ready_rows(bundle, seconds))

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Nothing: a line for each request is for machines."""

    def failed(self, message: str) -> None:
        import sys

        sys.stderr.write(f"error: {message}\n")


class JsonServingObserver(TextServingObserver):
    """The same as JSON lines, and one for each request."""

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        say_json("request", method=method, path=path, status=status, milliseconds=round(1000 * seconds, 3))

    def failed(self, message: str) -> None:
        say_json("error", message=message)


def ready_rows(bundle: ModelBundle, seconds: float) -> dict[str, str]:
    """What is served, as lines of a table."""
    n_rollups = int(bundle.history.segments.is_rollup.sum())
    return {
        "model": f"{bundle.manifest['metric']}, trained on {bundle.window}",
        "watched": f"{counted(len(bundle.status) - n_rollups, n_rollups)}, {bundle.status.count('ok'):,} fitted",
        "ready_after": f"{seconds:.1f} s",
    }


def say_json(event: str, **fields: Any) -> None:
    """One JSON line on standard error."""
    import sys

    sys.stderr.write(json.dumps({"event": event, **fields}, default=str) + "\n")


def train_rows(summary: TrainSummary) -> dict[str, str]:
    """What a training did, as lines of a table."""
    counts = dict(summary.counts)
    watched = counted(counts.pop("segments"), counts.pop("rollups"))
    fitted = counts.pop("segments_ok", 0)
    others = "".join(f", {n:,} {name.removeprefix('segments_')}" for name, n in counts.items())
    said = summary.verdict.said
    alias = "champion" if said == "passed" else f"champion, {said}" if summary.verdict.promote else said
    rows = {
        "model": f"{summary.version.name} version {summary.version.version} ({alias})",
        "training Window": str(summary.window),
        "rows read": f"{summary.n_rows:,}",
        "watched": f"{watched}, {fitted:,} fitted{others}",
    }
    if summary.learned is not None and summary.learned.said:
        rows["labels"] = summary.learned.said
    if summary.metrics:
        recalls = ((n.removeprefix("recall_"), v) for n, v in summary.metrics.items() if n.startswith("recall_"))
        rows["alert rate held out"] = f"{1000 * summary.metrics['alert_rate']:.1f} per 1,000 rows"
        rows["recall of one changed day"] = ", ".join(f"{n.replace('_', ' ')} %: {v:.2f}" for n, v in recalls)
    return rows | _warnings(summary.warnings) | _seconds(summary.seconds)


def _warnings(warnings: Sequence[str]) -> dict[str, str]:
    return {f"warning {number}": warning for number, warning in enumerate(warnings, 1)}


def infer_rows(summary: InferSummary) -> dict[str, str]:
    """What a scoring did, as lines of a table."""
    statuses = ", ".join(f"{n:,} {name}" for name, n in summary.by_status.items())
    rows = {
        "model": f"{summary.version.name} version {summary.version.version}",
        "scored Window": str(summary.window),
        "rows written": f"{summary.n_rows:,} ({statuses})",
        "watched": counted(summary.n_segments, summary.n_rollups),
        "anomalies": f"{summary.n_anomalies:,}",
    }
    if summary.incidents:
        rows["incidents"] = "\n".join(_incident_lines(summary.incidents))
    else:
        for worst in summary.worst:
            rows[f"  {worst.segment}"] = f"{signed(worst.impact)} in {_alerts(worst.n_anomalies)}"
    if summary.gaps:
        rows["no data"] = "\n".join(_gap_lines(summary.gaps))
    if summary.notified is not None:
        rows |= notify_rows(summary.notified)
    rows |= _warnings(summary.warnings)
    if summary.features_table:
        rows["features kept in"] = summary.features_table
    return rows | _seconds(summary.seconds)


def notify_rows(summary: NotifySummary) -> dict[str, str]:
    """What became of alerts, as lines of a table; none where there were none."""
    lines = [f"to {message.channel}: {message.title}" for message in summary.sent]
    lines += [
        f"NOT to {one.message.channel}, the next run tries again: {one.message.title} ({one.reason})"
        for one in summary.failed
    ]
    lines += [f"perhaps to {one.channel}, as the run that sent it died: {one.title}" for one in summary.lost]
    if summary.problem:
        lines.append(f"none could be sent, the next run tries again: {summary.problem}")
    return {"alerts": "\n".join(lines)} if lines else {}


def _incident_lines(incidents: Sequence[Incident]) -> Iterator[str]:
    """The first incidents, and how many more there are."""
    from segwatch.core.incidents import sentence

    for one in incidents[:_MAX_INCIDENTS]:
        yield sentence(one)
    if len(incidents) > _MAX_INCIDENTS:
        yield f"and {len(incidents) - _MAX_INCIDENTS:,} more: see `segwatch incidents`"


def incident_facts(one: Incident) -> dict[str, object]:
    """What is known of an incident, for JSON."""
    from segwatch.core.incidents import sentence

    return {
        "id": one.id,
        "status": one.status,
        "first_seen": str(one.first_seen),
        "last_seen": str(one.last_seen),
        "cause": label(one.values),
        "direction": one.direction,
        "impact": one.impact,
        "total_impact": one.total_impact,
        "n_segments": one.n_segments,
        "segments": list(one.labels),
        "said": sentence(one),
    }


def explanation_facts(one: Explanation) -> dict[str, object]:
    """What is known of a row, for JSON; what is not, is null."""
    from segwatch.core.words import sentences

    return {
        "metric": one.metric,
        "at": str(one.ts),
        **_row_facts(one.row),
        "lower": _known(one.lower),
        "upper": _known(one.upper),
        "score": _known(one.score),
        "verdict": one.verdict,
        "status": one.status,
        "reason": one.reason,
        "model_version": one.model_version,
        "parts": [{"feature": part.feature, "value": part.value, "part": part.part} for part in one.parts],
        "similar": [
            {"at": str(day.ts), "value": day.value, "expected": day.expected, "similarity": day.similarity}
            for day in one.similar
        ],
        "parents": [_row_facts(row) for row in one.parents],
        "inside": [_row_facts(row) for row in one.inside],
        "siblings": [
            {
                "dimension": group.dimension,
                "of": label(group.values),
                "n": group.n,
                "n_fell": group.n_fell,
                "n_rose": group.n_rose,
                "n_alerts": group.n_alerts,
                "largest": [_row_facts(row) for row in group.largest],
            }
            for group in one.siblings
        ],
        "suspect": label(one.suspect) if one.suspect is not None else None,
        "incident": incident_facts(one.incident) if one.incident else None,
        "detectable": {
            "smallest_drop": _known(one.detectable.smallest_drop),
            "smallest_rise": _known(one.detectable.smallest_rise),
            "as_of": str(one.detectable.as_of),
        }
        if one.detectable
        else None,
        "notes": list(one.notes),
        "said": sentences(one),
    }


def _row_facts(row: Row) -> dict[str, object]:
    numbers = {name: _known(getattr(row, name)) for name in ("value", "expected", "impact", "p_value")}
    return {"segment": label(row.values), "segment_id": row.segment_id, **numbers, "is_anomaly": row.is_anomaly}


def _known(number: float) -> float | None:
    """JSON has no NaN."""
    return float(number) if number == number else None


def _gap_lines(gaps: Sequence[Gap]) -> Iterator[str]:
    """The largest gaps, `it/*/* on 2026-11-24 (9 segments)`, and how many more there are."""
    for gap in gaps[:_MAX_GAPS]:
        span = f"on {gap.first}" if gap.first == gap.last else f"from {gap.first} to {gap.last}"
        yield f"{gap.segment} {span}" + (f" ({counted(gap.n_segments, 0)})" if gap.n_segments > 1 else "")
    if len(gaps) > _MAX_GAPS:
        yield f"and {len(gaps) - _MAX_GAPS:,} more gaps"


def evaluate_rows(summary: EvaluateSummary) -> dict[str, str]:
    """What would have been found, as lines of a table: one block for each size class."""
    from segwatch.core.injection import INJECTIONS, by_size

    rows = {
        "Window": str(summary.window),
        "below": "segments by their median value; the share of injected events found, and after how many periods",
    }
    for one in by_size(summary.found):
        name = f"{one.low:,.0f} to {one.high:,.0f}" if one.high < float("inf") else f"{one.low:,.0f} and more"
        rows[name] = (
            f"{one.n_segments:,} segments, {1000 * one.alert_rate:.1f} alerts per 1,000 rows; smallest drop"
            f" {_share(one.smallest_drop)}, smallest rise {_share(one.smallest_rise)}"
        )
        kinds: dict[str, list[str]] = {}
        for injection in INJECTIONS:
            if injection in one.recalls:
                size = "" if injection.size == 1 else f"{100 * injection.size:.0f} % "
                late = one.delays.get(injection, 0.0)
                delay = f" after {late:.1f}" if late >= 0.05 else ""
                kinds.setdefault(injection.kind, []).append(f"{size}{one.recalls[injection]:.2f}{delay}")
        rows |= {f"{name}: {kind.replace('_', ' ')}": ", ".join(said) for kind, said in kinds.items()}
    return rows | {"smallest changes kept": summary.kept} | _seconds(summary.seconds)


def evaluate_table(summary: EvaluateSummary) -> list[dict[str, object]]:
    """For each segment the smallest drop and rise of one period that it would have caught, as shares of the expected
    value; None where none."""
    return [
        {
            "segment": summary.labels[one.segment],
            "median_value": one.size,
            "smallest_drop": None if one.smallest_drop != one.smallest_drop else round(one.smallest_drop, 4),
            "smallest_rise": None if one.smallest_rise != one.smallest_rise else round(one.smallest_rise, 4),
        }
        for one in summary.found
    ]


def backtest_rows(weeks: Mapping[str, Sequence[BacktestWeek]]) -> dict[str, str]:
    """What would have alerted, a line for each span; weeks: by settings file, all of the same spans."""
    rows = {}
    names = list(weeks)
    for columns in zip(*weeks.values(), strict=True):
        lines = zip(names, map(_backtest_line, columns), strict=True)
        said = [f"{name}: {line}" if len(names) > 1 else line for name, line in lines]
        rows[str(columns[0].window)] = "\n".join(said)
    for name, column in weeks.items():
        alerts, scored = sum(week.n_anomalies for week in column), sum(week.n_scored for week in column)
        rows[f"in all, {name}"] = f"{alerts:,} alerts, {1000 * alerts / max(1, scored):.1f} of 1,000 rows"
    return rows


def _alerts(n: int) -> str:
    return f"{n:,} alert{'s' * (n != 1)}"


def _backtest_line(week: BacktestWeek) -> str:
    worst = ", ".join(f"{one.segment} {signed(one.impact)}" for one in week.worst)
    return _alerts(week.n_anomalies) + (f": {worst}" if worst else "")


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share == share else "none"


def _seconds(seconds: Mapping[str, float]) -> dict[str, str]:
    """The line of the steps' times; none where a pipeline ran them."""
    return {"seconds": ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())} if seconds else {}


def print_rows(console: Console, title: str, rows: Mapping[str, str]) -> None:
    """A table of two columns."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    # Folded, not cut short: an address must be whole to be of use.
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    console.print(table)
