"""What explanations cost: seconds of `segwatch explain`, and of what alerts are made of at infer, as Markdown.

    python benchmarks/explain.py [--segments 1000 10000] [--days 730]

Each size is a table of the generator in DuckDB, trained and scored; explained are the total and what it is made of.
"""

from __future__ import annotations

import argparse
import datetime as dt
import tempfile
import time
from pathlib import Path

import numpy as np
from speed import SCORED_DAYS, command, machine
from tables import markdown

from segwatch import steps
from segwatch.console import QuietObserver
from segwatch.core.explanation import parts_of
from segwatch.run import open_run
from segwatch.settings import load_settings

HEADER = ("segments", "explain, s", "without similar days, s", "peak, MB", "parts of 1,000 alerts, s")
ALERTS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--days", type=int, default=730)
    options = parser.parse_args()
    rows = [measured(n, options.days) for n in options.segments]
    print(f"{machine()}; {options.days} days a segment.\n\n{markdown(HEADER, rows)}")


def measured(n: int, days: int) -> list[str]:
    """The row of a table of so many segments."""
    with tempfile.TemporaryDirectory() as folder:
        end = np.datetime64("today")
        start = str(end - SCORED_DAYS)
        command(folder, "init")
        command(folder, "create")
        command(folder, "data", "insert", "--segments", str(n), "--days", str(days), "--end", str(end))
        command(folder, "train", "--as-of", start)
        command(folder, "infer", "--start", start, "--end", str(end))
        asked = ("explain", "total", "--at", str(end - 1))
        seconds, peak, _ = command(folder, *asked)
        without, _, _ = command(folder, *asked, "--similar", "0")
        return [f"{n:,}", f"{seconds:.1f}", f"{without:.1f}", f"{peak:.0f}", f"{of_alerts(Path(folder)):.2f}"]


def of_alerts(folder: Path) -> float:
    """Seconds that the parts of alerts take, which each lie far from the typical row in every feature."""
    settings = load_settings(folder / "segwatch.toml", None)
    now, work = dt.datetime.now(dt.UTC), folder / "work"
    with open_run(settings, None, "new_users", {}, work, QuietObserver(), now) as run:
        _, bundle = steps.resolve(run.registry, run.metric_name, run.metric, work / "bundle")
    fitted = np.flatnonzero(np.array(bundle.status) == "ok")
    rng = np.random.default_rng(0)
    ids = [bundle.history.segments.ids[i] for i in rng.choice(fitted, ALERTS)]
    X = bundle.typical(ids) + rng.normal(0.0, 4.0, bundle.typical(ids).shape)
    bundle.score(ids, X)
    started = time.perf_counter()
    parts_of(bundle, ids, X)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
