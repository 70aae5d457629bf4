"""Detection quality beside peers, on data that nothing was tuned on: Markdown tables, the same as JSON with --json.

    python benchmarks/quality.py [--json FILE] [--segments 200] [--seeds N ...] [--data NAME ...]

Data sets, seeds and labels: quality_data.py, quality_kinds.py. Methods: peers.py (their packages:
benchmarks/requirements.txt). What is counted: quality_metrics.py. What is printed depends on the code alone; how long
it took goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import quality_data
import quality_kinds
from peers import METHODS, Method, Scored, with_its_rollups
from peers import robust_z as robust_z
from quality_data import DIMENSIONS, NOISES, PARENTS, SEEDS, Case, generated, noise
from quality_data import data as data
from quality_metrics import (
    PER_1000,
    USUAL,
    false_alerts,
    filled,
    found_by_kind,
    longest_run,
    quality,
    recall_half,
    threshold,
)
from quality_together import found_together
from tables import markdown

__all__ = ["DIMENSIONS", "data", "robust_z"]

CASES = quality_data.CASES | quality_kinds.CASES
LEVELS = (0.1, 0.01, 0.001)
# A day of flights is named when this many of the 35 segments are flagged on it.
NAMED = 3
_DAYS = {
    "28 Nov": ("2013-11-28", "2013-11-28"),
    "29 Nov": ("2013-11-29", "2013-11-29"),
    "14 Dec": ("2013-12-14", "2013-12-14"),
    "23 to 27 Dec": ("2013-12-23", "2013-12-27"),
}


@dataclass
class Result:
    """One method on one Case. values, segment, parent: metrics by name; kinds: found and planted events of each."""

    data: str
    method: str
    seed: int | None
    values: dict[str, float]
    segment: dict[str, float] = field(default_factory=dict)
    parent: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    p_values: dict[str, float] = field(default_factory=dict)
    rollups: dict[str, int] = field(default_factory=dict)
    flights: dict[str, int] = field(default_factory=dict)
    together: dict[str, tuple[float, float]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--segments", type=int, default=200, help="segments of the generator")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds of the generator")
    names = ["generator", *CASES]
    parser.add_argument("--data", nargs="+", choices=names, default=names, help="only these data sets")
    options = parser.parse_args()
    methods = [method for method in METHODS if method.is_installed]
    for method in METHODS:
        if method not in methods:
            print(f"{method.name} is left out: pip install -r benchmarks/requirements.txt\n")
    results: list[Result] = []
    for name in options.data:
        cases = _cases(name, options.segments, options.seeds)
        if not cases:
            print(f"{name} is left out: pip install -r benchmarks/requirements.txt\n")
            continue
        found = [result for seed, case in cases for result in judged(case, methods, seed)]
        found += [judge_rollups(case, seed) for seed, case in cases if case.is_parent.any()]
        if name == "generator":
            found += [Result(case.name, "together", seed, {}, together=found_together(case)) for seed, case in cases]
        # A data set can take minutes: what is known of it is shown.
        print("\n\n".join(tables(found)) + "\n", flush=True)
        results += found
    results += [judge(case, "segwatch", METHODS[0].score(case)) for case in map(noise, NOISES)]
    if any(r.p_values for r in results):
        print(f"**ordinary rows per 1,000 with a p-value of at most**\n\n{_p_value_table(results)}")
    if options.json:
        options.json.write_text(
            json.dumps(_known([asdict(r) for r in results]), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


def _cases(name: str, segments: int, seeds: Sequence[int]) -> list[tuple[int | None, Case]]:
    """The Cases of a data set and their seeds, none where its package is not installed."""
    if name == "generator":
        return [(seed, generated(segments, seed)) for seed in seeds]
    case = CASES[name]()
    return [] if case is None else [(None, case)]


def judged(case: Case, methods: Sequence[Method], seed: int | None = None) -> list[Result]:
    """Each method's Result, and that of segwatch on the segments that a sampled method saw."""
    results: list[Result] = []
    scored: dict[str, Scored] = {}
    for method in methods:
        started = time.monotonic()
        rows = sampled(case, method)
        part = case if rows is None else case.take(rows)
        scored[method.name] = method.score(part)
        print(f"{case.name} {seed or ''} {method.name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        if rows is None:
            results.append(judge(part, method.name, scored[method.name], seed))
        else:
            results.append(judge(part, f"{method.name}, {len(rows)} segments", scored[method.name], seed))
            if "segwatch" in scored:
                same = judge(part, f"segwatch, the same {len(rows)}", scored["segwatch"].take(rows), seed)
                results.append(same)
    return [result for result in results if result.method != "oracle" or case.truth is not None]


def sampled(case: Case, method: Method) -> np.ndarray | None:
    """Positions of the segments that the method scores, evenly chosen; None for all."""
    n, sample = len(case.panel.segments), method.sample and method.sample[case.panel.window.grain]
    return np.linspace(0, n - 1, sample).astype(int) if sample and sample < n else None


def judge(case: Case, method: str, scored: Scored, seed: int | None = None) -> Result:
    """All that is counted of one method's scores on one Case."""
    if case.name == "flights":
        return _judge_flights(case, method, scored)
    result = Result(case.name, method, seed, _values(case, scored))
    at = filled(scored.scores) > threshold(filled(scored.scores), case.events, case.judged, USUAL)
    result.kinds = found_by_kind(case, at)
    if case.is_parent.any():
        result.segment = _values(case.without(case.is_parent), scored)
        parents = case.without((case.events >= 0) & ~case.is_parent)
        result.parent = _values(parents, scored)
        result.parent["half_5"] = recall_half(at, parents.events, parents.judged)
    if scored.p_values is not None:
        known = np.nan_to_num(scored.p_values, nan=1.0)
        result.p_values = {str(p): false_alerts(known <= p, case.events, case.judged) for p in LEVELS}
    return result


def _values(case: Case, scored: Scored) -> dict[str, float]:
    values = quality(case, scored.scores, scored.flags)
    return values | {"promised": float("nan") if scored.promised is None else scored.promised}


def _judge_flights(case: Case, method: str, scored: Scored) -> Result:
    """Flags on ordinary days, the segments flagged on the days that a person names, and the longest run of flags."""
    flags, days = scored.flags, case.panel.window.times[-case.scored :]
    ordinary = flags & case.judged
    counts = {"judged": int(case.judged.sum()), "ordinary": int(ordinary.sum())}
    for name, (first, last) in _DAYS.items():
        inside = (days >= np.datetime64(first)) & (days <= np.datetime64(last))
        counts[name] = int(flags[:, inside].sum(axis=0).max())
    counts["longest_run"] = longest_run(flags)
    values = case.panel.values[:, -case.scored :]
    flagged = [
        f"{days[t]} {case.panel.segments.labels[i]} {values[i, t]:g}" for t, i in np.argwhere(ordinary.T).tolist()
    ]
    result = Result(case.name, method, None, {"own_false": false_alerts(flags, case.events, case.judged)})
    result.flights, result.flags = counts, flagged
    return result


def tables(results: list[Result]) -> list[str]:
    """The Markdown tables of the results, without those of p-values."""
    parts = []
    rollups, together = [r for r in results if r.rollups], [r for r in results if r.together]
    results = [r for r in results if not r.rollups and not r.together]
    for name in dict.fromkeys(r.data for r in results if r.data != "flights"):
        some = [r for r in results if r.data == name]
        seeds = list(dict.fromkeys(r.seed for r in some if r.seed is not None))
        note = f", mean of seeds {', '.join(map(str, seeds))}" if seeds else ""
        parts.append(f"**{name}**{note}\n\n{_main_table(some)}")
        if any(r.segment for r in some):
            parts.append(f"**{name}: segment and parent events apart**\n\n{_parent_table(some)}")
        if any(r.kinds for r in some):
            parts.append(f"**{name}: events found at {USUAL} per 1,000, by kind**\n\n{_kind_table(some)}")
        if len(seeds) > 1:
            parts.append(
                f"**{name}: average precision and recall at {USUAL} per 1,000, by seed**\n\n{_seed_table(some, seeds)}"
            )
    if rollups:
        parts.append(_rollup_table(rollups))
    if together:
        parts.append(_together_table(together))
    if any(r.flights for r in results):
        parts.append(_flights_table([r for r in results if r.flights]))
    return parts


def _main_table(results: list[Result]) -> str:
    header = ["method", "average precision", *(f"recall at {k}" for k in PER_1000), "delay"]
    header += ["own flags: recall", "false per 1,000", "promised"]
    rows = []
    for method, some in _by_method(results):
        value = {key: _mean(r.values[key] for r in some) for key in some[0].values}
        shares = [_share(value[key]) for key in ("ap", *(f"recall_{k}" for k in PER_1000))]
        rows.append([method, *shares, _number(value["delay"]), _share(value["own_recall"]),
                     _number(value["own_false"]), _number(value["promised"])])  # fmt: skip
    return markdown(header, rows)


def _parent_table(results: list[Result]) -> str:
    recalls = [f"recall_{k}" for k in PER_1000]
    header = [
        "method",
        "segment events: average precision",
        *(f"recall at {k}" for k in PER_1000),
        "delay",
        "own recall",
    ]
    header += ["parent events: average precision", *(f"recall at {k}" for k in PER_1000)]
    header += [f"half their rows at {USUAL}", "own recall"]
    rows = []
    for method, some in _by_method(results):
        row = [method]
        row += [_share(_mean(r.segment[key] for r in some)) for key in ("ap", *recalls)]
        row += [_number(_mean(r.segment["delay"] for r in some)), _share(_mean(r.segment["own_recall"] for r in some))]
        keys = ("ap", *recalls, "half_5", "own_recall")
        row += [_share(_mean(r.parent[key] for r in some if r.parent)) for key in keys]
        rows.append(row)
    return markdown(header, rows)


def _kind_table(results: list[Result]) -> str:
    kinds = list(dict.fromkeys(kind for r in results for kind in sorted(r.kinds)))
    rows = []
    for method, some in _by_method(results):
        row = [method]
        for kind in kinds:
            pairs = [r.kinds[kind] for r in some if kind in r.kinds]
            row.append(f"{sum(p[0] for p in pairs)}/{sum(p[1] for p in pairs)}")
        rows.append(row)
    return markdown(["method", *kinds], rows)


def _seed_table(results: list[Result], seeds: list[int]) -> str:
    rows = []
    for method, some in _by_method(results):
        rows.append([method, *(f"{r.values['ap']:.3f}, {r.values[f'recall_{USUAL}']:.3f}" for r in some)])
    return markdown(["method", *map(str, seeds)], rows)


def _p_value_table(results: list[Result]) -> str:
    rows = []
    for name in dict.fromkeys(r.data for r in results):
        for method, some in _by_method([r for r in results if r.data == name and r.p_values]):
            if ", the same" not in method:
                rows.append([name, method, *(_number(_mean(r.p_values[str(p)] for r in some)) for p in LEVELS)])
    return markdown(["data", "method", *(f"{p} (promised {1000 * p:g})" for p in LEVELS)], rows)


def _flights_table(results: list[Result]) -> str:
    judged_rows = results[0].flights["judged"]
    header = ["method", f"flags on {judged_rows} ordinary rows", *_DAYS, "longest run"]
    rows = []
    for r in results:
        named = [f"{r.flights[d]} ({'named' if r.flights[d] >= NAMED else 'no'})" for d in _DAYS]
        rows.append([r.method, str(r.flights["ordinary"]), *named, str(r.flights["longest_run"])])
    title = f"**flights**, own flags; most segments flagged on one of the days, named from {NAMED} on"
    flags = "".join(
        f"\n\nWhat segwatch flagged of them: {', '.join(r.flags)}" for r in results if r.method == "segwatch"
    )
    return f"{title}\n\n{markdown(header, rows)}{flags}"


def judge_rollups(case: Case, seed: int | None = None) -> Result:
    """Parent events that the roll-up of their own country or platform shows, and what roll-ups flag without any."""
    panel, scored = with_its_rollups(case)
    segments, n = panel.segments, len(case.panel.segments)
    planted = case.judged & (case.events >= 0)
    shown = []
    for number, kind in enumerate(case.kinds):
        hit = planted & (case.events == number)
        if kind in PARENTS and hit.any():
            dimension = PARENTS.index(kind)
            value = segments.values[int(np.argwhere(hit)[0, 0])][dimension]
            own = tuple(value if d == dimension else None for d in range(len(segments.dimensions)))
            # One segment alone has no roll-up.
            if own in segments.values:
                shown.append(bool((scored.flags[segments.values.index(own)] & hit.any(axis=0)).any()))
    ordinary = false = 0
    for row in range(n, len(segments)):
        pairs = [zip(segments.values[row], values, strict=True) for values in segments.values[:n]]
        members = [i for i, pair in enumerate(pairs) if all(own in (None, value) for own, value in pair)]
        quiet = ~planted[members].any(axis=0)
        ordinary, false = ordinary + int(quiet.sum()), false + int((scored.flags[row] & quiet).sum())
    result = Result(case.name, "segwatch's roll-ups", seed, {})
    result.rollups = {"shown": sum(shown), "events": len(shown), "ordinary": ordinary, "false": false}
    return result


def _rollup_table(results: list[Result]) -> str:
    rows = []
    for name in dict.fromkeys(r.data for r in results):
        some = [r.rollups for r in results if r.data == name]
        total = {key: sum(one[key] for one in some) for key in some[0]}
        share = f"{1000 * total['false'] / max(1, total['ordinary']):.1f}"
        rows.append([name, f"{total['shown']}/{total['events']}", share])
    title = "**roll-ups**: parent events that the roll-up of their own country or platform shows"
    return f"{title}\n\n{markdown(['data', 'shown', 'false per 1,000'], rows)}"


def _together_table(results: list[Result]) -> str:
    rows = [
        [deviation, *(_share(_mean(r.together[deviation][i] for r in results)) for i in (0, 1))]
        for deviation in results[0].together
    ]
    title = f"**what the SVM adds**: ordinary rows made to deviate in several features, found at {USUAL} per 1,000"
    return f"{title}\n\n{markdown(['features, standard deviations', 'segwatch', 'max z of its features'], rows)}"


def _by_method(results: list[Result]) -> list[tuple[str, list[Result]]]:
    return [(m, [r for r in results if r.method == m]) for m in dict.fromkeys(r.method for r in results)]


def _mean(values: Iterable[float]) -> float:
    """Mean of those that are known."""
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _known(value: object) -> object:
    """The same for JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {key: _known(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


if __name__ == "__main__":
    main()
