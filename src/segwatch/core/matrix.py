"""Matrices of segments by periods that may be larger than memory: a period's values lie together, in a file.

They are numpy arrays like others, mapped into memory. What was touched of one counts as memory of the process until
`release` lets go of it; nothing that was written is lost by that.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt

Matrix = TypeVar("Matrix", bound=npt.NDArray[Any])
# Of a matrix that are worked on at a time.
_CELLS = 4_000_000


def new(shape: tuple[int, int], fill: float, room: Path | None, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """A matrix (n_segments, n_times) of one number: in a file of the directory `room`, or in memory without one."""
    if room is None or 0 in shape:
        return np.full(shape, fill, dtype)
    made = np.lib.format.open_memmap(
        room / f"{uuid4().hex}.npy", mode="w+", dtype=np.dtype(dtype), shape=shape, fortran_order=True
    )
    if fill:
        for some in columns(made):
            made[:, some] = fill
            release(made)
    return made


def columns(matrix: npt.NDArray[Any]) -> Iterator[slice]:
    """Slices of its periods that hold some millions of cells each."""
    step = max(1, _CELLS // max(1, matrix.shape[0]))
    return (slice(start, min(start + step, matrix.shape[1])) for start in range(0, matrix.shape[1], step))


def take(matrix: Matrix, rows: npt.NDArray[np.int64] | slice, room: Path | None = None) -> Matrix:
    """The matrix of some of its segments; room: see `new`."""
    if _mapping(matrix) is None:
        return matrix[rows]  # type: ignore[return-value]
    rows = np.arange(len(matrix))[rows]
    taken = new((len(rows), matrix.shape[1]), 0, room, matrix.dtype)
    # Of a file, whole pages are in memory until they are released.
    for start in range(0, matrix.shape[1], 16):
        taken[:, start : start + 16] = matrix[rows, start : start + 16]
        release(taken, matrix)
    return taken  # type: ignore[return-value]


def copy_into(target: npt.NDArray[Any], matrix: npt.NDArray[Any]) -> None:
    """The first segments of the target are those of the matrix."""
    for some in columns(target):
        target[: len(matrix), some] = matrix[:, some]
        release(target, matrix)


def quotient(numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The one matrix by the other; of matrices in files, in a file without a name beside them."""
    if not isinstance(numerators, np.memmap) or numerators.filename is None:
        return np.asarray(numerators / denominators)
    with TemporaryFile(dir=Path(numerators.filename).parent) as file:
        made = np.memmap(file, np.float64, "w+", shape=numerators.shape, order="F")
    for some in columns(made):
        np.divide(numerators[:, some], denominators[:, some], out=made[:, some])
        release(made, numerators, denominators)
    return made


def release(*matrices: npt.NDArray[Any]) -> None:
    """What is in memory of those that lie in files is let go of."""
    for matrix in matrices:
        mapping = _mapping(matrix)
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def save(matrix: npt.NDArray[Any], path: Path) -> None:
    """The file holds the matrix, for `load`; one that `new` made in a file is moved there."""
    made = getattr(matrix, "filename", None)
    if made is None or Path(made).suffix != ".npy" or getattr(matrix, "mode", "") == "r":
        np.save(path, matrix, allow_pickle=False)
        return
    try:
        os.replace(made, path)
    except OSError:
        shutil.copyfile(made, path)  # of another file system


def load(path: Path) -> npt.NDArray[Any]:
    """The matrix that `save` wrote, which cannot be changed."""
    matrix: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return matrix


def _mapping(matrix: npt.NDArray[Any]) -> mmap.mmap | None:
    base: object = matrix
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
