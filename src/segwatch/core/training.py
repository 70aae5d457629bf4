"""Fitting the segments of a Panel."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from segwatch.core import matrix
from segwatch.core.baseline import Baseline, Recursion
from segwatch.core.calendar import Days
from segwatch.core.detector import Detector
from segwatch.core.features import FeatureSet
from segwatch.core.groups import Groups, GroupScales
from segwatch.core.known import Known, Occasions
from segwatch.core.panel import Bools, Floats, Ints, Panel
from segwatch.core.replay import Pools, Series, Shared, Whole, contexts_of, go_through, gone_on
from segwatch.core.rollup import Rollups
from segwatch.core.window import Grain

MIN_ROWS = 30
# The last rows say what is ordinary now; more of them cost time and change little.
_TRAINED: dict[Grain, int] = {"day": 400, "hour": 1008}
# Periods without an observation are made up for by earlier ones, up to a quarter.
_SLACK = 1.25
_CELLS_OF_A_THREAD = 100_000
Progress = Callable[[int], None]


def _ignore(_: int) -> None:
    return None


@dataclass(frozen=True)
class FittedSegment:
    """What training made of one segment: a detector, or the status and the reason why there is none."""

    n_observations: int
    detector: Detector | None
    status: str = "ok"
    reason: str | None = None


def ended_after(feature_set: FeatureSet) -> int:
    """Periods without a row after which a segment counts as ended: four seasons."""
    return 4 * feature_set.season


@dataclass(frozen=True)
class Prepared:
    """A Panel that was gone through once, so that any part of its segments can be trained on its own.

    scale: (n_segments,), see `Series.of`. shared: what groups had in common. state, pools: those at the end.
    """

    panel: Panel
    recursion: Recursion
    scale: Floats
    shared: Shared
    state: Baseline
    pools: Pools

    @classmethod
    def of(cls, panel: Panel, recursion: Recursion, days: Days | None = None, room: Path | None = None) -> Prepared:
        """The Panel, gone through; its roll-ups are filled in place. days: what is known of its periods. room: see
        `matrix.new`."""
        scale = _scale(panel, recursion.features)
        groups = Groups.of(panel.segments)
        whole = Whole(Series.of(panel, scale, recursion.timezone), groups, Rollups.of(panel), days)
        state, pools = Baseline.fresh(scale, recursion.features), Pools.fresh(groups)
        shared, _ = go_through(whole, recursion, state, pools, room=room)
        return cls(panel, recursion, scale, shared, state, pools)

    def __len__(self) -> int:
        return len(self.scale)

    def take(self, rows: Sequence[int] | Ints) -> Prepared:
        """Some of its segments; what they shared with the others stays known."""
        at = np.asarray(rows, dtype=np.int64)
        return Prepared(
            self.panel.take(at), self.recursion, self.scale[at], self.shared.take(at), self.state.take(at), self.pools
        )

    @property
    def values(self) -> Floats:
        """(n_segments, n_times) as the features take them."""
        return self.series.values

    @property
    def series(self) -> Series:
        return Series.of(self.panel, self.scale, self.recursion.timezone)

    def rows(self, keep: int, has_contexts: bool = True) -> tuple[Floats, Floats]:
        """Features and contexts of the last periods, see `gone_on`."""
        fresh = Baseline.fresh(self.scale, self.recursion.features)
        return gone_on(self.series, self.recursion, fresh, self.shared, keep, has_contexts)

    def state_before(self, n_periods: int) -> Baseline:
        """The states before the last so many periods."""
        state = Baseline.fresh(self.scale, self.recursion.features)
        contexts_of(self.series.until(len(self.panel.window) - n_periods), self.recursion, state, self.shared, 0)
        return state

    def save(self, directory: Path) -> None:
        """The directory holds it; `Prepared.load` reads it back."""
        self.panel.save(directory)
        np.savez(
            directory / "shared.npz",
            effects=self.shared.effects,
            z=self.shared.z,
            members=self.shared.groups.members,
            scale=self.pools.scales.scale,
            n_seen=self.pools.scales.n_seen,
            yearly=self.pools.known.yearly,
        )
        matrix.save(self.shared.known, directory / "known.npy")
        (directory / "occasions.json").write_text(json.dumps(self.pools.known.occasions.as_list()), encoding="utf-8")
        keys = self.shared.groups.keys
        table = pa.table({"dimension": [d for d, _ in keys], "value": pa.array([v for _, v in keys], pa.string())})
        feather.write_feather(table, str(directory / "groups.arrow"))
        (directory / "state").mkdir()
        for field, array in zip(fields(Baseline), self.state.arrays, strict=True):
            matrix.save(array, directory / "state" / f"{field.name}.npy")

    @classmethod
    def load(cls, directory: Path, recursion: Recursion) -> Prepared:
        """Inverse of `save`, under the recursion that it was made by."""
        panel = Panel.load(directory)
        with np.load(directory / "shared.npz", allow_pickle=False) as arrays:
            named = dict(arrays)
        table = feather.read_table(str(directory / "groups.arrow"))
        keys = tuple(zip(table["dimension"].to_pylist(), table["value"].to_pylist(), strict=True))
        shared = Shared(
            Groups(keys, named["members"]), named["effects"], named["z"], matrix.load(directory / "known.npy")
        )
        state = Baseline(**{f.name: matrix.load(directory / "state" / f"{f.name}.npy") for f in fields(Baseline)})
        occasions = Occasions.from_list(json.loads((directory / "occasions.json").read_text(encoding="utf-8")))
        pools = Pools(GroupScales(named["scale"], named["n_seen"]), Known(named["yearly"], occasions))
        return cls(panel, recursion, np.array(state.scale), shared, state, pools)


def _scale(panel: Panel, features: FeatureSet) -> Floats:
    """(n_segments,), see `FeatureSet.segment_scale`."""
    scales = [np.empty(0)]
    for rows in panel.chunks():
        scales.append(features.segment_scale(panel.values[rows]))
        matrix.release(panel.values)
    return np.concatenate(scales)


def fit_prepared(prepared: Prepared, min_history: int, progress: Progress = _ignore) -> Iterator[FittedSegment]:
    """The fitted segments, in the order of the Panel; progress is told how many more are done."""
    workers = os.cpu_count() or 1
    # The compiled code lets go of the interpreter lock, so threads share the cores without copying the Panel.
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[FittedSegment]]] = deque()
        for _, part in parts(prepared, _CELLS_OF_A_THREAD):
            waiting.append(pool.submit(_fit_part, part, min_history))
            # So that no more parts than threads are in memory.
            if len(waiting) > workers:
                yield from _finished(waiting.popleft(), progress)
        while waiting:
            yield from _finished(waiting.popleft(), progress)


def _fit_part(part: Prepared, min_history: int) -> list[FittedSegment]:
    observed = (~np.isnan(np.asarray(part.values)) & alive(part)).sum(axis=1)
    return fit_rows(Rows.of(part, n_trained(part), has_contexts=False), observed, min_history)


def _finished(segments: Future[list[FittedSegment]], progress: Progress) -> list[FittedSegment]:
    progress(len(segments.result()))
    return segments.result()


def alive(prepared: Prepared) -> Bools:
    """(n_segments, n_times), False from where a segment counts as ended."""
    return ~prepared.panel.ended(ended_after(prepared.recursion.features))


def n_trained(prepared: Prepared) -> int:
    """Periods whose rows may train."""
    most = int(_SLACK * _TRAINED[prepared.recursion.features.grain])
    return min(most, len(prepared.panel.window))


def parts(prepared: Prepared, cells: int = 400_000) -> Iterator[tuple[int, Prepared]]:
    """Parts of the segments, each with about so many contexts, and the position of the first one of each."""
    step = max(1, cells // max(1, n_trained(prepared)))
    for start in range(0, len(prepared), step):
        yield start, prepared.take(range(start, min(start + step, len(prepared))))


@dataclass(frozen=True)
class Rows:
    """Rows of the last periods of some segments: features (n_segments, n_periods, n_features), contexts and values,
    and which of them can be scored. n_most: so many of a segment's train it. Rows that only train have no contexts."""

    X: Floats
    contexts: Floats
    values: Floats
    is_complete: Bools
    n_most: int

    @classmethod
    def of(cls, prepared: Prepared, keep: int, contexts: Floats | None = None, has_contexts: bool = True) -> Rows:
        """The rows of the last `keep` periods, in the contexts that they were prepared with or in others."""
        features, values = prepared.recursion.features, np.asarray(prepared.values)[:, -keep:]
        if contexts is None:
            X, contexts = prepared.rows(keep, has_contexts)
        else:
            X = features.features(values, contexts)
        # The z of a value is missing where the value is, or what it is to be compared with.
        complete = ~np.isnan(X[..., 0]) & alive(prepared)[:, -keep:]
        return cls(X, contexts, values, complete, _TRAINED[features.grain])

    def until(self, n_periods: int) -> Rows:
        """Those of the first periods."""
        some = slice(None, n_periods)
        return Rows(
            self.X[:, some], self.contexts[:, some], self.values[:, some], self.is_complete[:, some], self.n_most
        )

    def each(self) -> Iterator[Floats]:
        """The rows (n_rows, n_features) that train each segment."""
        for X, complete in zip(self.X, self.is_complete, strict=True):
            yield X[complete][-self.n_most :]


def fit_rows(rows: Rows, n_observations: Ints, min_history: int) -> list[FittedSegment]:
    """The fitted segments of their rows. n_observations: (n_segments,)."""
    has_history = n_observations >= min_history
    detectors = Detector.fit_many(rows.X, rows.is_complete & has_history[:, None], rows.n_most, MIN_ROWS)
    fitted = []
    for n, n_complete, detector in zip(
        n_observations.tolist(), rows.is_complete.sum(axis=1).tolist(), detectors, strict=True
    ):
        if detector is not None:
            fitted.append(FittedSegment(n, detector))
        elif n < min_history:
            reason = f"{n} periods, needs {min_history}: widen the Window or lower min_history"
            fitted.append(FittedSegment(n, None, "too_short", reason))
        else:
            reason = f"{n_complete} periods with a full history behind them, needs {MIN_ROWS}: too many gaps"
            fitted.append(FittedSegment(n, None, "too_short", reason))
    return fitted
