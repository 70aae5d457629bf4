"""The Panel: a dense matrix of one metric, segments by periods, where NaN means no observation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from segwatch.core.segment import Values, label, level, segment_id
from segwatch.core.window import Times, Window, length, unit
from segwatch.errors import DataError

Missing = Literal["zero", "gap"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# Keeps a dimension named like one of our own columns apart from it.
_PREFIX = "dimension."
# Of a Panel that are worked on at a time.
_CELLS = 4_000_000


@dataclass(frozen=True)
class Segments:
    """Segments in order: dimension names, and one tuple of values for each segment, None where summed out."""

    dimensions: tuple[str, ...]
    values: tuple[Values, ...]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(segment_id(self.dimensions, values) for values in self.values)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(label(values) for values in self.values)

    @cached_property
    def is_rollup(self) -> Bools:
        """(n_segments,), True for sums over a dimension."""
        return np.array([None in values for values in self.values], dtype=bool)

    @cached_property
    def levels(self) -> tuple[str, ...]:
        return tuple(level(self.dimensions, values) for values in self.values)

    @cached_property
    def position(self) -> dict[str, int]:
        """Position of each segment id."""
        return {id_: i for i, id_ in enumerate(self.ids)}

    def take(self, positions: Sequence[int] | Ints) -> Segments:
        return Segments(self.dimensions, tuple(self.values[i] for i in positions))

    def columns(self, prefix: str = "") -> dict[str, pa.Array]:
        """One string array for each dimension, named by it."""
        return {
            prefix + name: pa.array([values[d] for values in self.values], pa.string())
            for d, name in enumerate(self.dimensions)
        }

    @classmethod
    def from_columns(cls, dimensions: Sequence[str], table: pa.Table, prefix: str = "") -> Segments:
        """Inverse of `columns`; other columns of the table are ignored."""
        lists = [table[prefix + name].to_pylist() for name in dimensions]
        values = zip(*lists, strict=True) if lists else [()] * table.num_rows
        return cls(tuple(dimensions), tuple(values))


@dataclass(frozen=True)
class History:
    """When each known segment had its first and its last row, up to the end of a Window.

    Of a ratio, a row whose denominator is zero is none.
    first_seen, last_seen: (n_segments,) datetime64 of the grain.
    """

    segments: Segments
    first_seen: Times
    last_seen: Times

    def take(self, positions: Sequence[int] | Ints) -> History:
        """The History of some of its segments."""
        rows = np.asarray(positions, dtype=np.int64)
        return History(self.segments.take(positions), self.first_seen[rows], self.last_seen[rows])

    @property
    def leaves(self) -> History:
        """The History of those that are no roll-ups."""
        return self.take(np.flatnonzero(~self.segments.is_rollup))


@dataclass(frozen=True)
class Panel:
    """Values of segments over a Window.

    values: (n_segments, n_times) float64; NaN = no observation (not born yet, or data that did not arrive).
    history: the same segments, with first and last period that had a row.
    exposure: None, or of a ratio its denominators, positive, and NaN where values are; values are its numerators.
    """

    history: History
    window: Window
    values: Floats
    exposure: Floats | None = None

    @property
    def segments(self) -> Segments:
        return self.history.segments

    def take(self, positions: Sequence[int] | Ints) -> Panel:
        """The Panel of some of its segments."""
        rows = np.asarray(positions, dtype=np.int64)
        exposure = None if self.exposure is None else self.exposure[rows]
        return Panel(self.history.take(positions), self.window, self.values[rows], exposure)

    def without(self, cells: Bools) -> Panel:
        """The Panel, some cells (n_segments, n_times) not observed."""
        exposure = None if self.exposure is None else np.where(cells, np.nan, self.exposure)
        return Panel(self.history, self.window, np.where(cells, np.nan, self.values), exposure)

    def ended(self, periods: int) -> Bools:
        """(n_segments, n_times), True from `periods` after a segment's last row on."""
        return np.asarray(
            self.window.times[None, :] >= self.history.last_seen[:, None] + length(periods, self.window.grain)
        )

    def chunks(self, cells: int = 2_000_000) -> Iterator[slice]:
        """Slices of segments that hold about `cells` values each, so work arrays stay small."""
        step = max(1, cells // max(1, self.values.shape[1]))
        for start in range(0, len(self.segments), step):
            yield slice(start, min(start + step, len(self.segments)))

    def save(self, directory: Path) -> None:
        """The directory holds the Panel; `Panel.load` reads it back."""
        directory.mkdir(parents=True)
        np.save(directory / "values.npy", self.values, allow_pickle=False)
        if self.exposure is not None:
            np.save(directory / "exposure.npy", self.exposure, allow_pickle=False)
        feather.write_feather(
            pa.table(history_columns(self.history)), str(directory / "segments.arrow"), compression="lz4"
        )
        document = {"window": self.window.as_dict(), "dimensions": list(self.segments.dimensions)}
        (directory / "panel.json").write_text(json.dumps(document), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Panel:
        """The Panel that `save` wrote, its values and exposure memory-mapped."""
        document = json.loads((directory / "panel.json").read_text(encoding="utf-8"))
        window = Window.from_dict(document["window"])
        table = feather.read_table(str(directory / "segments.arrow"))
        history = history_from_table(table, document["dimensions"], window)
        has_exposure = (directory / "exposure.npy").exists()
        exposure = _mapped(directory / "exposure.npy") if has_exposure else None
        return cls(history, window, _mapped(directory / "values.npy"), exposure)


def _mapped(path: Path) -> Floats:
    matrix: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    return matrix


def history_from_table(table: pa.Table, dimensions: Sequence[str], window: Window) -> History:
    """The History in a table of dimension columns, first_seen and last_seen."""
    seen = [table[name].to_numpy().astype(f"datetime64[{unit(window.grain)}]") for name in ("first_seen", "last_seen")]
    return History(Segments.from_columns(dimensions, table, _PREFIX), *seen)


def history_columns(history: History) -> dict[str, pa.Array]:
    """The History as columns; `history_from_table` reads them back."""
    return {
        **history.segments.columns(_PREFIX),
        "first_seen": pa.array(history.first_seen.astype("datetime64[us]")),
        "last_seen": pa.array(history.last_seen.astype("datetime64[us]")),
    }


def build_panel(
    observations: pa.Table | Iterable[pa.Table],
    dimensions: Sequence[str],
    window: Window,
    missing: Missing,
    known: History | None = None,
) -> Panel:
    """The Panel of a Window from its observations (see `observations_schema`), in any row order.

    observations: one table, or several that are gone through twice, of which one at a time is in memory.
    missing: "zero" for counts, where GROUP BY drops what did not happen: a lone absent row is 0, while a period
    without a row for a whole value of a dimension, or for the whole table, is a gap; "gap" where every absence is.
    Observations with a denominator make the Panel of a ratio: whatever `missing` is, every absence is a gap, and so is
    a denominator of zero, where nothing was tried.
    known: segments met before this Window, which keep their place and their first row.
    Raises DataError if the table holds several rows of one segment and period and they cannot be summed, being of
    neither a count nor a ratio, or if a ratio has no denominator above zero and no segment is known.
    """
    tables = [observations] if isinstance(observations, pa.Table) else observations
    met, is_ratio = _Met(dimensions, window), False
    for table in tables:
        is_ratio = "denominator" in table.column_names
        if missing == "gap" and not is_ratio:
            _refuse_duplicates(table, met, window)
        met.add(_tried(table))
    if is_ratio and not met.values and known is None:
        raise DataError(f"every denominator in the Window {window} is zero: choose a Window with others")
    here, order = met.history()
    history, merged = _merge(here, known)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = merged
    shape = len(history.segments), len(window)
    values = np.full(shape, np.nan)
    exposure = np.full(shape, np.nan) if is_ratio else None
    for table in map(_tried, tables):
        cells = place[met.codes(table)], _columns_of(table, window)
        values[cells] = table["value"].to_numpy()
        if exposure is not None:
            exposure[cells] = table["denominator"].to_numpy()
    if missing == "zero" and not is_ratio:
        _fill_zeros(values, history, window)
    return Panel(history, window, values, exposure)


def _tried(observations: pa.Table) -> pa.Table:
    """The observations; of a ratio those whose denominator is above zero."""
    if "denominator" not in observations.column_names:
        return observations
    return observations.filter(pc.greater(observations["denominator"], 0))


def _columns_of(observations: pa.Table, window: Window) -> Ints:
    """The column of the Panel of each row."""
    times = observations["ts"].to_numpy().astype(f"datetime64[{unit(window.grain)}]")
    return np.asarray((times - window.start).astype(np.int64))


class _Met:
    """The segments of tables in the order in which they are met, and the first and last period of each."""

    def __init__(self, dimensions: Sequence[str], window: Window) -> None:
        self.values: list[Values] = []
        self._dimensions, self._window = tuple(dimensions), window
        self._place: dict[Values, int] = {}
        self._first, self._last = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def add(self, table: pa.Table) -> None:
        """The segments of the table are met."""
        runs, segments = self._runs(table)
        if not len(runs):
            return
        new = len(self.values) - len(self._first)
        unmet = np.iinfo(np.int64)
        self._first = np.concatenate([self._first, np.full(new, unmet.max)])
        self._last = np.concatenate([self._last, np.full(new, unmet.min)])
        columns = _columns_of(table, self._window)
        np.minimum.at(self._first, segments, np.minimum.reduceat(columns, runs))
        np.maximum.at(self._last, segments, np.maximum.reduceat(columns, runs))

    def codes(self, table: pa.Table) -> Ints:
        """(n_rows,), the place of each row's segment in the order of meeting."""
        runs, segments = self._runs(table)
        return np.repeat(segments, np.diff(runs, append=table.num_rows))

    def history(self) -> tuple[History, Ints]:
        """The History, segments in the order of their values, and each one's place in the order of meeting."""
        order = np.array(sorted(range(len(self.values)), key=self.values.__getitem__), dtype=np.int64)
        segments = Segments(self._dimensions, tuple(self.values[i] for i in order))
        first, last = (self._window.start + seen[order] for seen in (self._first, self._last))
        return History(segments, first, last), order

    def _runs(self, table: pa.Table) -> tuple[Ints, Ints]:
        """Where each run of rows of one segment begins, and its segment's place; rows come sorted by segment."""
        if not table.num_rows:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        begins = np.zeros(table.num_rows, dtype=bool)
        begins[0] = True
        columns = []
        for name in self._dimensions:
            encoded = table[name].combine_chunks().dictionary_encode()
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            begins[1:] |= codes[1:] != codes[:-1]
            columns.append((encoded.dictionary.to_pylist(), codes))
        runs = np.flatnonzero(begins)
        names = zip(*([words[k] for k in codes[runs].tolist()] for words, codes in columns), strict=True)
        return runs, np.array([self._place_of(values) for values in names], dtype=np.int64)

    def names(self, row: pa.Table) -> Values:
        """The dimensions' values of a table of one row."""
        return tuple(row[name][0].as_py() for name in self._dimensions)

    def _place_of(self, values: Values) -> int:
        place = self._place.setdefault(values, len(self.values))
        if place == len(self.values):
            self.values.append(values)
        return place


def _refuse_duplicates(observations: pa.Table, met: _Met, window: Window) -> None:
    several = np.flatnonzero(observations["n_rows"].to_numpy() > 1)
    if several.size:
        row = observations.slice(int(several[0]), 1)
        column = int(_columns_of(row, window)[0])
        raise DataError(
            f"segment {label(met.names(row))} has {row['n_rows'][0].as_py()} rows at"
            f' {window.times[column]}, and a metric with missing = "gap" cannot be summed: keep one row per segment and'
            f' period, or set missing = "zero" if it is a count'
        )


def _merge(here: History, known: History | None) -> tuple[History, Ints]:
    """Known segments first, then new ones; and the place of each segment of `here` among them."""
    if known is None:
        return here, np.arange(len(here.segments))
    position = known.segments.position
    fresh = [i for i, id_ in enumerate(here.segments.ids) if id_ not in position]
    segments = Segments(here.segments.dimensions, known.segments.values + tuple(here.segments.values[i] for i in fresh))
    place = np.array([segments.position[id_] for id_ in here.segments.ids], dtype=np.int64)
    first = np.concatenate([known.first_seen, here.first_seen[fresh]])
    last = np.concatenate([known.last_seen, here.last_seen[fresh]])
    first[place] = np.minimum(first[place], here.first_seen)
    last[place] = np.maximum(last[place], here.last_seen)
    return History(segments, first, last), place


def _fill_zeros(values: Floats, history: History, window: Window) -> None:
    """Zeros in place where a born segment has no row and its data did arrive."""
    groups = [rows for d in range(len(history.segments.dimensions)) for rows in _rows_by_value(history.segments, d)]
    born_at = (history.first_seen - window.start).astype(np.int64)
    step = max(1, _CELLS // max(1, len(values)))
    for start in range(0, values.shape[1], step):
        some = values[:, start : start + step]
        present = ~np.isnan(some)
        arrived = np.broadcast_to(present.any(axis=0), some.shape).copy()
        born = np.arange(start, start + some.shape[1]) >= born_at[:, None]
        for rows in groups:
            whole = ~present[rows].any(axis=0) & (born[rows].sum(axis=0) >= 2)
            if whole.any():
                arrived[np.ix_(rows, whole)] = False
        some[~present & born & arrived] = 0.0


def _rows_by_value(segments: Segments, dimension: int) -> Iterator[Ints]:
    """Positions of the segments of each value that at least two segments share."""
    groups: dict[str | None, list[int]] = {}
    for i, values in enumerate(segments.values):
        groups.setdefault(values[dimension], []).append(i)
    # One segment alone cannot tell a zero from data that did not arrive, so it stays a zero.
    return (np.array(rows) for rows in groups.values() if len(rows) >= 2)
