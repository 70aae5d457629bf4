import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segwatch.core.observations import Numbers, Observations, write_observations
from segwatch.core.schema import observations_schema

DIMENSIONS = ("country", "segment", "ts_like")
words = st.sampled_from(["", "a", "b", "a/b", "Ä", "<null>"])


def table(names, start=0):
    columns = [[np.datetime64("2024-01-01", "us")] * len(names), *(zip(*names, strict=True) if names else [[]] * 3)]
    numbers = [float(start + i) for i in range(len(names))]
    return pa.table([*map(list, columns), numbers, [1] * len(names)], schema=observations_schema(DIMENSIONS))


@given(st.lists(st.lists(st.tuples(words, words, words), max_size=30), max_size=4))
def test_each_segment_has_one_number_whatever_the_order_of_its_rows(parts):
    numbers = Numbers(DIMENSIONS)
    for names in parts:
        found = numbers.of(table(names))
        assert [numbers.values[k] for k in found] == names
    assert len(set(numbers.values)) == len(numbers.values) == len({one for names in parts for one in names})


def test_what_is_written_is_read_as_often_as_it_is_asked_for(tmp_path):
    parts = [table([("de", "x", "1"), ("it", "x", "1")]), table([("it", "x", "1"), ("it", "y", "1")], 2)]
    assert write_observations(parts, DIMENSIONS, tmp_path / "it") == 4
    read = Observations.open(tmp_path / "it")
    assert read.dimensions == DIMENSIONS and not read.is_ratio
    for _ in range(2):
        rows = pa.concat_tables(read.tables)
        assert [read.values[k] for k in rows["segment"].to_pylist()] == [
            ("de", "x", "1"), ("it", "x", "1"), ("it", "x", "1"), ("it", "y", "1"),
        ]  # fmt: skip
        assert rows["value"].to_pylist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("write", [True, False])
def test_of_a_ratio_what_was_not_tried_is_no_row_but_counted_as_read(tmp_path, write):
    rows = table([("de", "x", "1"), ("it", "x", "1")])
    rows = rows.add_column(5, "denominator", pa.array([0.0, 2.0]))
    if write:
        assert write_observations([rows], DIMENSIONS, tmp_path / "it") == 2
    found = Observations.open(tmp_path / "it") if write else Observations.of(rows, DIMENSIONS)
    assert found.is_ratio and list(found.values) == [("it", "x", "1")]
    assert [part["denominator"].to_pylist() for part in found.tables] == [[2.0]]
