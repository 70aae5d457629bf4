"""DuckDB's errors, said once in segwatch's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from segwatch.errors import BackendError, DataError, SegwatchError

_ROWS_REFUSED = (
    duckdb.ConstraintException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.InvalidInputException,
    duckdb.TypeMismatchException,
)
_LOCKED = ("could not set lock", "conflicting lock", "being used by another process")
_FULL = ("no space left", "max_temp_directory_size", "disk quota", "not enough space")
_FORBIDDEN = ("permission denied", "read-only file system", "operation not permitted")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """What runs inside raises DataError or BackendError where DuckDB or the disk refuses."""
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.Error, OSError) as error:
        raise explain(error, path) from error
    except RuntimeError as error:
        # What DuckDB makes of a Ctrl-C that falls into a query.
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from error


def explain(error: duckdb.Error | OSError, path: Path) -> SegwatchError:
    """The error in segwatch's words: what is wrong with which file, and what to do next."""
    if isinstance(error, _ROWS_REFUSED):
        return DataError(f"DuckDB refused rows of {path}: {_first_line(error)}")
    text = str(error).lower()
    if is_locked(error):
        return BackendError(
            f"{path} is in use by another process, and DuckDB lets one in at a time: close it, or try again"
            f" ({_first_line(error)})",
            retryable=True,
        )
    reason = _reason(text, path)
    # Last: a COMMIT that the disk refuses is a TransactionException too.
    if reason is None and isinstance(error, duckdb.TransactionException):
        return BackendError(
            f"another connection changed the same rows of {path}: try again ({_first_line(error)})",
            retryable=True,
        )
    return BackendError(f"{reason or f'{path} could not be used'} ({_first_line(error)})")


def is_locked(error: Exception) -> bool:
    """Whether another process has the file open."""
    return any(words in str(error).lower() for words in _LOCKED)


def _reason(text: str, path: Path) -> str | None:
    """What the error's text says, and the mend; None if it says nothing that is known."""
    if "not a valid duckdb database" in text:
        return f"{path} is not a DuckDB database: name another file in the settings, or move this one away"
    if "version number" in text or "newer version" in text:
        return f"{path} was written by another version of DuckDB: install that one, or export and import it"
    if any(words in text for words in _FULL):
        return f"the disk that holds {path} is full: free some space and run again"
    if "file too large" in text:
        return f"{path} may not grow: raise the limit on the size of files (ulimit -f) and run again"
    if any(words in text for words in _FORBIDDEN):
        return f"{path} may not be written: grant the right to write the file and its folder, or name another"
    if "out of memory" in text:
        return f"reading {path} needs more memory than DuckDB may use: narrow the Window, or free memory"
    if "is a directory" in text:
        return f"{path} is a folder: name a file in it as the warehouse"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
