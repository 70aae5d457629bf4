"""An explanation with all that is known: what the tables say of a row, and what its model and the data add."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from segwatch import steps
from segwatch.core.bundle import ModelBundle
from segwatch.core.detector import Detector
from segwatch.core.explanation import Explanation, SimilarPeriod, parts_of
from segwatch.core.incidents import Incident
from segwatch.core.window import Window, length, long_period, parse_time
from segwatch.detectability import detectable_of
from segwatch.errors import DataError, ModelError
from segwatch.explanations import ScoredPeriod
from segwatch.incidents import incidents_of
from segwatch.run import Run, labels_of
from segwatch.steps import Past

LOOK_BACK_WEEKS = 8
"""Weeks before the period in which similar ones are looked for."""
SIMILAR = 3
"""Similar periods that are told, if no other number is asked for."""
# The score was made from other data if it differs by more.
_SAME = 1e-3


def explain(run: Run, segment: str, at: str, room: Path, n_similar: int = SIMILAR) -> Explanation:
    """All that is known of a segment's row at a day or hour. room: a directory for the model and the data.

    segment: a label, `it/ios/paid` or `it/*/*`, or a segment_id. n_similar: how many similar periods to look for: they
    lie in the training mostly, so that it is read again; of 0 only what came after it, and of an alert nothing. Where
    the model or the data are gone, the tables speak alone and a note says so.
    Raises UsageError if `at` is no period, DataError if it was not scored or there is no such segment.
    """
    window = _window(run, at)
    rows = run.warehouse.predictions(run.settings.predictions_table, run.metric_name, window)
    if not rows.num_rows:
        raise DataError(_not_scored(run, window))
    scored = ScoredPeriod(run.metric_name, run.metric, rows)
    place = scored.find(segment)
    scored = replace(scored, incidents=_incidents(run, window))
    id_ = rows["segment_id"][place].as_py()
    table = run.settings.detectability_table
    told = scored.explanation(place, detectable_of(run.warehouse, table, run.metric_name, run.metric.grain, id_))
    is_known = told.verdict == "unscored" or (told.parts and not n_similar)
    return told if is_known else _with_model(run, told, room, n_similar)


def _window(run: Run, at: str) -> Window:
    start = parse_time(at, run.metric.grain, "--at")
    return Window(start, start + length(1, run.metric.grain), run.metric.grain)


def _not_scored(run: Run, window: Window) -> str:
    span = run.warehouse.prediction_span(run.settings.predictions_table, run.metric_name)
    held = "there are no predictions of it" if span is None else f"its predictions are of {_period(span[0])} to"
    held += "" if span is None else f" {_period(span[1])}"
    mend = f"run `segwatch infer --start {window.start} --end {window.end}`"
    return f"{run.metric_name} was not scored at {window.start}, {held}: {mend}"


def _period(moment: np.datetime64) -> str:
    text = str(moment.astype("datetime64[m]"))
    return text.removesuffix("T00:00")


def _incidents(run: Run, window: Window) -> list[Incident]:
    if run.warehouse.table_schema(run.settings.incidents_table) is None:
        return []
    return incidents_of(run.warehouse, run.settings.incidents_table, run.metric_name, run.metric, window)


def _with_model(run: Run, told: Explanation, room: Path, n_similar: int) -> Explanation:
    """The explanation with what the version that scored the row says of it and of the periods before."""
    try:
        _, bundle = steps.resolve(run.registry, run.metric_name, run.metric, room / "bundle", told.model_version)
        window = _look_back(bundle, told, LOOK_BACK_WEEKS * long_period(told.grain) if n_similar else 1)
        said = labels_of(run)
        past = steps.past_of(run.warehouse, run.metric, bundle, window, told.row.segment_id, said, room)
        # A registry that was emptied since may have another model of the same version.
        detector = bundle.detector(int(bundle.positions([told.row.segment_id])[0]))
    except (ModelError, DataError) as error:
        return _noted(told, f"similar {told.grain}s are not known, nor what the score of a row that did not alert is"
                            f" made of: {error}")  # fmt: skip
    told, place = _checked(told, detector, past)
    if place is None:
        return told
    most = max(bundle.rules.alpha, bundle.rules.threshold or 0.0)
    parts = told.parts or parts_of(bundle, [told.row.segment_id], past.X[place : place + 1])[0]
    return replace(told, parts=parts, similar=_similar(detector, past, place, most, n_similar))


def _noted(told: Explanation, note: str) -> Explanation:
    return replace(told, notes=(*told.notes, note))


def _look_back(bundle: ModelBundle, told: Explanation, n: int) -> Window:
    """The n periods up to the row, not past the beginning of the training where the row itself is not."""
    end = told.ts + length(1, told.grain)
    return Window(max(end - length(n, told.grain), min(bundle.window.start, told.ts)), end, told.grain)


def _checked(told: Explanation, detector: Detector, past: Past) -> tuple[Explanation, int | None]:
    """The row's place among the periods, None where it is gone, and a note where it is no longer what was scored."""
    places = np.flatnonzero(past.times == told.ts)
    if not len(places):
        return _noted(told, "the data of this row are gone since it was scored"), None
    place = int(places[0])
    score = float(detector.score(past.X[place : place + 1])[0])
    if abs(score - told.score) > _SAME * max(1.0, abs(told.score)):
        was = f"(score {told.score:.3g} then, {score:.3g} now)"
        told = _noted(told, f"the data up to this row have changed since it was scored {was}")
    return told, place


def _similar(detector: Detector, past: Past, place: int, most: float, n: int) -> tuple[SimilarPeriod, ...]:
    """The n nearest of the periods before a place whose p-value is above `most`."""
    normal = np.flatnonzero((past.times < past.times[place]) & (detector.p_value(past.X) > most))
    similarity = detector.similarity(past.X[place], past.X[normal])
    nearest = np.argsort(-similarity, kind="stable")[:n]
    return tuple(
        SimilarPeriod(past.times[i], float(past.values[i]), float(past.expected[i]), float(alike))
        for i, alike in zip(normal[nearest], similarity[nearest], strict=True)
    )
