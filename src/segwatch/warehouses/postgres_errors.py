"""PostgreSQL's errors, said once in segwatch's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from adbc_driver_manager import Error

from segwatch.errors import BackendError, DataError, SegwatchError


class _Reason(NamedTuple):
    """What went wrong and what to do next; {} is the database. Whether the same call may succeed later."""

    text: str
    retryable: bool = False


_ROWS_REFUSED = ("22", "23", "44", "P0")
_WRONG_NAMES = "42"
_CANCELLED = "57014"
_BROKE = _Reason("the connection to {} broke: try again", retryable=True)
_MADE_TWICE = _Reason("another session has just made the same table or schema in {}: run again", retryable=True)
_STOPPED = _Reason("{} is starting or stopping: try again", retryable=True)
_CROWDED = _Reason("{} has too many connections: close some, or try again", retryable=True)
_ABSENT = _Reason(
    "there is no PostgreSQL server at {}: start it, or mend host and port in the settings", retryable=True
)
_REASONS = {
    "08": _BROKE,
    "23505": _MADE_TWICE,
    "25006": _Reason("{} is read-only: name the primary server in the settings"),
    "2BP01": _Reason("something else in {} depends on what is to be dropped: drop that first"),
    "40": _Reason("another session changed the same rows of {}: try again", retryable=True),
    "42501": _Reason("{} does not grant a right that this needs: grant it to the user of the URL, or name another"),
    "42710": _MADE_TWICE,
    "42P06": _MADE_TWICE,
    "42P07": _MADE_TWICE,
    "53": _Reason("{} has run out of a resource: try again", retryable=True),
    "53100": _Reason("the disk of {} is full: free some space and run again"),
    "53300": _CROWDED,
    "55P03": _Reason("a table of {} is locked by another session: try again", retryable=True),
    "57014": _Reason("a statement in {} took too long: try again, or raise statement_timeout", retryable=True),
    "57P": _STOPPED,
    "58": _Reason("the server of {} met an error of its system: see its log"),
}
"""By SQLSTATE, or the start of it."""

_TEXTS = (
    (r"no pg_hba\.conf entry", _Reason("{} lets nobody in from here as this user: add a line to pg_hba.conf")),
    (
        r"password authentication failed|no password supplied|authentication failed",
        _Reason("{} did not accept the user or the password: set PGPASSWORD, or a line of ~/.pgpass"),
    ),
    (r"database .* does not exist", _Reason("there is no such database as {}: make it, or name another")),
    (r"role .* (does not exist|is not permitted)", _Reason("{} knows no such user: name another in the URL")),
    (r"ssl|certificate|encryption", _Reason("{} and this machine do not agree on encryption: mend sslmode in the URL")),
    (r"too many (clients|connections)|connection slots", _CROWDED),
    (r"starting up|shutting down|recovery mode|not yet accepting", _STOPPED),
    (
        r"connection refused|no such file|time.?out|timed out|unreachable|no route|could not translate host name",
        _ABSENT,
    ),
    (r"server closed|no connection to|could not (send|receive)|terminating connection|reset by peer", _BROKE),
)
"""By what is said where there is no SQLSTATE: libpq passes none on while it connects."""


@contextmanager
def translated(place: str) -> Iterator[None]:
    """What runs inside raises DataError or BackendError where PostgreSQL or the way to it refuses."""
    try:
        yield
    except Error as error:
        raise explain(error, place) from error


def explain(error: Error, place: str) -> SegwatchError:
    """The error in segwatch's words: what is wrong with which database, and what to do next."""
    said, state = _said(error), error.sqlstate or ""
    reason = _by_state(state) if state else _by_text(str(error).lower())
    if state == _CANCELLED and "user request" in said:
        # The driver makes this of Ctrl-C: whoever wanted an end wants no second try.
        return BackendError(f"a statement in {place} was cancelled ({said})")
    if reason is not None:
        return BackendError(f"{reason.text.format(place)} ({said})", retryable=reason.retryable)
    if state.startswith(_ROWS_REFUSED):
        return DataError(f"PostgreSQL refused rows of {place}: {said}")
    if state.startswith(_WRONG_NAMES):
        return DataError(f"a table or view of {place} cannot be used: {said}")
    return BackendError(f"{place} could not be used ({said})")


def _by_state(state: str) -> _Reason | None:
    starts = (state, state[:3], state[:2])
    return next((_REASONS[start] for start in starts if start in _REASONS), None)


def _by_text(text: str) -> _Reason | None:
    return next((reason for pattern, reason in _TEXTS if re.search(pattern, text)), None)


def _said(error: Error) -> str:
    """The server's own words, without the driver's around them."""
    text = str(error)
    words = re.search(r"(?:ERROR|FATAL|PANIC):\s+(.*)", text)
    first = words[1] if words else re.sub(r"^[A-Z_]+: (?:\[libpq\] )?", "", text).partition("\n")[0]
    return re.sub(r"\.? SQLSTATE: \w{5}$", "", first).strip()
