"""The rows of a Window on their way to the Panel: segments by number, so that their names are read once.

rows.arrow      segment (its number), ts, value, denominator of a ratio, n_rows
segments.arrow  the segments' dimensions, in the order of their numbers
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from segwatch.core.segment import Values

_ROWS, _SEGMENTS = "rows.arrow", "segments.arrow"
_ROWS_OF_A_BATCH = 1_000_000
Ints = npt.NDArray[np.int64]


@dataclass
class Numbers:
    """Numbers of segments, in the order in which they are met. values: their dimensions' values."""

    dimensions: tuple[str, ...]
    values: list[Values] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._codes: list[dict[str, int]] = [{} for _ in self.dimensions]
        # Of the first k dimensions together: the keys that were met, ascending, and the number of each.
        self._keys: list[Ints] = [np.empty(0, np.int64) for _ in self.dimensions]
        self._numbers: list[Ints] = [np.empty(0, np.int64) for _ in self.dimensions]

    def of(self, table: pa.Table) -> Ints:
        """(n_rows,), the number of each row's segment."""
        parents = np.zeros(table.num_rows, np.int64)
        for d, name in enumerate(self.dimensions):
            column = table[name].combine_chunks().dictionary_encode()
            codes = self._codes[d]
            own = np.array([codes.setdefault(word, len(codes)) for word in column.dictionary.to_pylist()], np.int64)
            parents = self._together(d, parents << 32 | own[column.indices.to_numpy()])
        return parents

    def _together(self, d: int, keys: Ints) -> Ints:
        """The number of each key among those of the first d + 1 dimensions; a key is the number of d and a code."""
        encoded = pa.array(keys).dictionary_encode()
        met = encoded.dictionary.to_numpy()
        known, numbers = self._keys[d], self._numbers[d]
        place = np.searchsorted(known, met)
        fresh = met[(known[np.minimum(place, len(known) - 1)] != met) if len(known) else slice(None)]
        if len(fresh):
            # In the order of meeting, which is the same for the same rows in the same order.
            if d == len(self.dimensions) - 1:
                self.values += self._named(fresh)
            numbers = np.concatenate([numbers, np.arange(len(known), len(known) + len(fresh))])
            known = np.concatenate([known, fresh])
            order = np.argsort(known)
            self._keys[d], self._numbers[d] = known[order], numbers[order]
            place = np.searchsorted(self._keys[d], met)
        return np.asarray(self._numbers[d][place][encoded.indices.to_numpy()])

    def _named(self, keys: Ints) -> Iterator[Values]:
        """The values of all dimensions of keys of the last one."""
        columns = []
        for d in reversed(range(len(self.dimensions))):
            words = list(self._codes[d])
            columns.append([words[k] for k in (keys & 0xFFFFFFFF).tolist()])
            if d:
                by_number = np.empty(len(self._keys[d - 1]), np.int64)
                by_number[self._numbers[d - 1]] = self._keys[d - 1]
                keys = by_number[keys >> 32]
        return zip(*reversed(columns), strict=True)


@dataclass(frozen=True)
class Observations:
    """Rows by number of segment, gone through as often as is asked, a table at a time.

    tables: columns segment, ts, value, denominator where it is a ratio, n_rows. values: of the dimensions, by number.
    """

    tables: Iterable[pa.Table]
    dimensions: tuple[str, ...]
    values: Sequence[Values]
    is_ratio: bool = False

    @classmethod
    def of(cls, table: pa.Table, dimensions: Sequence[str]) -> Observations:
        """Those of a table in memory, see `observations_schema`."""
        numbers = Numbers(tuple(dimensions))
        return cls([_numbered(table, numbers)], numbers.dimensions, numbers.values, _is_ratio(table))

    @classmethod
    def open(cls, directory: Path) -> Observations:
        """Those that `write_observations` wrote."""
        names = feather.read_table(str(directory / _SEGMENTS))
        rows = _Tables(directory / _ROWS)
        return cls(
            rows,
            tuple(names.column_names),
            list(zip(*(names[name].to_pylist() for name in names.column_names), strict=True)),
            "denominator" in rows.schema.names,
        )


def write_observations(parts: Iterable[pa.Table], dimensions: Sequence[str], directory: Path) -> int:
    """The directory holds the parts' rows (see `observations_schema`), in any order; returns how many there were."""
    directory.mkdir(parents=True)
    numbers, n_rows = Numbers(tuple(dimensions)), 0
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as files:
        writer: pa.ipc.RecordBatchFileWriter | None = None
        for part in parts:
            n_rows += part.num_rows
            rows = _numbered(part, numbers)
            if writer is None:
                writer = files.enter_context(pa.ipc.new_file(str(directory / _ROWS), rows.schema, options=options))
            writer.write_table(rows, _ROWS_OF_A_BATCH)
    columns = list(zip(*numbers.values, strict=True)) or [()] * len(numbers.dimensions)
    names = {name: pa.array(c, pa.string()) for name, c in zip(numbers.dimensions, columns, strict=True)}
    feather.write_feather(pa.table(names), str(directory / _SEGMENTS), compression="lz4")
    return n_rows


class _Tables:
    """The tables of a file of rows, one after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def schema(self) -> pa.Schema:
        with pa.ipc.open_file(str(self._path)) as reader:
            return reader.schema

    def __iter__(self) -> Iterator[pa.Table]:
        with pa.ipc.open_file(str(self._path)) as reader:
            for i in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(i)])


def _numbered(table: pa.Table, numbers: Numbers) -> pa.Table:
    """The rows by number; of a ratio those whose denominator is above zero: in others nothing was tried."""
    if _is_ratio(table):
        table = table.filter(pc.greater(table["denominator"], 0))
    kept = [name for name in table.column_names if name not in numbers.dimensions]
    segment = pa.array(numbers.of(table).astype(np.int32))
    return table.select(kept).add_column(0, "segment", segment)


def _is_ratio(table: pa.Table) -> bool:
    return "denominator" in table.column_names
