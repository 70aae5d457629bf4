"""How fast the whole of train and infer is, beside what others do for the same segments: Markdown, JSON with --json.

    python benchmarks/speed.py [--json FILE] [--segments 1000 10000 100000] [--days 730]

Each size is a table of the generator in DuckDB, trained and scored by `segwatch` in processes of their own. What
others take is measured in the same run on a sample of the same rows, and given per 1,000 segments.
pyod and statsforecast: benchmarks/requirements.txt; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import duckdb
import joblib
import numpy as np
import pandas as pd
import quality_data
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from tables import markdown

from segwatch.core.baseline import Recursion
from segwatch.core.bundle import Rules, write_bundle
from segwatch.core.calibration import LEVELS
from segwatch.core.features import FeatureSet
from segwatch.core.solver import TOLERANCE, Fits, fit_each, fit_many, instruction_sets
from segwatch.core.training import Prepared, Rows, fit_prepared, n_trained

SCORED_DAYS = 7
STEPS = {"train": ("extract", "preprocess", "train", "evaluate", "register"),
         "infer": ("resolve", "featurize", "predict", "publish")}  # fmt: skip
SAMPLE = {"loop": 200, "exactly": 300, "PCA": 100, "MSTL": 20, "joblib": 300}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--picture", type=Path, help="draw the scaling curve to this SVG file")
    parser.add_argument("--segments", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--days", type=int, default=730)
    options = parser.parse_args()
    results = {"machine": machine(), "days": options.days, "whole": [], "others": [], "exactly": {}}
    for n in options.segments:
        results["whole"].append(whole(n, options.days))
        print(json.dumps(results["whole"][-1]), file=sys.stderr, flush=True)
    results["others"] = others(options.days)
    results["exactly"] = exactly(options.days)
    print(tables(results))
    if options.picture:
        options.picture.write_text(picture(results["whole"]), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = names[0] if names else platform.processor()
    return f"{os.cpu_count()} x {cpu}, {memory:.0f} GB, Python {platform.python_version()}, {instruction_sets()[-1]}"


def whole(n: int, days: int) -> dict[str, float]:
    """Seconds of each step and peak memory (MB) of train, and of infer of the 7 days after it."""
    with tempfile.TemporaryDirectory() as folder:
        end = np.datetime64("today")
        command(folder, "init")
        command(folder, "create")
        command(folder, "data", "insert", "--segments", str(n), "--days", str(days), "--end", str(end))
        found: dict[str, float] = {"segments": n}
        start = str(end - SCORED_DAYS)
        for job, arguments in (("train", ["--as-of", start]), ("infer", ["--start", start, "--end", str(end)])):
            seconds, peak, summary = command(folder, job, *arguments)
            found |= {f"{job} {step}": summary[step] for step in STEPS[job]}
            found |= {f"{job} in all": seconds, f"{job} peak MB": peak}
        return found


def command(folder: str, *arguments: str) -> tuple[float, float, dict[str, float]]:
    """Runs segwatch; its wall time, its peak memory in MB, and the seconds of its steps."""
    program = [sys.executable, "-c", "from segwatch.cli import main; main()", "--log-format", "json", *arguments]
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(program, cwd=folder, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        said.seek(0)
        lines = said.read().strip().splitlines()
    if status:
        sys.exit(f"segwatch {' '.join(arguments)}: {lines[-1] if lines else status}")
    told = json.loads(lines[-1]).get("seconds", "") if lines else ""
    steps = dict(part.rsplit(" ", 1) for part in told.split(", ") if part)
    return seconds, usage.ru_maxrss / 1024.0, {name: float(number) for name, number in steps.items()}


def others(days: int) -> list[tuple[str, int, float]]:
    """What other ways take: name, segments measured, seconds per 1,000 segments."""
    case = quality_data.generated(SAMPLE["loop"], 7, days, with_truth=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.duckdb"
        with duckdb.connect(str(file)) as connection:
            connection.register("rows", frame(case))
            connection.execute("CREATE TABLE rows_of_metric AS SELECT * FROM rows")
        names = [str(name) for name in np.unique([values[0] for values in case.panel.segments.values])]
        found = [
            ("pandas groups, scaler, scikit-learn's OneClassSVM, joblib", SAMPLE["loop"],
             timed(lambda: loop(file, names))),
            ("the same over two processes", SAMPLE["loop"], timed(lambda: two_processes(file, names))),
        ]  # fmt: skip
    if importlib.util.find_spec("pyod"):
        found.append(("pyod PCA per series", SAMPLE["PCA"], timed(lambda: pca(case.values[: SAMPLE["PCA"]]))))
    if importlib.util.find_spec("statsforecast"):
        found.append(("statsforecast MSTL, fitted and 7 days forecast", SAMPLE["MSTL"],
                      timed(lambda: mstl(case.values[: SAMPLE["MSTL"]]))))  # fmt: skip
    return [(name, n, 1000.0 * seconds / n) for name, n, seconds in found]


def frame(case: quality_data.Case) -> pd.DataFrame:
    """The rows of a Case as a table of a warehouse would hold them."""
    i, j = np.nonzero(~np.isnan(case.values))
    names = np.array(case.panel.segments.values)
    columns = {name: names[i, d] for d, name in enumerate(quality_data.DIMENSIONS)}
    return pd.DataFrame({"ts": case.panel.window.times[j], **columns, "value": case.values[i, j]})


def loop(file: Path, names: Sequence[str]) -> int:
    """The table's rows of some values of the first dimension are read; a scaler and a One-Class SVM per group on its
    value, dumped to a file each."""
    query = f"SELECT * FROM rows_of_metric WHERE {quality_data.DIMENSIONS[0]} IN (SELECT unnest(?))"
    with duckdb.connect(str(file), read_only=True) as connection:
        rows = connection.execute(query, [list(names)]).df()
    with tempfile.TemporaryDirectory() as folder:
        for k, (_, group) in enumerate(rows.groupby(list(quality_data.DIMENSIONS))):
            values = group.sort_values("ts")[["value"]].to_numpy()
            scaler = StandardScaler().fit(values)
            model = OneClassSVM(kernel="rbf", nu=0.05, gamma="scale").fit(scaler.transform(values))
            joblib.dump((scaler, model), Path(folder) / f"{k}.joblib")
    return len(rows)


def two_processes(file: Path, names: Sequence[str]) -> int:
    with ProcessPoolExecutor(2) as pool:
        return sum(pool.map(loop, [file, file], [names[0::2], names[1::2]]))


def pca(values: np.ndarray) -> None:
    from pyod.models.pca import PCA

    for y in values:
        series = np.diff(np.nan_to_num(y))
        lagged = np.column_stack([series[3 - k : len(series) - k] for k in range(4)])
        model = PCA()
        model.fit(lagged)
        model.decision_function(lagged[-SCORED_DAYS:])


def mstl(values: np.ndarray) -> None:
    from statsforecast.models import MSTL

    for y in values:
        MSTL(season_length=[7]).forecast(np.log1p(np.nan_to_num(y)), h=SCORED_DAYS, level=[99])


def exactly(days: int) -> dict[str, float]:
    """One thread doing exactly our job: the fits by scikit-learn and by the compiled code, milliseconds per segment;
    and scoring 7 rows a segment by one model, against loading and calling a file for each, milliseconds per segment."""
    n = SAMPLE["exactly"]
    case = quality_data.generated(n, 7, days, with_truth=False)
    prepared = Prepared.of(case.panel, Recursion(FeatureSet("day", "count")))
    rows = Rows.of(prepared, n_trained(prepared))
    X, complete = np.ascontiguousarray(rows.X), np.ascontiguousarray(rows.is_complete)
    fits = Fits.empty(n, 400, X.shape[2], len(LEVELS))
    by_scikit_learn = timed(lambda: fit_each(X, complete, 30, LEVELS, TOLERANCE, fits))
    found = {"scikit-learn": 1000.0 * by_scikit_learn / n}
    for name in instruction_sets():
        fast = min(timed(lambda name=name: fit_many(X, complete, 400, 30, LEVELS, instruction_set=name))
                   for _ in range(3))  # fmt: skip
        found[f"segwatch, {name}"] = 1000.0 * fast / n
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder) / "it", "m", prepared, Rules(0.01, 0.05, 90), fit_prepared(prepared, 90))
        last = np.argwhere(complete[:, -SCORED_DAYS:])
        ids = [prepared.panel.segments.ids[i] for i, _ in last]
        tested = X[:, -SCORED_DAYS:][complete[:, -SCORED_DAYS:]]
        bundle.score(ids, tested)
        found["scoring, segwatch"] = 1000.0 * min(timed(lambda: bundle.score(ids, tested)) for _ in range(5)) / n
        for k in range(SAMPLE["joblib"]):
            model = OneClassSVM(nu=0.2, gamma=0.02).fit(X[k][complete[k]][-400:])
            joblib.dump((StandardScaler().fit(X[k][complete[k]]), model), Path(folder) / f"{k}.joblib")
        found["scoring, a joblib file each"] = 1000.0 * timed(lambda: load_and_call(Path(folder), X)) / SAMPLE["joblib"]
    return found


def load_and_call(folder: Path, X: np.ndarray) -> None:
    for k in range(SAMPLE["joblib"]):
        scaler, model = joblib.load(folder / f"{k}.joblib")
        model.score_samples(scaler.transform(np.nan_to_num(X[k, -SCORED_DAYS:])))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()
    return time.perf_counter() - started


def tables(results: dict) -> str:
    """The Markdown tables."""
    parts = [f"{results['machine']}; {results['days']} days a segment."]
    for job, steps in STEPS.items():
        header = ["segments", *(f"{step}, s" for step in steps), "in all, s", "peak, MB"]
        rows = [
            [f"{w['segments']:,}", *(f"{w[f'{job} {step}']:.1f}" for step in steps), f"{w[f'{job} in all']:.1f}",
             f"{w[f'{job} peak MB']:.0f}"] for w in results["whole"]
        ]  # fmt: skip
        title = "train" if job == "train" else f"infer, {SCORED_DAYS} days"
        parts.append(f"**{title}**\n\n{markdown(header, rows)}")
    ours = [1000.0 * w["train in all"] / w["segments"] for w in results["whole"]]
    rows = [[name, str(n), f"{s:.1f}", f"{s / ours[-1]:.0f}"] for name, n, s in results["others"]]
    rows.insert(
        0, [f"segwatch, the whole train at {results['whole'][-1]['segments']:,}", "all", f"{ours[-1]:.1f}", "1"]
    )
    header = ["way", "segments measured", "s per 1,000 segments", "times segwatch"]
    parts.append(f"**others**\n\n{markdown(header, rows)}")
    exact = results["exactly"]
    rows = [
        [name, f"{ms:.3f}", f"{exact['scikit-learn'] / ms:.0f}"] for name, ms in exact.items() if "scoring" not in name
    ]
    header = ["scaling, fit and calibration in one thread", "ms per segment", "times as fast"]
    parts.append(f"**exactly our job**\n\n{markdown(header, rows)}")
    slow = exact["scoring, a joblib file each"]
    rows = [[name.removeprefix("scoring, "), f"{exact[name]:.4f}", f"{slow / exact[name]:.0f}"]
            for name in ("scoring, a joblib file each", "scoring, segwatch")]  # fmt: skip
    parts.append(f"**scoring 7 rows of each segment**\n\n{markdown(['way', 'ms per segment', 'times as fast'], rows)}")
    return "\n\n".join(parts)


def picture(measured: Sequence[dict[str, float]]) -> str:
    """The seconds of train and infer by number of segments as SVG; dashed what ten times the largest would take.

    On 64 shards only the step train is divided; what all segments share is found in one pass.
    """
    import altair as alt
    import vl_convert

    most = measured[-1]
    points = [{"segments": w["segments"], "s": w[f"{job} in all"], "line": job} for w in measured for job in STEPS]
    fits = most["train train"]
    for line, job, spared in (
        ("train, projected on one machine", "train", 0.0),
        ("train, projected on 64 shards", "train", fits * 63 / 64),
        ("infer, projected", "infer", 0.0),
    ):
        points.append({"segments": most["segments"], "s": most[f"{job} in all"], "line": line})
        points.append({"segments": 10 * most["segments"], "s": 10.0 * (most[f"{job} in all"] - spared), "line": line})
    lines = list(dict.fromkeys(point["line"] for point in points))
    colors = ["#1f4e9c", "#c0392b", "#1f4e9c", "#6b8fc9", "#c0392b"]
    dashes = [[1, 0], [1, 0], [6, 4], [2, 3], [6, 4]]
    log = alt.Scale(type="log")
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("segments:Q", scale=log, title="segments", axis=alt.Axis(format="~s", tickCount=4)),
            y=alt.Y("s:Q", scale=log, title="seconds in all", axis=alt.Axis(tickCount=4)),
            color=alt.Color("line:N", sort=lines, title=None, scale=alt.Scale(domain=lines, range=colors)),
            strokeDash=alt.StrokeDash("line:N", sort=lines, title=None, scale=alt.Scale(domain=lines, range=dashes)),
        )
        .properties(width=480, height=300, background="white")
    )
    return vl_convert.vegalite_to_svg(chart.to_json())


if __name__ == "__main__":
    main()
