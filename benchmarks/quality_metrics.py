"""What quality.py counts: average precision, recall of events, false alerts and delay.

scores, flags, judged, events: (n_segments, n_scored) as in quality_data.Case. A judged cell without a score counts as
the least anomalous: who cannot score an event has missed it.
"""

from __future__ import annotations

import numpy as np
from quality_data import ORDINARY, Case
from sklearn.metrics import average_precision_score

from segwatch.core.panel import Bools, Floats, Ints

PER_1000 = (2, 5, 10)
# Events found at this many false alerts per 1,000 are the ones whose delay and kinds are told.
USUAL = 5


def quality(case: Case, scores: Floats, flags: Bools) -> dict[str, float]:
    """Average precision, recalls and delay at given false alerts, and what the method's own flags do."""
    judged = case.judged
    ranked = filled(scores)
    at = {k: ranked > threshold(ranked, case.events, judged, k) for k in PER_1000}
    delays = delays_of(at[USUAL], case.events, judged)
    return {
        "ap": average_precision(ranked, case.events, judged),
        **{f"recall_{k}": recall(at[k], case.events, judged) for k in PER_1000},
        "delay": float(np.median(delays)) if delays.size else float("nan"),
        "own_recall": recall(flags, case.events, judged),
        "own_false": false_alerts(flags, case.events, judged),
    }


def filled(scores: Floats) -> Floats:
    """The scores, a missing one below every other."""
    known = scores[np.isfinite(scores)]
    least = known.min() - 1.0 if known.size else 0.0
    return np.where(np.isnan(scores), least, scores)


def average_precision(scores: Floats, events: Ints, judged: Bools) -> float:
    """Over cells; NaN where there is no event."""
    is_event = events[judged] >= 0
    return float(average_precision_score(is_event, scores[judged])) if is_event.any() else float("nan")


def threshold(scores: Floats, events: Ints, judged: Bools, per_1000: float) -> float:
    """The score that at most so many of 1,000 ordinary cells exceed."""
    ordinary = np.sort(scores[judged & (events == ORDINARY)])[::-1]
    return float(ordinary[int(len(ordinary) * per_1000 / 1000)])


def recall(flags: Bools, events: Ints, judged: Bools) -> float:
    """Share of the events with a flagged cell; NaN where there is none."""
    there = np.unique(events[judged & (events >= 0)])
    return len(np.unique(events[flags & judged & (events >= 0)])) / len(there) if there.size else float("nan")


def recall_half(flags: Bools, events: Ints, judged: Bools) -> float:
    """Share of the events with at least half of their cells flagged; NaN where there is none."""
    cells = judged & (events >= 0)
    there, total = np.unique(events[cells], return_counts=True)
    hit = np.array([np.count_nonzero(flags & cells & (events == number)) for number in there])
    return float((2 * hit >= total).mean()) if there.size else float("nan")


def false_alerts(flags: Bools, events: Ints, judged: Bools) -> float:
    """Flags per 1,000 ordinary cells."""
    ordinary = judged & (events == ORDINARY)
    return 1000.0 * float(flags[ordinary].mean()) if ordinary.any() else float("nan")


def delays_of(flags: Bools, events: Ints, judged: Bools) -> Floats:
    """Periods from the first to the first flagged one of each found event that lasts several.

    An event under way when scoring begins has no first period to count from, and is left out.
    """
    delays = []
    for number in np.unique(events[judged & (events >= 0)]):
        cells = judged & (events == number)
        columns = np.flatnonzero(cells.any(axis=0))
        found = np.flatnonzero((flags & cells).any(axis=0))
        if len(columns) > 1 and columns[0] > 0 and found.size:
            delays.append(found[0] - columns[0])
    return np.array(delays, dtype=float)


def found_by_kind(case: Case, flags: Bools) -> dict[str, tuple[int, int]]:
    """How many events of each kind have a flagged cell, of how many."""
    judged, events = case.judged, case.events
    found = set(np.unique(events[flags & judged & (events >= 0)]).tolist())
    counts: dict[str, tuple[int, int]] = {}
    for number in np.unique(events[judged & (events >= 0)]).tolist():
        hit, total = counts.get(case.kinds[number], (0, 0))
        counts[case.kinds[number]] = (hit + (number in found), total + 1)
    return counts


def longest_run(flags: Bools) -> int:
    """Most periods in a row in which one segment is flagged."""
    longest = run = np.zeros(len(flags), dtype=int)
    for column in flags.T:
        run = np.where(column, run + 1, 0)
        longest = np.maximum(longest, run)
    return int(longest.max(initial=0))
