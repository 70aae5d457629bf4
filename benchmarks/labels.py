"""What labels do to the alerts after them: Markdown on standard output, for docs/labels.md.

    python benchmarks/labels.py [--seeds N ...] [--segments N] [--labels N]

The generator's metric in a DuckDB file, the whole job: train, score 30 days, and somebody who knows what was planted
says of the last 20 incidents what they were (true or false). The next 30 days are scored twice by models trained then,
without the labels and with them. An alert is false where nothing is planted in its segments that day, nor in the week
before, when what was planted is over and echoes. Restless: from the first of these 60 days on ten segments have days,
one in seven, on which they rise by half to twice as much, which nobody cares about.
"""

from __future__ import annotations

import argparse
import datetime as dt
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tables import markdown

from segwatch import actions, runner
from segwatch.console import QuietObserver
from segwatch.core.segment import holds
from segwatch.core.window import Window
from segwatch.data import audit_schema, generated_schema, incident_labels_schema
from segwatch.data.generate import GeneratorSettings, generate
from segwatch.incidents import incidents_table
from segwatch.run import Run, open_run
from segwatch.settings import Metric, Settings, Target
from segwatch.steps import predictions_table

SEEDS = (3301, 3307, 3313)
DAYS, SCORED, ECHO = 760, 30, 7
RESTLESS, RISES = 10, 1 / 7
END = np.datetime64("2026-11-24")
NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
DIMENSIONS = ("country_code", "platform", "channel")
METRIC = Metric(table="m", time="created_at", value="new_users", dimensions=DIMENSIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--labels", type=int, default=20)
    options = parser.parse_args()
    rows = [
        judged(seed, options.segments, options.labels, n_restless)
        for n_restless in (0, RESTLESS)
        for seed in options.seeds
    ]
    print(markdown(
        ["seed", "segments", "labels", "false alerts per 1,000 rows", "after labels",
         "planted rows found", "after labels",
         "new or worse incidents a day", "after labels"],
        rows,
    ))  # fmt: skip


Truth = dict[np.datetime64, list[tuple[str, ...]]]


def judged(seed: int, segments: int, n_labels: int, n_restless: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as run:
        truth = filled(run, seed, segments, n_restless)
        first = Window(END - 2 * SCORED, END - SCORED)
        second = Window(END - SCORED, END)
        start = END - DAYS
        runner.train(run, Window(start, first.start))
        runner.infer(run, first)
        latest = sorted(runner.incidents(run, first), key=lambda one: one.first_seen)[-n_labels:]
        runner.train(run, Window(start, second.start), force=True)
        runner.infer(run, second)
        before = Judged.of(run, second, truth)
        said = [is_planted(truth, one.values, one.first_seen, one.last_seen) for one in latest]
        for one, is_true in zip(latest, said, strict=True):
            actions.label_incident(run, one.id, "true" if is_true else "false", "oracle")
        runner.train(run, Window(start, second.start), force=True)
        runner.infer(run, second)
        after = Judged.of(run, second, truth)
    pairs = ((f"{a:.2f}", f"{b:.2f}") for a, b in zip(before.numbers, after.numbers, strict=True))
    of = f"{segments:,}, {n_restless} restless" if n_restless else f"{segments:,}"
    return [
        str(seed),
        of,
        f"{sum(said)} true, {len(said) - sum(said)} false",
        *(text for pair in pairs for text in pair),
    ]


def opened(folder: Path) -> AbstractContextManager[Run]:
    target = Target(warehouse=f"duckdb:///{folder / 'it.duckdb'}", registry=f"sqlite:///{folder / 'mlflow.db'}")
    settings = Settings(targets={"dev": target}, metrics={"m": METRIC})
    return open_run(settings, "dev", "m", {}, folder / "runs", QuietObserver(), NOW)


def filled(run: Run, seed: int, segments: int, n_restless: int) -> Truth:
    """The metric is in its table; returns what is planted, by day."""
    for name, schema in (
        ("m", generated_schema()),
        ("predictions", predictions_table(DIMENSIONS)),
        ("incidents", incidents_table(DIMENSIONS)),
        ("labels", incident_labels_schema()),
        ("audit", audit_schema()),
    ):
        run.warehouse.create_table(name, schema)
    run.registry.create()
    truth: Truth = {}
    for batch in generate(GeneratorSettings(segments=segments, days=DAYS, seed=seed, end=END)):
        rows = restless(batch.observations, n_restless, seed)
        run.warehouse.insert("m", rows.to_batches(), ["created_at", *DIMENSIONS])
        for row in pa.Table.from_batches([batch.labels]).to_pylist():
            truth.setdefault(np.datetime64(row["created_at"]), []).append(tuple(row[name] for name in DIMENSIONS))
    return truth


def restless(batch: pa.RecordBatch, n: int, seed: int) -> pa.Table:
    """The rows, in which n segments have become restless."""
    rows = pa.Table.from_batches([batch])
    rng = np.random.default_rng(seed)
    names = list(zip(*(rows[name].to_pylist() for name in DIMENSIONS), strict=True))
    chosen = {sorted(set(names))[i] for i in rng.choice(len(set(names)), n, replace=False)}
    is_late = rows["created_at"].to_numpy().astype("datetime64[D]") >= END - 2 * SCORED
    rises = np.array([name in chosen for name in names]) & is_late & (rng.random(len(names)) < RISES)
    values = rows["new_users"].to_numpy()
    risen = np.where(rises, np.ceil(values * rng.uniform(1.5, 3.0, len(values))), values).astype(np.int64)
    at = rows.column_names.index("new_users")
    return rows.set_column(at, rows.schema.field(at), pa.array(risen))


def is_planted(truth: Truth, values: Sequence[str | None], first: np.datetime64, last: np.datetime64) -> bool:
    """Whether something is planted in segments of the values in a span of days."""
    days = np.arange(first, last + np.timedelta64(1, "D"))
    return any(holds(values, one) for day in days for one in truth.get(day, ()))


@dataclass(frozen=True)
class Judged:
    """Of a scored Window: false alerts per 1,000 scored rows, share of planted rows that alerted, incidents told a
    day."""

    numbers: tuple[float, float, float]

    @classmethod
    def of(cls, run: Run, window: Window, truth: Truth) -> Judged:
        rows = run.warehouse.predictions("predictions", "m", window).to_pylist()
        false = planted = found = scored = 0
        for row in rows:
            if row["status"] != "ok":
                continue
            scored += 1
            day = np.datetime64(row["ts"].date())
            values = [row[name] for name in DIMENSIONS]
            if None not in values and tuple(values) in truth.get(day, ()):
                planted += 1
                found += row["is_anomaly"]
            elif row["is_anomaly"]:
                false += not is_planted(truth, values, day - ECHO, day)
        told = run.warehouse.predictions("incidents", "m", window)["status"].to_pylist()
        news = sum(status in ("new", "worse") for status in told)
        return cls((1000 * false / max(1, scored), found / max(1, planted), news / len(window)))


if __name__ == "__main__":
    main()
