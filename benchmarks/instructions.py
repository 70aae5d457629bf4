"""Instructions of the compiled code on fixed inputs, counted by valgrind: the same whatever else the machine does.

    python benchmarks/instructions.py [--check | --write]

--check fails where a count is more than a tenth above the one in instructions.json; --write puts the counts there. They
depend on the compiler: the file names the one that they are of, and with another nothing is checked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

from segwatch.core.baseline import Recursion
from segwatch.core.calibration import LEVELS
from segwatch.core.features import FeatureSet
from segwatch.core.panel import History, Panel, Segments
from segwatch.core.solver import fit_many
from segwatch.core.training import Prepared
from segwatch.core.window import Window

HELD = Path(__file__).with_suffix(".json")
MOST = 1.1
# The function inside of which instructions count, and what calls it. Valgrind knows no AVX-512.
COUNTED = {"fit": "*namespace)::fit(*", "run": "segwatch::run(*"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where there are more than a tenth more than held")
    parser.add_argument("--write", action="store_true", help="hold these counts")
    parser.add_argument("--work", choices=COUNTED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    counts = {"compiler": compiler(), **{name: count(name, pattern) for name, pattern in COUNTED.items()}}
    print(json.dumps(counts, indent=1))
    if options.write:
        HELD.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    if options.check:
        check(counts, json.loads(HELD.read_text(encoding="utf-8")))


def check(counts: dict, held: dict) -> None:
    """Ends with an error where a count is past what is held."""
    if counts["compiler"] != held["compiler"]:
        print(f"not checked: the counts are held for {held['compiler']}, not for {counts['compiler']}")
        return
    for name in COUNTED:
        if counts[name] > MOST * held[name]:
            sys.exit(
                f"{name} takes {counts[name]:,} instructions, held are {held[name]:,}: mend it, or --write if meant"
            )


def compiler() -> str:
    name = (sysconfig.get_config_var("CXX") or "c++").split()[0]
    return subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def count(name: str, pattern: str) -> int:
    """Instructions inside of the function while `work` runs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no"]
        program = [sys.executable, __file__, "--work", name]
        done = subprocess.run(
            [*valgrind, f"--toggle-collect={pattern}", *program], capture_output=True, text=True, check=False
        )
        found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.M) if out.exists() else None
        if done.returncode or found is None or not int(found[1]):
            sys.exit(f"valgrind counted nothing of {pattern}: {done.stderr[-500:]}")
        return int(found[1])


def work(name: str) -> None:
    rng = np.random.default_rng(0)
    if name == "fit":
        X = rng.standard_t(4, size=(20, 400, 5))
        fit_many(X, np.ones(X.shape[:2], dtype=bool), 400, 30, LEVELS, instruction_set="baseline")
        return
    values = rng.poisson(np.exp(rng.uniform(0.0, 6.0, (20, 1))), size=(20, 400)).astype(float)
    window = Window(np.datetime64("2025-01-06"), np.datetime64("2025-01-06") + np.timedelta64(400, "D"))
    first, last = (np.repeat(window.times[at], 20) for at in (0, -1))
    segments = Segments(("name",), tuple((f"s{i:02d}",) for i in range(20)))
    Prepared.of(Panel(History(segments, first, last), window, values), Recursion(FeatureSet("day", "count"))).rows(400)


if __name__ == "__main__":
    main()
