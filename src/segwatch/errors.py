"""Every error that segwatch raises on purpose.

SegwatchError              exit code   retryable
├── UsageError             2           no    an option or argument that cannot be followed
│   └── SettingsError      2           no    segwatch.toml or a SEGWATCH_* variable is wrong or missing
├── DataError              3           no    the rows, the table or the Window are not what the metric needs
├── ModelError             3           no    a model is missing, damaged, or of another protocol
└── BackendError           4           maybe a warehouse, a registry, a disk or the network said no

Exit code 1 is a bug in segwatch, 5 is `--fail-on` finding some, 130 is Ctrl-C. A message is one sentence or
two: what is wrong and where, what was expected, and what to do next.
"""

from __future__ import annotations

import errno


class SegwatchError(Exception):
    """The root of the tree; the command line prints its message and exits with `exit_code`."""

    exit_code = 1
    retryable = False


class UsageError(SegwatchError):
    """An option or argument that cannot be followed."""

    exit_code = 2


class SettingsError(UsageError):
    """segwatch.toml or a SEGWATCH_* variable is wrong or missing."""


class DataError(SegwatchError):
    """The rows, the table or the Window are not what the metric needs."""

    exit_code = 3


class ModelError(SegwatchError):
    """A model is missing, damaged, or of another protocol."""

    exit_code = 3


class BackendError(SegwatchError):
    """A warehouse, a registry, a disk or the network said no.

    retryable: True where the same call may succeed later with nothing changed (a lock, a time-out).
    """

    exit_code = 4

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def disk_error(error: OSError, place: str) -> BackendError:
    """What the operating system refused at a place, and what to do about it."""
    # numpy tells of a full disk without its number.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error):
        return BackendError(f"the disk that holds {place} is full: free some space and run again")
    if error.errno == errno.EFBIG:
        return BackendError(f"{place} may not grow: raise the limit on the size of files (ulimit -f) and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BackendError(f"{place} may not be used: grant the right to read and write it, or name another")
    return BackendError(f"{place} cannot be read or written: {error.strerror or error}")
