"""Whether incidents name what broke: Markdown on standard output, for docs/detection.md.

    python benchmarks/incidents.py [--seeds N ...] [--robustspot DIRECTORY]

The generator's planted outages of a country or platform, at seeds that nobody tuned on: is there an incident on those
days that names this country or platform and nothing else, how many incidents does one outage make, and how many
messages a day stand for how many alerts.
--robustspot: a directory of the 67 incidents of Zhang et al. 2022 (data/RS of https://github.com/shaido987/riskloc):
is the labelled cause the first, among the first three, among the first five that `localise` says.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import peers
import quality_data
from tables import markdown

from segwatch.core.features import CONTEXT
from segwatch.core.incidents import Incident, Scored, follow
from segwatch.core.localisation import localise

SEEDS = quality_data.SEEDS[:3]
SEGMENTS = 200
# Minutes that the usual rate of a RobustSpot leaf is taken from, and viewers of the overall rate mixed into it.
SPAN, PRIOR = 10, 5.0
Cause = frozenset[tuple[str, object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--segments", type=int, default=SEGMENTS)
    parser.add_argument("--robustspot", type=Path, help="directory of the RobustSpot incidents")
    parser.add_argument("-v", "--verbose", action="store_true", help="list the outages and what was said of them")
    options = parser.parse_args()
    print(outages([judge(options.segments, seed, options.verbose) for seed in options.seeds]))
    if options.robustspot:
        print(f"\n{robustspot(options.robustspot)}")


@dataclass(frozen=True)
class Judged:
    """named: of each outage, whether an incident names it. first: whether on its first day. n_incidents: that say
    something of it. n_alerts, n_said: rows flagged, and incidents new or worse, of all days."""

    seed: int
    named: list[bool]
    first: list[bool]
    n_incidents: list[int]
    n_alerts: int
    n_said: int


def judge(segments: int, seed: int, verbose: bool = False) -> Judged:
    case = quality_data.generated(segments, seed, with_truth=False)
    panel, scored = peers.with_its_rollups(case)
    rows, _ = peers.rows_of(case, panel)
    some = slice(-case.scored, None)
    expected = rows.contexts[:, some, CONTEXT.index("expected")]
    times = panel.window.times[-case.scored :]
    by_day: list[list[Incident]] = []
    open_: list[Incident] = []
    n_alerts = 0
    for t, ts in enumerate(times):
        there = np.flatnonzero(~np.isnan(scored.p_values[:, t]))
        flags = scored.flags[there, t]
        n_alerts += int(flags.sum())
        period = Scored(panel.segments.take(there), rows.values[there, some][:, t], expected[there, t], flags)
        said, open_ = follow("m", open_, period, ts, "day")
        by_day.append(said)
    named, first, several = [], [], []
    for number, kind in enumerate(case.kinds):
        hit = case.judged & (case.events == number)
        if kind not in quality_data.PARENTS or not hit.any() or hit.any(axis=1).sum() < 2:
            continue
        dimension = quality_data.PARENTS.index(kind)
        value = panel.segments.values[int(np.argwhere(hit)[0, 0])][dimension]
        wanted = tuple(value if d == dimension else None for d in range(len(quality_data.DIMENSIONS)))
        days = np.flatnonzero(hit.any(axis=0))
        said = [one for t in days for one in by_day[t] if one.direction == "down" and one.status != "resolved"]
        named.append(any(one.values == wanted for one in said))
        first.append(any(one.values == wanted for one in by_day[days[0]]))
        several.append(len({one.id for one in said if one.values[dimension] == value}))
        if verbose:
            print(
                seed, kind, wanted, times[days[0]], len(days), "days", int(hit.any(axis=1).sum()), "segments", named[-1]
            )
            for t in days:
                for one in by_day[t][:4]:
                    print("   ", times[t], one.status, one.direction, one.values, f"{one.impact:.0f} {one.share:.2f}")
    n_said = sum(one.status in ("new", "worse") for said in by_day for one in said)
    return Judged(seed, named, first, several, n_alerts, n_said)


def outages(judged: Sequence[Judged]) -> str:
    header = ["seed", "outages named exactly", "on their first day", "incidents that touch one", "alerts a day",
              "new or worse incidents a day"]  # fmt: skip
    rows = [
        [str(one.seed), f"{sum(one.named)}/{len(one.named)}", f"{sum(one.first)}/{len(one.first)}",
         f"{np.mean(one.n_incidents):.1f}", f"{one.n_alerts / quality_data.SCORED:.1f}",
         f"{one.n_said / quality_data.SCORED:.1f}"] for one in judged
    ]  # fmt: skip
    named = [hit for one in judged for hit in one.named]
    return (
        f"**outages of a country or platform**: {sum(named)} of {len(named)} named exactly\n\n{markdown(header, rows)}"
    )


def robustspot(directory: Path) -> str:
    """How many of the labelled causes are among the first suggestions."""
    hits = np.array([[cause in suggested[:k] for k in (1, 3, 5)] for cause, suggested in suggestions(directory)])
    shares = [f"{n}/{len(hits)} ({n / len(hits):.1%})" for n in hits.sum(axis=0)]
    return f"**RobustSpot**\n\n{markdown(['first', 'among three', 'among five'], [shares])}"


def suggestions(directory: Path) -> Iterator[tuple[frozenset[Cause], list[frozenset[Cause]]]]:
    """The labelled cause of each incident, one set of dimension values or two, and those suggested, best first."""
    for name, start, causes in labelled(directory):
        dimensions, words, leaves, times, value, count = read(directory / f"{name}.csv.gz")
        now = int(np.flatnonzero(times == start)[0])
        before = (times < start) & (times >= start - 60 * SPAN)
        expected = usual_rate(value[before], count[before]) * count[now]
        found = localise(leaves, value[now], expected, count[now])
        yield (
            frozenset(causes),
            [
                frozenset(
                    frozenset((dimensions[d], words[d][code]) for d, code in cell.items())
                    for cell in (one.dimensions, *one.also)
                )
                for one in found
            ],
        )


def labelled(directory: Path) -> Iterator[tuple[str, int, list[Cause]]]:
    """Name, start and causes of each incident in anomaly.yaml."""
    text = (directory / "anomaly.yaml").read_text(encoding="utf-8")
    for block in re.split(r"(?m)^- ", text)[1:]:
        head, _, tail = block.partition("cause:")
        name, start = (re.search(rf"{key}: (.*)", head)[1].strip(" '\"") for key in ("data", "timestamp"))  # type: ignore[index]
        causes: list[dict[str, object]] = []
        for line in filter(None, map(str.strip, tail.splitlines())):
            if line.startswith("- ") or not causes:
                causes.append({})
            key, _, value = line.removeprefix("- ").partition(":")
            causes[-1][key] = plain(value)
        yield name, int(start), [frozenset(cause.items()) for cause in causes]


def plain(text: str) -> object:
    """A number where it is one."""
    text = text.strip().strip("'\"")
    try:
        return float(text)
    except ValueError:
        return text


def read(path: Path) -> tuple[list[str], list[list[object]], npt.NDArray[np.int64], np.ndarray, np.ndarray, np.ndarray]:
    """Dimensions, their values by code, the codes of each leaf, minutes, and numerators and denominators by both."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    dimensions = [name for name in rows[0] if name not in ("min", "value", "cnt")]
    columns = [[plain(row[name]) for row in rows] for name in dimensions]
    words = [sorted(set(column), key=str) for column in columns]
    codes = np.array([[known.index(v) for v in c] for known, c in zip(words, columns, strict=True)], dtype=np.int64)
    leaves, leaf = np.unique(codes, axis=1, return_inverse=True)
    times, at = np.unique([int(row["min"]) for row in rows], return_inverse=True)
    value, count = np.zeros((2, len(times), leaves.shape[1]))
    np.add.at(value, (at, leaf.ravel()), [float(row["value"]) for row in rows])
    np.add.at(count, (at, leaf.ravel()), [float(row["cnt"]) for row in rows])
    return dimensions, words, leaves, times, value, count


def usual_rate(value: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Each leaf's median rate over the minutes, weighted by viewers and drawn to that of all where it has few."""
    overall = float(np.median(value.sum(axis=1) / np.maximum(count.sum(axis=1), 1.0)))
    rates = value / np.maximum(count, 1e-9)
    order = np.argsort(rates, axis=0, kind="stable")
    weight = np.cumsum(np.take_along_axis(count, order, 0), axis=0)
    middle = (weight < weight[-1] / 2.0).sum(axis=0)[None]
    median = np.take_along_axis(np.take_along_axis(rates, order, 0), middle, 0)[0]
    seen = count.sum(axis=0)
    return np.asarray((median * seen + PRIOR * overall) / (seen + PRIOR))


if __name__ == "__main__":
    main()
