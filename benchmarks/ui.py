"""Times each view of the page on 100,000 segments: python benchmarks/ui.py --segments 100000 --days 90.

The tables are written straight into a DuckDB file, in the order in which `segwatch infer` writes them, and the page is
asked over real connections by one client; the table has the median and the 95th percentile of `--times` answers.
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tables import markdown

from segwatch.core.segment import level, segment_id
from segwatch.data import audit_schema, backtests_schema, incident_labels_schema
from segwatch.detectability import detectability_table
from segwatch.incidents import incidents_table
from segwatch.registries import open_registry
from segwatch.settings import load_settings
from segwatch.steps import predictions_table
from segwatch.warehouses import open_warehouse

END = dt.datetime(2026, 11, 24)
DIMENSIONS = ("country_code", "platform", "channel")
SETTINGS = """
[targets.dev]
warehouse = "duckdb:///segwatch.duckdb"
registry = "sqlite:///mlflow.db"
[metrics.new_users]
table = "new_users_metrics"
time = "created_at"
value = "new_users"
dimensions = ["country_code", "platform", "channel"]
"""
LABEL = {
    "author": "ann",
    "label": "true",
    "direction": "down",
    "dimensions": '{"platform": "platform 3"}',
    "alarms": "[]",
}
# Of the eighth day back a whole platform did not arrive.
GAP = (END - dt.timedelta(days=7)).date()
INSERT = """
INSERT INTO predictions BY NAME
SELECT 'new_users' AS metric, s.level, s.country_code, s.platform, s.channel, s.segment_id, d.ts, value, expected,
  0.7 * expected AS lower, 1.3 * expected AS upper, value - expected AS impact,
  (value - expected) / 1e7 AS impact_share,
  10 * noise AS score, CASE WHEN is_anomaly THEN 0.0001 ELSE noise END AS p_value,
  CASE WHEN is_anomaly THEN -1 ELSE 1 END AS prediction, is_anomaly,
  CASE WHEN is_anomaly THEN CASE WHEN value > expected THEN 'up' ELSE 'down' END END AS direction,
  CASE WHEN value IS NULL THEN 'no_data' ELSE 'ok' END AS status,
  '1' AS model_version, 'run' || d.day AS run_id, d.ts + INTERVAL 30 HOUR AS scored_at
FROM (
  SELECT *, noise < 0.002 AS is_anomaly,
    CASE WHEN ts <> $2 OR platform <> 'platform 3' OR platform IS NULL
      THEN round(expected * (CASE WHEN noise < 0.002 THEN 0.3 ELSE 0.9 + 0.2 * noise END)) END AS value
  FROM (SELECT s.*, d.*, hash(s.segment_id, d.day) % 1000000 / 1e6 AS noise FROM segments s, days d WHERE d.day = $1)
) s JOIN days d USING (day) ORDER BY d.ts, s.segment_id
"""


def segments(n: int) -> pa.Table:
    """n segments of 50 countries, 20 platforms and as many channels as it takes, and their roll-ups."""
    values = [(f"c{i % 50:02d}", f"platform {i // 50 % 20}", f"channel {i // 1000}") for i in range(n)]
    rollups = [(None, None, None)]
    for d in range(3):
        for value in sorted({one[d] for one in values}):
            rollups.append(tuple(value if i == d else None for i in range(3)))
    rng = np.random.default_rng(7)
    sizes = 10 ** rng.uniform(0, 4, n)
    rows = []
    for one, size in zip(values, sizes, strict=True):
        rows.append((level(DIMENSIONS, one), *one, segment_id(DIMENSIONS, one), float(size)))
    for one in rollups:
        rows.append((level(DIMENSIONS, one), *one, segment_id(DIMENSIONS, one), float(sizes.sum() / 20)))
    names = ("level", *DIMENSIONS, "segment_id", "expected")
    return pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


def incidents(rows: pa.Table, days: int, each_day: int) -> Iterator[dict[str, object]]:
    """Rows of the incidents table: so many begin every day and last for three, every fourth of them a sum's."""
    rng = np.random.default_rng(11)
    causes = rows.to_pylist()
    n_segments = sum(one["level"] == "/".join(DIMENSIONS) for one in causes)
    named = json.dumps([[one["segment_id"], "a name of a segment"] for one in causes[:20]])
    for day in range(days):
        for number in range(each_day):
            is_sum = number % 4 == 0
            at = rng.integers(n_segments, len(causes)) if is_sum else rng.integers(0, n_segments)
            cause, size = causes[at], float(10 ** rng.uniform(1, 5))
            for age, status in enumerate(("new", "ongoing", "resolved")):
                ts = END - dt.timedelta(days=days - day - age)
                if ts >= END:
                    continue
                yield {
                    "metric": "new_users",
                    "incident_id": f"{day:010x}{number:010x}",
                    "ts": ts.replace(tzinfo=dt.UTC),
                    "status": status,
                    "direction": "down",
                    "first_seen": (END - dt.timedelta(days=days - day)).replace(tzinfo=dt.UTC),
                    "last_seen": (END - dt.timedelta(days=days - day - min(age, 1))).replace(tzinfo=dt.UTC),
                    **{name: cause[name] for name in ("level", *DIMENSIONS, "segment_id")},
                    "impact": -size,
                    "impact_share": -0.5,
                    "change_share": 0.1,
                    "total_impact": -2 * size,
                    "peak_impact": size,
                    "n_segments": 1000 if is_sum else 1,
                    "segments": named,
                    "model_version": "1",
                    "run_id": f"run{day}",
                    "updated_at": END.replace(tzinfo=dt.UTC),
                }


