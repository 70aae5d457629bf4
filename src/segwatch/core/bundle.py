"""The model of all segments: one directory of Arrow files under a manifest, without pickle and without code.

    manifest.json   protocol, feature set and its fingerprint, metric, rules, training Window, pooled calibration,
                    counts, file digests
    segments.arrow  one row per known segment: keys, history, status, scaling, calibration, number of vectors, and the
                    state of its baseline at the end of training, from which inference goes on
    groups.arrow    one row per group of segments: its key, how much it usually moves, and on which dates it stood out
    vectors.arrow   support vectors and weights, in the order of the segments

The files of segments hold one record batch per shard of SHARD segments, so a model of a million segments is read where
it is needed.

Raise PROTOCOL when an older reader would misread a newer bundle; keep reading the older one as long as it is cheap.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import islice, pairwise
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core import compiled, matrix
from segwatch.core.baseline import STATE, Baseline, Recursion
from segwatch.core.calibration import Calibration, alert_thresholds, pooled
from segwatch.core.detector import Detector, Packed, check_rows, packed
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.groups import Groups, Key
from segwatch.core.known import Known, Occasions
from segwatch.core.panel import Floats, History, Ints, Panel, history_columns, history_from_table
from segwatch.core.replay import Pools
from segwatch.core.scaling import Scaling
from segwatch.core.training import FittedSegment, Prepared
from segwatch.core.window import Window
from segwatch.errors import DataError, ModelError

PROTOCOL = 2
SHARD = 500
DETECTORS = 1024
_FILES = ("segments.arrow", "groups.arrow", "vectors.arrow")
_D = len(FEATURES)
T = TypeVar("T")
_VECTORS = pa.schema([("vector", pa.list_(pa.float32(), _D)), ("weight", pa.float64())])


@dataclass(frozen=True)
class Rules:
    """The thresholds that a model was trained to be used with.

    alert_budget: alerts a week that the segments together may make; 0 for the false discovery rate `fdr` instead.
    threshold: the p-value that keeps the budget, once it is known.
    """

    alpha: float
    fdr: float
    min_history: int
    alert_budget: float = 0.0
    threshold: float | None = None

    def thresholds(self, p_values: Floats, periods: npt.NDArray[np.int64]) -> Floats:
        """The p-value at or under which each row (n_rows,) is flagged; see `alert_thresholds`."""
        if self.alert_budget and self.threshold is not None:
            return np.full(len(p_values), self.threshold)
        return alert_thresholds(p_values, periods, self.fdr, self.alpha)


@dataclass(frozen=True)
class ModelBundle:
    """All segments' detectors of one training run, opened from a directory. Threads may share it."""

    path: Path
    manifest: Mapping[str, Any]
    _reading: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> ModelBundle:
        """The bundle in a directory, every file checked against its digest.

        Raises ModelError if a file is missing or changed, or if the bundle is of another protocol.
        """
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            protocol, digests = manifest["protocol"], manifest["files"]
            if protocol != PROTOCOL:
                raise ModelError(
                    f"the model in {path} is of protocol {protocol}, this segwatch reads {PROTOCOL}: train it anew"
                )
            own = manifest.pop("digest")
            if own != _manifest_digest(manifest):
                raise ModelError(f"manifest.json of the model in {path} was changed: download the model again")
            for name in _FILES:
                if _digest(path / name) != digests[name]:
                    raise ModelError(f"{name} of the model in {path} was changed: download the model again")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} holds no whole model ({error!r}): download it again") from error
        return cls(path, manifest)

    @property
    def dimensions(self) -> tuple[str, ...]:
        return tuple(self.manifest["dimensions"])

    @property
    def window(self) -> Window:
        """The training Window."""
        return Window.from_dict(self.manifest["window"])

    @property
    def rules(self) -> Rules:
        return Rules(**self.manifest["rules"])

    def with_threshold(self, threshold: float) -> ModelBundle:
        """The same bundle, in its place, that knows which p-value keeps its alert budget."""
        rules = asdict(replace(self.rules, threshold=threshold))
        return _write_manifest(self.path, {**self.manifest, "rules": rules})

    def rules_for(self, asked: Rules) -> Rules:
        """What the settings ask, with what training found out about it.

        Raises ModelError if they ask for an alert budget that the model was not trained for.
        """
        if asked.alert_budget and asked.alert_budget != self.rules.alert_budget:
            raise ModelError(
                f"alert_budget is {asked.alert_budget:g}, and the model was trained with {self.rules.alert_budget:g}:"
                " run `segwatch train`, which finds the threshold that keeps it"
            )
        return replace(asked, threshold=self.rules.threshold)

    @cached_property
    def feature_set(self) -> FeatureSet:
        """The FeatureSet that the model was trained on.

        Raises ModelError if this segwatch defines it otherwise.
        """
        stored = self.manifest["feature_set"]
        feature_set = FeatureSet(stored["grain"], stored["kind"], stored["name"], stored["version"])
        if feature_set != FeatureSet(stored["grain"], stored["kind"]) or (
            feature_set.fingerprint != stored["fingerprint"]
        ):
            raise ModelError(
                f"the model in {self.path} was trained on features {stored['name']} v{stored['version']}, which this"
                " segwatch does not define so: train it anew"
            )
        return feature_set

    @cached_property
    def _segments(self) -> pa.Table:
        """Columns of the segments but their states, which take most of the file."""
        with pa.OSFile(str(self.path / "segments.arrow")) as source:
            names = pa.ipc.open_file(source).schema.names
            wanted = [i for i, name in enumerate(names) if not name.startswith(STATE)]
            return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted)).read_all()

    @cached_property
    def history(self) -> History:
        """Every segment that training met, fitted or not."""
        return history_from_table(self._segments, self.dimensions, self.window)

    @cached_property
    def status(self) -> tuple[str, ...]:
        return tuple(self._segments["status"].to_pylist())

    @cached_property
    def reason(self) -> tuple[str | None, ...]:
        return tuple(self._segments["reason"].to_pylist())

    @cached_property
    def recursion(self) -> Recursion:
        """How the states go on."""
        return Recursion(self.feature_set, self.manifest["adapt_after"], self.manifest["timezone"])

    def state(self, positions: Ints | None = None) -> Baseline:
        """The states at the end of training of all segments, or of those at some positions; a copy that may change."""
        with pa.memory_map(str(self.path / "segments.arrow")) as source:
            table = pa.ipc.open_file(source).read_all()
            table = table.select([name for name in table.column_names if name.startswith(STATE)])
            return Baseline.from_table(table if positions is None else table.take(pa.array(positions)))

    def pools(self, groups: Groups) -> Pools:
        """What training learned from all segments together, for groups of whom it may not know all; a copy."""
        keys = zip(self._groups["dimension"].to_pylist(), self._groups["value"].to_pylist(), strict=True)
        known = {key: i for i, key in enumerate(keys)}
        pools = Pools.fresh(groups)
        old = [known[key] for key in groups.keys if key in known]
        new = [place for place, key in enumerate(groups.keys) if key in known]
        pools.scales.scale[new] = self._groups["scale"].to_numpy()[old]
        pools.scales.n_seen[new] = self._groups["n_seen"].to_numpy()[old]
        pools.known.yearly[new] = _matrix(self._groups["yearly"])[old]
        return Pools(pools.scales, Known(pools.known.yearly, Occasions.from_list(self.manifest["occasions"])))

    @cached_property
    def _groups(self) -> pa.Table:
        with pa.memory_map(str(self.path / "groups.arrow")) as source:
            return pa.ipc.open_file(source).read_all()

    @cached_property
    def _pool(self) -> Calibration:
        return Calibration(**self.manifest["pool"])

    @cached_property
    def _offsets(self) -> Ints:
        """Where the vectors of each segment begin in their shard, and how many there are: (n_segments, 2)."""
        counts = self._segments["n_vectors"].to_numpy()
        shards = [counts[a : a + SHARD] for a in range(0, len(counts), SHARD)]
        starts = [np.cumsum(shard) - shard for shard in shards]
        return np.stack([np.concatenate([*starts, np.empty(0, int)]), counts], axis=1).astype(np.int64)

    @cached_property
    def _parameters(self) -> Mapping[str, Floats]:
        lists = {name: self._segments[name].combine_chunks().flatten() for name in ("center", "spread")}
        scalars = {name: np.asarray(self._segments[name]) for name in ("location", "scale", "stretch")}
        return scalars | {name: np.asarray(flat).reshape(-1, _D) for name, flat in lists.items()}

    @cached_property
    def _shard(self) -> Any:
        # Read and not mapped: what was touched of a map stays in memory, and all of it is touched.
        reader = pa.ipc.open_file(pa.OSFile(str(self.path / "vectors.arrow")))
        return lru_cache(maxsize=4)(reader.get_batch)

    def _batch(self, shard: int) -> pa.RecordBatch:
        # Arrow does not promise that one reader serves two threads at once.
        with self._reading:
            return self._shard(shard)

    def detector(self, position: int) -> Detector:
        """The detector of the segment at a position of `history.segments`; those used last are kept.

        Raises ModelError if that segment was not fitted.
        """
        return self._detectors(position)

    @cached_property
    def _detectors(self) -> Callable[[int], Detector]:
        return lru_cache(maxsize=DETECTORS)(lambda position: self._own_detector(position).pooled(self._pool))

    def _own_detector(self, position: int) -> Detector:
        """The detector as it was trained, before its calibration was drawn to the others'."""
        self._check_fitted(position)
        start, count = self._offsets[position]
        batch = self._batch(position // SHARD).slice(start, count)
        named = {name: values[position] for name, values in self._parameters.items()}
        return Detector(
            Scaling(named["center"], named["spread"]),
            # Copies: a view would keep the whole shard.
            batch["vector"].flatten().to_numpy().reshape(count, _D).copy(),
            batch["weight"].to_numpy().copy(),
            Calibration(*(float(named[name]) for name in ("location", "scale", "stretch"))),
        )

    def _check_fitted(self, position: int) -> None:
        if self.status[position] != "ok":
            label = self.history.segments.labels[position]
            raise ModelError(f"segment {label} has no model: {self.reason[position]}")

    def fitted(self, position: int) -> FittedSegment:
        """What training made of the segment at a position; `write_bundle` writes it as it was."""
        status = self.status[position]
        return FittedSegment(
            self._segments["n_observations"][position].as_py(),
            self._own_detector(position) if status == "ok" else None,
            status,
            self.reason[position],
        )

    def positions(self, segment_ids: Sequence[str] | pa.Array) -> Ints:
        """(n_rows,) position of the segment that each id names.

        Raises DataError if an id is of no known segment.
        """
        found = self.find(segment_ids)
        unknown = np.flatnonzero(found < 0)
        if unknown.size:
            raise DataError(f"segment id {segment_ids[unknown[0]]} is not in this model: train again to include it")
        return found

    def find(self, segment_ids: Sequence[str] | pa.Array) -> Ints:
        """(n_rows,) position of the segment that each id names, -1 where there is none."""
        found = pc.index_in(pa.array(segment_ids, pa.string()), self._segments["segment_id"].combine_chunks())
        return np.asarray(pc.fill_null(found, -1).to_numpy().astype(np.int64))

    @cached_property
    def _is_fitted(self) -> npt.NDArray[np.bool_]:
        return np.array([status == "ok" for status in self.status], dtype=bool)

    def groups(self, segment_ids: Sequence[str] | pa.Array) -> Iterator[tuple[int, Ints]]:
        """Position of each segment that the ids name, with the rows that name it; errors as of `positions`."""
        positions = self.positions(segment_ids)
        order = np.argsort(positions, kind="stable")
        named, edges = np.unique(positions[order], return_index=True)
        if len(named):
            yield from zip(named.tolist(), np.split(order, edges[1:]), strict=True)

    def score(self, segment_ids: Sequence[str] | pa.Array, X: Floats) -> tuple[Floats, Floats]:
        """Scores and p-values (n_rows,) of rows X (n_rows, n_features), each by its own segment's detector.

        Raises DataError for an unknown segment or an incomplete row, ModelError for a segment without a detector.
        """
        scores, p_values = np.empty(len(X)), np.empty(len(X))
        if compiled.native is None:
            for position, rows in self.groups(segment_ids):
                detector = self.detector(position)
                scores[rows] = detector.score(X[rows])
                p_values[rows] = detector.calibration.p_value(scores[rows])
            return scores, p_values
        native = compiled.native
        check_rows(X, _D)

        def of_shard(detectors: Packed, of_rows: Ints, rows: Ints) -> None:
            found = np.empty(len(rows))
            native.score(detectors, of_rows, np.ascontiguousarray(X[rows], dtype=np.float64), found)
            scores[rows] = found
            p_values[rows] = Calibration(*detectors[4][of_rows].T).p_value(found)

        for _ in self.by_shard(segment_ids, of_shard):
            pass
        return scores, p_values

    def by_shard(self, segment_ids: Sequence[str] | pa.Array, work: Callable[[Packed, Ints, Ints], T]) -> Iterator[T]:
        """What `work` makes of each shard's rows, on every core: of its detectors, each row's segment among them, and
        the rows.

        Raises DataError for an unknown segment, ModelError for one without a detector.
        """
        positions = self.positions(segment_ids)
        for position in np.unique(positions[~self._is_fitted[positions]]):
            self._check_fitted(int(position))
        order = np.argsort(positions, kind="stable")
        edges = np.searchsorted(positions[order], np.arange(0, len(self.status) + SHARD, SHARD))
        shards = [(k, order[a:b]) for k, (a, b) in enumerate(pairwise(edges.tolist())) if b > a]

        def at(shard: tuple[int, Ints]) -> T:
            k, rows = shard
            return work(self._packed(k), positions[rows] - k * SHARD, rows)

        if len(shards) < 2:
            yield from map(at, shards)
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(at, shards)

    def _packed(self, shard: int) -> Packed:
        """The detectors of a shard, their calibrations drawn to all segments'."""
        some = slice(shard * SHARD, (shard + 1) * SHARD)
        batch, counts = self._batch(shard), self._offsets[some, 1]
        # Arrays of all segments in place of the numbers of one.
        own = Calibration(*(self._parameters[name][some] for name in ("location", "scale", "stretch")))  # type: ignore[arg-type]
        drawn = own.towards(self._pool)
        return packed(
            batch["vector"].flatten().to_numpy().reshape(-1, _D),
            batch["weight"].to_numpy(),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.stack([self._parameters["center"][some], self._parameters["spread"][some]], axis=1),
            np.stack([drawn.location, drawn.scale, drawn.stretch], axis=1),
        )

    def predict(self, segment_ids: Sequence[str] | pa.Array, X: Floats) -> tuple[Ints, Floats, Floats]:
        """Predictions (+1 and -1), scores and p-values (n_rows,) of rows X, with the errors of `score`."""
        scores, p_values = self.score(segment_ids, X)
        return np.where(p_values <= self.rules.alpha, -1, 1), scores, p_values

    def typical(self, segment_ids: Sequence[str] | pa.Array) -> Floats:
        """(n_rows, n_features) of the typical row of each segment: the median of each feature at training.

        Raises DataError for an unknown segment.
        """
        return np.asarray(self._parameters["center"][self.positions(segment_ids)])

    def shift(self, segment_ids: Sequence[str] | pa.Array, X: Floats) -> dict[str, float]:
        """By feature, how far half of the rows X (n_rows, n_features) lie from training's median, in its spreads.

        About 0 where the data are as they were, whatever single rows do. Raises DataError for an unknown segment.
        """
        positions = self.positions(segment_ids)
        scaled = (X - self._parameters["center"][positions]) / self._parameters["spread"][positions]
        return {name: float(np.median(scaled[:, k])) for k, name in enumerate(FEATURES)} if len(X) else {}

    def predict_frame(self, frame: Any) -> Any:
        """A pandas frame of prediction (+1 and -1), score and p_value for a frame of segment_id and the features."""
        import pandas as pd

        absent = [name for name in ("segment_id", *FEATURES) if name not in frame.columns]
        if absent:
            raise DataError(
                f"the rows to predict have no column {absent[0]!r}; needed: segment_id, {', '.join(FEATURES)}"
            )
        X = frame[list(FEATURES)].to_numpy(dtype=np.float64)
        prediction, scores, p_values = self.predict([str(i) for i in frame["segment_id"]], X)
        return pd.DataFrame({"prediction": prediction, "score": scores, "p_value": p_values}, index=frame.index)


def write_bundle(
    path: Path,
    metric: str,
    prepared: Prepared,
    rules: Rules,
    fitted: Iterable[FittedSegment],
    max_rollup_order: int = -1,
) -> ModelBundle:
    """The directory `path` holds the bundle of the fitted segments (in the order prepared), written shard by shard.

    max_rollup_order: that of the roll-ups among them; -1 without any.
    """
    path.mkdir(parents=True)
    panel, features = prepared.panel, prepared.recursion.features
    counts: dict[str, int] = {}
    calibrations: list[Calibration] = []
    stream = iter(fitted)
    schema = _segment_schema(prepared)
    with (
        pa.ipc.new_file(str(path / "segments.arrow"), schema) as segments,
        pa.ipc.new_file(str(path / "vectors.arrow"), _VECTORS) as vectors,
    ):
        for start in range(0, len(panel.segments), SHARD):
            shard = list(islice(stream, SHARD))
            rows = np.arange(start, start + len(shard))
            segments.write_batch(_segment_batch(panel.history.take(rows), prepared.state.take(rows), shard, schema))
            vectors.write_batch(_vector_batch(shard))
            for one in shard:
                counts[one.status] = counts.get(one.status, 0) + 1
            calibrations += [one.detector.calibration for one in shard if one.detector]
    _write_groups(path / "groups.arrow", prepared.shared.groups.keys, prepared.pools)
    manifest = {
        "protocol": PROTOCOL,
        "metric": metric,
        "dimensions": list(panel.segments.dimensions),
        "feature_set": {
            "name": features.name,
            "version": features.version,
            "grain": features.grain,
            "kind": features.kind,
            "fingerprint": features.fingerprint,
        },
        "adapt_after": prepared.recursion.adapt_after,
        "timezone": prepared.recursion.timezone,
        "max_rollup_order": max_rollup_order,
        "rules": asdict(rules),
        "window": panel.window.as_dict(),
        "occasions": prepared.pools.known.occasions.as_list(),
        "pool": asdict(pooled(calibrations) or Calibration(0.0, 1.0, 1.0)),
        "data_digest": data_digest(panel),
        "counts": {"segments": len(panel.segments), **counts},
        "files": {name: _digest(path / name) for name in _FILES},
    }
    return _write_manifest(path, manifest)


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> ModelBundle:
    document = {**manifest, "digest": _manifest_digest(manifest)}
    (path / "manifest.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    return ModelBundle.open(path)


def _write_groups(path: Path, keys: Sequence[Key], pools: Pools) -> None:
    table = pa.table(
        {
            "dimension": pa.array([dimension for dimension, _ in keys], pa.int64()),
            "value": pa.array([value for _, value in keys], pa.string()),
            "scale": pools.scales.scale,
            "n_seen": pools.scales.n_seen,
            "yearly": _fixed_lists(pools.known.yearly),
        }
    )
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


def data_digest(panel: Panel) -> str:
    """sha256 of the Panel's segments and values: the same data, the same digest."""
    digest = hashlib.sha256("\n".join(panel.segments.ids).encode())
    for values in (panel.values, panel.exposure):
        if values is not None:
            for periods in matrix.columns(values):
                digest.update(np.ascontiguousarray(values[:, periods].T).tobytes())
                matrix.release(values)
    return digest.hexdigest()


def _segment_schema(prepared: Prepared) -> pa.Schema:
    dimensions = prepared.panel.segments.dimensions
    return pa.schema(
        [
            ("segment_id", pa.string()),
            *((f"dimension.{name}", pa.string()) for name in dimensions),
            ("first_seen", pa.timestamp("us")),
            ("last_seen", pa.timestamp("us")),
            ("n_observations", pa.int64()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("center", pa.list_(pa.float64(), _D)),
            ("spread", pa.list_(pa.float64(), _D)),
            ("location", pa.float64()),
            ("scale", pa.float64()),
            ("stretch", pa.float64()),
            ("n_vectors", pa.int64()),
            *((name, column.type) for name, column in prepared.state.take(slice(0)).columns().items()),
        ]
    )


def _segment_batch(
    history: History, state: Baseline, shard: Sequence[FittedSegment], schema: pa.Schema
) -> pa.RecordBatch:
    detectors = [one.detector for one in shard]
    columns = {
        "segment_id": pa.array(history.segments.ids, pa.string()),
        **history_columns(history),
        **state.columns(),
        "n_observations": pa.array([one.n_observations for one in shard], pa.int64()),
        "status": pa.array([one.status for one in shard], pa.string()),
        "reason": pa.array([one.reason for one in shard], pa.string()),
        "center": _lists([d.scaling.center if d else None for d in detectors], _D),
        "spread": _lists([d.scaling.spread if d else None for d in detectors], _D),
        "location": pa.array([d.calibration.location if d else 0.0 for d in detectors], pa.float64()),
        "scale": pa.array([d.calibration.scale if d else 1.0 for d in detectors], pa.float64()),
        "stretch": pa.array([d.calibration.stretch if d else 1.0 for d in detectors], pa.float64()),
        "n_vectors": pa.array([len(d.weights) if d else 0 for d in detectors], pa.int64()),
    }
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _lists(rows: Sequence[Floats | None], width: int) -> pa.Array:
    """Fixed-size lists; zeros stand where a segment has no detector, as nothing reads them."""
    flat = np.concatenate([np.empty(0), *(np.zeros(width) if row is None else row for row in rows)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)


def _vector_batch(shard: Sequence[FittedSegment]) -> pa.RecordBatch:
    detectors = [one.detector for one in shard if one.detector]
    flat = np.concatenate([np.empty(0, np.float32), *(d.vectors.ravel() for d in detectors)]).astype(np.float32)
    weights = np.concatenate([np.empty(0), *(d.weights for d in detectors)])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat), _D)
    return pa.record_batch([lists, pa.array(weights)], schema=_VECTORS)


def _fixed_lists(matrix: Floats) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def _matrix(column: pa.ChunkedArray) -> Floats:
    whole = column.combine_chunks()
    return np.asarray(whole.flatten()).reshape(len(whole), whole.type.list_size)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
