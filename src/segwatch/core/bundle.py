"""The model of all segments: one directory of Arrow files under a manifest, without pickle and without code.

    manifest.json   protocol, feature set and its fingerprint, metric, rules, training Window, counts, file digests
    segments.arrow  one row per known segment: keys, history, status, scale, scaling, calibration, number of vectors
    vectors.arrow   support vectors and weights, in the order of the segments

Both Arrow files hold one record batch per shard of SHARD segments and are memory-mapped, so a model of a million
segments is read where it is needed.

Raise PROTOCOL when an older reader would misread a newer bundle; keep reading the older one as long as it is cheap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from segwatch.core.calibration import N_QUANTILES, Calibration
from segwatch.core.detector import Detector, Scaling
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.panel import Floats, History, Ints, Panel, history_columns, history_from_table
from segwatch.core.training import FittedSegment
from segwatch.core.window import Window
from segwatch.errors import DataError, ModelError

PROTOCOL = 1
SHARD = 500
DETECTORS = 1024
_FILES = ("segments.arrow", "vectors.arrow")
_D = len(FEATURES)
_VECTORS = pa.schema([("vector", pa.list_(pa.float32(), _D)), ("weight", pa.float64())])


@dataclass(frozen=True)
class Rules:
    """The thresholds that a model was trained to be used with."""

    alpha: float
    fdr: float
    min_history: int


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

    @cached_property
    def feature_set(self) -> FeatureSet:
        """The FeatureSet that the model was trained on.

        Raises ModelError if this segwatch defines it otherwise.
        """
        stored = self.manifest["feature_set"]
        feature_set = FeatureSet(stored["grain"], stored["is_count"], stored["name"], stored["version"])
        if feature_set != FeatureSet(stored["grain"], stored["is_count"]) or (
            feature_set.fingerprint != stored["fingerprint"]
        ):
            raise ModelError(
                f"the model in {self.path} was trained on features {stored['name']} v{stored['version']}, which this"
                " segwatch does not define so: train it anew"
            )
        return feature_set

    @cached_property
    def _segments(self) -> pa.Table:
        with pa.memory_map(str(self.path / "segments.arrow")) as source:
            return pa.ipc.open_file(source).read_all()

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
    def scale(self) -> Floats:
        return np.asarray(self._segments["scale"].to_numpy())

    @cached_property
    def _offsets(self) -> Ints:
        """Where the vectors of each segment begin in their shard, and how many there are: (n_segments, 2)."""
        counts = self._segments["n_vectors"].to_numpy()
        shards = [counts[a : a + SHARD] for a in range(0, len(counts), SHARD)]
        starts = [np.cumsum(shard) - shard for shard in shards]
        return np.stack([np.concatenate([*starts, np.empty(0, int)]), counts], axis=1).astype(np.int64)

    @cached_property
    def _parameters(self) -> Mapping[str, Floats]:
        columns = {"center": _D, "spread": _D, "quantiles": N_QUANTILES}
        return {
            name: np.asarray(self._segments[name].combine_chunks().flatten()).reshape(-1, width)
            for name, width in columns.items()
        }

    @cached_property
    def _shard(self) -> Any:
        reader = pa.ipc.open_file(pa.memory_map(str(self.path / "vectors.arrow")))
        return lru_cache(maxsize=4)(reader.get_batch)

    def detector(self, position: int) -> Detector:
        """The detector of the segment at a position of `history.segments`; those used last are kept.

        Raises ModelError if that segment was not fitted.
        """
        return self._detectors(position)

    @cached_property
    def _detectors(self) -> Callable[[int], Detector]:
        return lru_cache(maxsize=DETECTORS)(self._read_detector)

    def _read_detector(self, position: int) -> Detector:
        if self.status[position] != "ok":
            label = self.history.segments.labels[position]
            raise ModelError(f"segment {label} has no model: {self.reason[position]}")
        start, count = self._offsets[position]
        # Arrow does not promise that one reader serves two threads at once.
        with self._reading:
            batch = self._shard(position // SHARD).slice(start, count)
        named = {name: values[position] for name, values in self._parameters.items()}
        return Detector(
            Scaling(named["center"], named["spread"]),
            batch["vector"].flatten().to_numpy().reshape(count, _D),
            batch["weight"].to_numpy(),
            Calibration(named["quantiles"]),
        )

    def fitted(self, position: int) -> FittedSegment:
        """What training made of the segment at a position; `write_bundle` writes it as it was."""
        status = self.status[position]
        return FittedSegment(
            self._segments["n_observations"][position].as_py(),
            float(self.scale[position]),
            self.detector(position) if status == "ok" else None,
            status,
            self.reason[position],
        )

    def groups(self, segment_ids: Sequence[str]) -> Iterator[tuple[int, Ints]]:
        """Position of each segment that the ids name, with the rows that name it.

        Raises DataError if an id is of no known segment.
        """
        codes = pa.array(segment_ids, pa.string()).dictionary_encode()
        indices = codes.indices.to_numpy()
        order = np.argsort(indices, kind="stable")
        edges = np.searchsorted(indices[order], np.arange(len(codes.dictionary) + 1))
        for code, id_ in enumerate(codes.dictionary.to_pylist()):
            position = self.history.segments.position.get(id_)
            if position is None:
                raise DataError(f"segment id {id_} is not in this model: train again to include it")
            yield position, order[edges[code] : edges[code + 1]]

    def score(self, segment_ids: Sequence[str], X: Floats) -> tuple[Floats, Floats]:
        """Scores and p-values (n_rows,) of rows X (n_rows, n_features), each by its own segment's detector.

        Raises DataError for an unknown segment or an incomplete row, ModelError for a segment without a detector.
        """
        scores, p_values = np.empty(len(X)), np.empty(len(X))
        for position, rows in self.groups(segment_ids):
            detector = self.detector(position)
            scores[rows] = detector.score(X[rows])
            p_values[rows] = detector.calibration.p_value(scores[rows])
        return scores, p_values

    def predict(self, segment_ids: Sequence[str], X: Floats) -> tuple[Ints, Floats, Floats]:
        """Predictions (+1 and -1), scores and p-values (n_rows,) of rows X, with the errors of `score`."""
        scores, p_values = self.score(segment_ids, X)
        return np.where(p_values <= self.rules.alpha, -1, 1), scores, p_values

    def shift(self, segment_ids: Sequence[str], X: Floats) -> dict[str, float]:
        """By feature, how far half of the rows X (n_rows, n_features) lie from training's median, in its spreads.

        About 0 where the data are as they were, whatever single rows do. Raises DataError for an unknown segment.
        """
        scaled = np.empty(X.shape)
        for position, rows in self.groups(segment_ids):
            center, spread = (self._parameters[name][position] for name in ("center", "spread"))
            scaled[rows] = (X[rows] - center) / spread
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
    panel: Panel,
    feature_set: FeatureSet,
    rules: Rules,
    fitted: Iterable[FittedSegment],
) -> ModelBundle:
    """The directory `path` holds the bundle of the fitted segments (in the Panel's order), written shard by shard."""
    path.mkdir(parents=True)
    counts: dict[str, int] = {}
    stream = iter(fitted)
    with (
        pa.ipc.new_file(str(path / "segments.arrow"), _segment_schema(panel.segments.dimensions)) as segments,
        pa.ipc.new_file(str(path / "vectors.arrow"), _VECTORS) as vectors,
    ):
        for start in range(0, len(panel.segments), SHARD):
            shard = list(islice(stream, SHARD))
            history = panel.history.take(range(start, start + len(shard)))
            segments.write_batch(
                _segment_batch(history, shard, segments_schema=_segment_schema(panel.segments.dimensions))
            )
            vectors.write_batch(_vector_batch(shard))
            for one in shard:
                counts[one.status] = counts.get(one.status, 0) + 1
    manifest = {
        "protocol": PROTOCOL,
        "metric": metric,
        "dimensions": list(panel.segments.dimensions),
        "feature_set": {
            "name": feature_set.name,
            "version": feature_set.version,
            "grain": feature_set.grain,
            "is_count": feature_set.is_count,
            "fingerprint": feature_set.fingerprint,
        },
        "rules": {"alpha": rules.alpha, "fdr": rules.fdr, "min_history": rules.min_history},
        "window": panel.window.as_dict(),
        "data_digest": data_digest(panel),
        "counts": {"segments": len(panel.segments), **counts},
        "files": {name: _digest(path / name) for name in _FILES},
    }
    manifest["digest"] = _manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return ModelBundle.open(path)


def data_digest(panel: Panel) -> str:
    """sha256 of the Panel's segments and values: the same data, the same digest."""
    digest = hashlib.sha256("\n".join(panel.segments.ids).encode())
    for rows in panel.chunks():
        digest.update(np.ascontiguousarray(panel.values[rows]).tobytes())
    return digest.hexdigest()


def _segment_schema(dimensions: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [
            ("segment_id", pa.string()),
            *((f"dimension.{name}", pa.string()) for name in dimensions),
            ("first_seen", pa.timestamp("us")),
            ("last_seen", pa.timestamp("us")),
            ("n_observations", pa.int64()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("scale", pa.float64()),
            ("center", pa.list_(pa.float64(), _D)),
            ("spread", pa.list_(pa.float64(), _D)),
            ("quantiles", pa.list_(pa.float64(), N_QUANTILES)),
            ("n_vectors", pa.int64()),
        ]
    )


def _segment_batch(history: History, shard: Sequence[FittedSegment], segments_schema: pa.Schema) -> pa.RecordBatch:
    detectors = [one.detector for one in shard]
    columns = {
        "segment_id": pa.array(history.segments.ids, pa.string()),
        **history_columns(history),
        "n_observations": pa.array([one.n_observations for one in shard], pa.int64()),
        "status": pa.array([one.status for one in shard], pa.string()),
        "reason": pa.array([one.reason for one in shard], pa.string()),
        "scale": pa.array([one.scale for one in shard], pa.float64()),
        "center": _lists([d.scaling.center if d else None for d in detectors], _D),
        "spread": _lists([d.scaling.spread if d else None for d in detectors], _D),
        "quantiles": _lists([d.calibration.quantiles if d else None for d in detectors], N_QUANTILES),
        "n_vectors": pa.array([len(d.weights) if d else 0 for d in detectors], pa.int64()),
    }
    return pa.record_batch([columns[name] for name in segments_schema.names], schema=segments_schema)


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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
