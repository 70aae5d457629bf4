"""The Panel: a dense matrix of one metric, segments by periods, where NaN means no observation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from segwatch.core import matrix
from segwatch.core.observations import Observations
from segwatch.core.segment import Values, label, level, segment_id
from segwatch.core.window import Times, Window, length, unit
from segwatch.errors import DataError

Missing = Literal["zero", "gap"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# Keeps a dimension named like one of our own columns apart from it.
_PREFIX = "dimension."


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
        taken = Segments(self.dimensions, tuple(self.values[i] for i in positions))
        if "ids" in self.__dict__:
            taken.__dict__["ids"] = tuple(self.ids[i] for i in positions)
        return taken

    def joined(self, other: Segments) -> Segments:
        """These segments and the others after them."""
        joined = Segments(self.dimensions, self.values + other.values)
        if "ids" in self.__dict__:
            joined.__dict__["ids"] = self.ids + other.ids
        return joined

    @cached_property
    def codes(self) -> Ints:
        """(n_dimensions, n_segments), a number for each value of a dimension, -1 where it is summed out."""
        columns = [column.dictionary_encode() for column in self.columns().values()]
        codes = [pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False) for column in columns]
        return np.array(codes, dtype=np.int64).reshape(len(self.dimensions), len(self))

    def columns(self, prefix: str = "") -> dict[str, pa.Array]:
        """One string array for each dimension, named by it."""
        return {
            prefix + name: pa.array([values[d] for values in self.values], pa.string())
            for d, name in enumerate(self.dimensions)
        }

    @classmethod
    def from_columns(cls, dimensions: Sequence[str], table: pa.Table, prefix: str = "") -> Segments:
        """Inverse of `columns`; of other columns of the table only segment_id counts."""
        lists = [table[prefix + name].to_pylist() for name in dimensions]
        values = zip(*lists, strict=True) if lists else [()] * table.num_rows
        segments = cls(tuple(dimensions), tuple(values))
        if "segment_id" in table.column_names:
            # They take a second of 100,000 to find.
            segments.__dict__["ids"] = tuple(table["segment_id"].to_pylist())
        return segments


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

    def take(self, positions: Sequence[int] | Ints, room: Path | None = None) -> Panel:
        """The Panel of some of its segments; room: see `matrix.new`."""
        rows = np.asarray(positions, dtype=np.int64)
        exposure = None if self.exposure is None else matrix.take(self.exposure, rows, room)
        return Panel(self.history.take(positions), self.window, matrix.take(self.values, rows, room), exposure)

    def last(self, n_periods: int) -> Panel:
        """The Panel of the last periods, in memory."""
        window = Window(self.window.times[-n_periods], self.window.end, self.window.grain)
        values, exposure = (m if m is None else np.array(m[:, -n_periods:]) for m in (self.values, self.exposure))
        return Panel(self.history, window, values, exposure)  # type: ignore[arg-type]

    def forget(self, cells: Any) -> None:
        """The values at some places of the matrix, given as an index of it, are, in place, no longer observed."""
        self.values[cells] = np.nan
        if self.exposure is not None:
            self.exposure[cells] = np.nan

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
        matrix.save(self.values, directory / "values.npy")
        if self.exposure is not None:
            matrix.save(self.exposure, directory / "exposure.npy")
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
        exposure = matrix.load(directory / "exposure.npy") if has_exposure else None
        return cls(history, window, matrix.load(directory / "values.npy"), exposure)


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
    observations: pa.Table | Observations,
    dimensions: Sequence[str],
    window: Window,
    missing: Missing,
    known: History | None = None,
    room: Path | None = None,
) -> Panel:
    """The Panel of a Window from its observations (see `observations_schema`), in any row order.

    missing: "zero" for counts, where GROUP BY drops what did not happen: a lone absent row is 0, while a period
    without a row for a whole value of a dimension, or for the whole table, is a gap; "gap" where every absence is.
    Observations with a denominator make the Panel of a ratio: whatever `missing` is, every absence is a gap, and so is
    a denominator of zero, where nothing was tried.
    known: segments met before this Window, which keep their place and their first row. room: see `matrix.new`.
    Raises DataError if the table holds several rows of one segment and period and they cannot be summed, being of
    neither a count nor a ratio, or if a ratio has no denominator above zero and no segment is known.
    """
    if isinstance(observations, pa.Table):
        observations = Observations.of(observations, dimensions)
    is_ratio = observations.is_ratio
    if is_ratio and not observations.values and known is None:
        raise DataError(f"every denominator in the Window {window} is zero: choose a Window with others")
    here, place = _in_order(observations)
    segments, merged = _merge(here, known)
    place = merged[place]
    shape = len(segments), len(window)
    values = matrix.new(shape, np.nan, room)
    exposure = matrix.new(shape, np.nan, room) if is_ratio else None
    for table in observations.tables:
        if missing == "gap" and not is_ratio:
            _refuse_duplicates(table, observations, window)
        cells = place[table["segment"].to_numpy()], _columns_of(table, window)
        values[cells] = table["value"].to_numpy()
        if exposure is not None:
            exposure[cells] = table["denominator"].to_numpy()
            matrix.release(exposure)
        matrix.release(values)
    history = _history(values, segments, window, known)
    if missing == "zero" and not is_ratio:
        _fill_zeros(values, history, window)
    return Panel(history, window, values, exposure)


def _columns_of(observations: pa.Table, window: Window) -> Ints:
    """The column of the Panel of each row."""
    times = observations["ts"].to_numpy().astype(f"datetime64[{unit(window.grain)}]")
    return np.asarray((times - window.start).astype(np.int64))


def _in_order(observations: Observations) -> tuple[Segments, Ints]:
    """The segments in the order of their values, and the place of each among them by its number."""
    numbers = sorted(range(len(observations.values)), key=observations.values.__getitem__)
    place = np.empty(len(numbers), dtype=np.int64)
    place[numbers] = np.arange(len(numbers))
    return Segments(observations.dimensions, tuple(observations.values[i] for i in numbers)), place


def _refuse_duplicates(rows: pa.Table, observations: Observations, window: Window) -> None:
    several = np.flatnonzero(rows["n_rows"].to_numpy() > 1)
    if several.size:
        row = rows.slice(int(several[0]), 1)
        column = int(_columns_of(row, window)[0])
        raise DataError(
            f"segment {label(observations.values[row['segment'][0].as_py()])} has {row['n_rows'][0].as_py()} rows at"
            f' {window.times[column]}, and a metric with missing = "gap" cannot be summed: keep one row per segment and'
            f' period, or set missing = "zero" if it is a count'
        )


def _merge(here: Segments, known: History | None) -> tuple[Segments, Ints]:
    """Known segments first, then new ones; and the place of each segment of `here` among them."""
    if known is None:
        return here, np.arange(len(here))
    # By their values: to find an id takes ten times as long as to look them up.
    position = {values: i for i, values in enumerate(known.segments.values)}
    fresh = [i for i, values in enumerate(here.values) if values not in position]
    position.update((here.values[i], len(known.segments) + k) for k, i in enumerate(fresh))
    return known.segments.joined(here.take(fresh)), np.array([position[v] for v in here.values], dtype=np.int64)


def _history(values: Floats, segments: Segments, window: Window, known: History | None) -> History:
    """When each segment had its first and its last row, of which the values (n_segments, n_times) hold those here."""
    first = np.full(len(segments), np.iinfo(np.int64).max)
    last = np.full(len(segments), np.iinfo(np.int64).min)
    for some in matrix.columns(values):
        for column in range(some.start, some.stop):
            seen = ~np.isnan(values[:, column])
            np.minimum(first, column, out=first, where=seen)
            last[seen] = column
        matrix.release(values)
    no_row = last < 0
    first[no_row] = last[no_row] = 0
    first_seen, last_seen = window.start + first, window.start + last
    if known is not None:
        n = len(known.segments)
        is_new = ~no_row[:n]
        first_seen[:n] = np.where(is_new, np.minimum(first_seen[:n], known.first_seen), known.first_seen)
        last_seen[:n] = np.where(is_new, np.maximum(last_seen[:n], known.last_seen), known.last_seen)
    return History(segments, first_seen, last_seen)


def _fill_zeros(values: Floats, history: History, window: Window) -> None:
    """Zeros in place where a born segment has no row and its data did arrive."""
    groups = [rows for d in range(len(history.segments.dimensions)) for rows in _rows_by_value(history.segments, d)]
    born_at = (history.first_seen - window.start).astype(np.int64)
    for columns in matrix.columns(values):
        some = values[:, columns]
        present = ~np.isnan(some)
        arrived = np.broadcast_to(present.any(axis=0), some.shape).copy()
        born = np.arange(columns.start, columns.stop) >= born_at[:, None]
        for rows in groups:
            whole = ~present[rows].any(axis=0) & (born[rows].sum(axis=0) >= 2)
            if whole.any():
                arrived[np.ix_(rows, whole)] = False
        some[~present & born & arrived] = 0.0
        matrix.release(values)


def _rows_by_value(segments: Segments, dimension: int) -> Iterator[Ints]:
    """Positions of the segments of each value that at least two segments share."""
    groups: dict[str | None, list[int]] = {}
    for i, values in enumerate(segments.values):
        groups.setdefault(values[dimension], []).append(i)
    # One segment alone cannot tell a zero from data that did not arrive, so it stays a zero.
    return (np.array(rows) for rows in groups.values() if len(rows) >= 2)
