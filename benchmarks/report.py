"""Seconds, MB of HTML and peak memory of the report of N segments: python benchmarks/report.py --segments 10000."""

import argparse
import datetime as dt
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from segwatch.report import render_report
from segwatch.steps import predictions_table

END = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
DIMENSIONS = ("country", "platform", "channel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--flagged", type=float, default=0.01, help="share of the rows that alert")
    parser.add_argument("--output", type=Path, help="file to write the page to")
    options = parser.parse_args()
    rows = predictions(options.segments, options.days, options.flagged)
    held = peak_mb()
    start = time.monotonic()
    page = render_report(rows, metric="new_users", dimensions=DIMENSIONS, grain="day", model=None, generated_at=END)
    seconds = time.monotonic() - start
    print(f"{rows.num_rows:,} rows, {np.sum(rows['is_anomaly']):,} alerts")
    print(f"{seconds:.1f} s, {len(page.encode()) / 1e6:.2f} MB of HTML, peak {peak_mb():.0f} MB, {held:.0f} MB before")
    if options.output:
        options.output.write_text(page, encoding="utf-8")


def predictions(segments: int, days: int, flagged: float, seed: int = 7) -> pa.Table:
    """Rows in the columns of the predictions table, values of all sizes, some segments not scored on some days."""
    rng = np.random.default_rng(seed)
    n = segments * days
    segment = np.repeat(np.arange(segments), days)
    day = np.tile(np.arange(days), segments)
    expected = (10 ** rng.uniform(0, 4, segments))[segment]
    is_anomaly = rng.random(n) < flagged
    noise = np.where(is_anomaly, rng.choice([0.2, 0.4, 2.0], n), rng.uniform(0.85, 1.15, n))
    value = np.round(expected * noise)
    scored = (rng.random(n) > 0.02) | is_anomaly
    numbers = {"value": value, "expected": expected, "lower": 0.7 * expected, "upper": 1.3 * expected}
    numbers |= {"impact": value - expected, "impact_share": (value - expected) / expected.sum()}
    start = np.datetime64(END.replace(tzinfo=None), "us") - np.timedelta64(days, "D")
    columns = {
        "metric": texts(["new_users"], np.zeros(n, int)),
        "level": texts(["/".join(DIMENSIONS)], np.zeros(n, int)),
        "country": texts([f"c{i}" for i in range(50)], segment % 50),
        "platform": texts(["android", "ios", "web", "tv"], segment // 50 % 4),
        "channel": texts([f"channel {i}" for i in range(segments // 200 + 1)], segment // 200),
        "segment_id": texts([f"{i:020x}" for i in range(segments)], segment),
        "ts": pa.array(start + day.astype("timedelta64[D]"), pa.timestamp("us", "UTC")),
        **{name: pa.array(column, mask=~scored) for name, column in numbers.items()},
        "score": pa.array(rng.random(n)),
        "p_value": pa.array(np.where(is_anomaly, rng.uniform(0, 0.005, n), rng.random(n)), mask=~scored),
        "prediction": pa.array(np.where(is_anomaly, -1, 1), mask=~scored),
        "is_anomaly": pa.array(is_anomaly),
        "direction": texts([None, "down", "up"], np.where(is_anomaly, np.where(value > expected, 2, 1), 0)),
        "status": texts(["ok", "no_data"], (~scored).astype(int)),
        "reason": texts([None, "the value did not arrive"], (~scored).astype(int)),
        "denominator": pa.nulls(n, pa.float64()),
        "model_version": texts(["1"], np.zeros(n, int)),
        "run_id": texts(["r"], np.zeros(n, int)),
        "contributions": pa.nulls(n, pa.string()),
        "scored_at": pa.array(np.full(n, start), pa.timestamp("us", "UTC")),
    }
    schema = predictions_table(DIMENSIONS).arrow()
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def texts(values: list[str | None], codes: np.ndarray) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(codes))


def peak_mb() -> float:
    """Most memory that the process held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