def write(folder: Path, n: int, days: int) -> None:
    """The project's folder holds settings, a database of n segments and so many days, and three model versions."""
    (folder / "segwatch.toml").write_text(SETTINGS)
    settings = load_settings(folder / "segwatch.toml")
    target = settings.target(None)
    rows = segments(n)
    warehouse = open_warehouse(target.warehouse)
    warehouse.create_table("predictions", predictions_table(settings.dimensions))
    schema = incidents_table(settings.dimensions)
    warehouse.create_table("incidents", schema)
    warehouse.create_table("detectability", detectability_table(settings.dimensions))
    for name, table in (
        ("backtests", backtests_schema()),
        ("labels", incident_labels_schema()),
        ("audit", audit_schema()),
    ):
        warehouse.create_table(name, table)
    said = pa.Table.from_pylist(list(incidents(rows, days, max(10, n // 1000))), schema=schema.arrow())
    warehouse.insert("incidents", said.to_batches(), ("incident_id", "ts"))
    begun = said.filter(pc.equal(said["status"], "new")).slice(0, 500)
    labels = pa.table(
        {
            "metric": begun["metric"],
            "label_id": begun["incident_id"],
            "ts": begun["updated_at"],
            **{name: pa.array([value] * begun.num_rows) for name, value in LABEL.items()},
            "first_ts": begun["first_seen"],
            "last_ts": begun["last_seen"],
            "note": pa.nulls(begun.num_rows, pa.string()),
        }
    )
    warehouse.insert("labels", incident_labels_schema().conform(labels, "labels").to_batches(), ("label_id", "ts"))
    warehouse.close()
    with duckdb.connect(target.warehouse.removeprefix("duckdb:///")) as connection:
        connection.register("rows", rows)
        connection.execute("CREATE TEMP TABLE segments AS SELECT * FROM rows")
        times = [{"day": i, "ts": END - dt.timedelta(days=days - i)} for i in range(days)]
        connection.register("times", pa.Table.from_pylist(times))
        connection.execute("CREATE TEMP TABLE days AS SELECT day, ts::TIMESTAMP AS ts FROM times")
        for day in range(days):
            connection.execute(INSERT, [day, GAP])
    registry = open_registry(target.registry, "", target.google, "")
    registry.create()
    (folder / "bundle").mkdir()
    (folder / "bundle" / "manifest.json").write_text("{}")
    for version in range(3):
        made = registry.register(
            "segwatch-new_users",
            folder / "bundle",
            parameters={"window_start": "2026-01-01", "window_end": "2026-11-01"},
            metrics={"alert_rate": 0.01, "segments_ok": float(n)},
            tags={"segwatch.run_id": f"train{version}"},
        )
        registry.promote("segwatch-new_users", made.version)


def views(n: int) -> dict[str, str]:
    """Addresses of each view, by what is seen there."""
    rows = segments(n).to_pylist()
    leaf, total = rows[n // 2], rows[n]
    country = next(one for one in rows[n:] if one["level"] == "country_code")
    return {
        "incidents": "/",
        "incidents, searched": "/?q=platform+3&status=open",
        "an incident of a sum": f"/incidents/{1:010x}{0:010x}",
        "an incident of a segment": f"/incidents/{1:010x}{1:010x}",
        "segments": "/segments",
        "segments, searched": "/segments?q=c07/platform",
        "segments, filtered": "/segments?d.platform=platform+3&flagged=yes&order=p",
        "segments, page 1,000": f"/segments?page={max(1, n // 100)}",
        "a segment": f"/segments/{leaf['segment_id']}",
        "a sum": f"/segments/{country['segment_id']}",
        "the total": f"/segments/{total['segment_id']}",
        "drill-down": "/drill",
        "drill-down into a country": "/drill?d.country_code=c07&by=channel",
        "models": "/models",
        "runs": "/runs",
        "backtests": "/backtest",
        "audit": "/audit",
        "health": "/health",
        "health of a day without a platform": f"/health?day={GAP}",
    }


@contextmanager
def page(folder: Path) -> Iterator[int]:
    """The port of the page of a project, as a process of its own."""
    command = ["--settings", str(folder / "segwatch.toml"), "--log-format", "json", "ui", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from segwatch.cli import main; main()", *command], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        yield int(json.loads(process.stderr.readline())["listening"].rpartition(":")[2])
    finally:
        process.terminate()
        process.communicate()


def seconds_of(port: int, path: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    start = time.perf_counter()
    connection.request("GET", path)
    reply = connection.getresponse()
    body = reply.read()
    elapsed = time.perf_counter() - start
    connection.close()
    if reply.status != 200:
        sys.exit(f"{path} was answered with {reply.status}: {body[-400:]!r}")
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--times", type=int, default=20, help="answers of each view")
    parser.add_argument("--folder", type=Path, help="where the project is kept for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "bundle").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, options.segments, options.days)
        size = (folder / "segwatch.duckdb").stat().st_size / 1e6
        print(f"{options.segments:,} segments, {options.days} days, a file of {size:,.0f} MB\n")
        rows = []
        with page(folder) as port:
            asked = views(options.segments)
            first = {name: seconds_of(port, path) for name, path in asked.items()}
            for name, path in asked.items():
                taken = sorted(seconds_of(port, path) for _ in range(options.times))
                figures = (taken[len(taken) // 2], taken[int(0.95 * (len(taken) - 1))], first[name])
                rows.append([name, *(f"{1000 * figure:.0f}" for figure in figures)])
        print(markdown(["view", "median ms", "95 % ms", "first ms"], rows))


if __name__ == "__main__":
    main()
