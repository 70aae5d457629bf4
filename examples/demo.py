"""The main job on generated data, in one folder: create, insert, train, score the last 60 days, report."""

import datetime as dt
import subprocess
import sys
import time
from pathlib import Path

SCORED_DAYS = 60


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    today = dt.datetime.now(dt.UTC).date()
    split = str(today - dt.timedelta(days=SCORED_DAYS))
    if not (folder / "segwatch.toml").exists():
        segwatch(folder, "init")
    start = time.monotonic()
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--end", str(today))
    segwatch(folder, "train", "--as-of", split)
    segwatch(folder, "infer", "--start", split, "--end", str(today))
    segwatch(folder, "report")
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open {folder.absolute() / 'segwatch-report.html'},")
    print("or `make ui` and http://127.0.0.1:8090: what broke, and where.")


def segwatch(folder: Path, *arguments: str) -> None:
    """Run one command as a user would, so that the demo shows what can be typed."""
    print(f"\n$ segwatch {' '.join(arguments)}", flush=True)
    finished = subprocess.run([str(Path(sys.executable).with_name("segwatch")), *arguments], cwd=folder)
    if finished.returncode:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
