import numpy as np
import pytest

from segwatch.core import matrix


@pytest.fixture
def values():
    return np.arange(60.0).reshape(12, 5)


@pytest.fixture
def in_file(values, tmp_path):
    made = matrix.new(values.shape, np.nan, tmp_path)
    assert np.isnan(made).all()
    made[:] = values
    return made


def test_a_matrix_in_a_file_is_as_one_in_memory(values, in_file, tmp_path):
    matrix.release(in_file)
    np.testing.assert_array_equal(in_file, values)
    # A period's values lie together.
    assert in_file.flags.f_contiguous and len(list(tmp_path.iterdir())) == 1
    assert matrix.new((3, 2), 7.0, None).tolist() == [[7.0, 7.0]] * 3


@pytest.mark.parametrize("rows", [np.array([7, 0, 7]), slice(2, 9), np.array([], dtype=int)])
def test_some_of_the_segments_are_taken_into_memory_or_into_another_file(values, in_file, tmp_path, rows):
    for room in (None, tmp_path):
        taken = matrix.take(in_file, rows, room)
        np.testing.assert_array_equal(taken, values[rows])
    taken[:] = 0
    np.testing.assert_array_equal(in_file, values)


def test_what_is_saved_is_moved_from_its_file_or_written_from_memory(values, in_file, tmp_path):
    for k, one in enumerate((in_file, values)):
        path = tmp_path / f"saved{k}.npy"
        matrix.save(one, path)
        loaded = matrix.load(path)
        np.testing.assert_array_equal(loaded, values)
        with pytest.raises(ValueError, match="read-only"):
            loaded[0, 0] = 1.0
    assert len(list(tmp_path.iterdir())) == 2
    # What was loaded stays where it is.
    matrix.save(loaded, tmp_path / "again.npy")
    assert (tmp_path / "saved1.npy").exists()


def test_a_quotient_is_that_of_numpy_and_leaves_no_file(values, in_file, tmp_path):
    below = matrix.new(values.shape, 4.0, tmp_path)
    before = len(list(tmp_path.iterdir()))
    np.testing.assert_array_equal(matrix.quotient(in_file, below), values / 4.0)
    np.testing.assert_array_equal(matrix.quotient(values, values + 1), values / (values + 1))
    assert len(list(tmp_path.iterdir())) == before


def test_the_first_segments_of_a_larger_matrix_are_those_of_another(values, in_file, tmp_path):
    larger = matrix.new((14, 5), np.nan, tmp_path)
    matrix.copy_into(larger, in_file)
    np.testing.assert_array_equal(larger[:12], values)
    assert np.isnan(larger[12:]).all()
