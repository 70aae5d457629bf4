"""What the One-Class SVM sees that no single feature shows: ordinary rows, some of whose features deviate together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from peers import fitted_detectors, rows_of
from quality_data import ORDINARY, Case
from quality_metrics import USUAL

from segwatch.core.features import FEATURES
from segwatch.core.panel import Floats
from segwatch.core.scaling import Scaling

DEVIATIONS = ((1, 4.5), (2, 3.0), (3, 2.5), (3, 3.0), (4, 2.0))
"""How many features deviate, and by how many standard deviations of the training rows."""
# A run of equal values has one side only, and most segments never have one.
_PLACES = tuple(i for i, name in enumerate(FEATURES) if name != "flat")


def found_together(case: Case) -> dict[str, tuple[float, float]]:
    """Of each deviation the share of rows that the SVM finds, and that their largest feature alone finds.

    Both at the threshold that USUAL of 1,000 ordinary rows exceed, as they are.
    """
    rows, before = rows_of(case, case.panel)
    detectors = fitted_detectors(case, case.panel, before)
    ordinary = case.judged & (case.events == ORDINARY) & rows.is_complete[:, -case.scored :]

    def scores(count: int = 0, size: float = 0.0) -> Iterator[tuple[Floats, Floats]]:
        rng = np.random.default_rng(0)
        for X, trained, some, detector in zip(
            rows.X[:, -case.scored :], before.each(), ordinary, detectors, strict=True
        ):
            if detector is not None:
                changed = _deviating(X[some], detector.scaling, count, size, rng)
                largest = np.abs(Scaling.fit(trained, 1.0).apply(changed)).max(axis=1, initial=0.0)
                yield -np.log(detector.p_value(changed)), largest

    thresholds = [np.quantile(np.concatenate(part), 1.0 - USUAL / 1000.0) for part in zip(*scores(), strict=True)]
    found = {}
    for count, size in DEVIATIONS:
        parts = [np.concatenate(part) for part in zip(*scores(count, size), strict=True)]
        svm, largest = (float((part > at).mean()) for part, at in zip(parts, thresholds, strict=True))
        found[f"{count} of {size:g}"] = svm, largest
    return found


def _deviating(X: Floats, scaling: Scaling, count: int, size: float, rng: np.random.Generator) -> Floats:
    """The rows, in each of which so many features, to one side, are what so many standard deviations make them."""
    changed = X.copy()
    for row in changed:
        at = rng.choice(_PLACES, size=count, replace=False)
        row[at] = scaling.center[at] + rng.choice([-1.0, 1.0]) * size * scaling.spread[at]
    return changed
