"""BigQuery's errors, said once in segwatch's words. Imported only where Google's client is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth

from segwatch.errors import BackendError, DataError, SegwatchError, SettingsError
from segwatch.google import explain as explain_google

_CONFLICT = ("due to concurrent update", "transaction is aborted")


@contextmanager
def translated(place: str, location: str) -> Iterator[None]:
    """What runs inside raises DataError, SettingsError or BackendError where BigQuery or the network says no.

    place: the dataset, for the message. location: the region that jobs run in.
    """
    try:
        yield
    except (api.GoogleAPIError, auth.GoogleAuthError, requests.RequestException) as error:
        raise explain(error, place, location) from error


def explain(error: Exception, place: str, location: str) -> SegwatchError:
    """The error in segwatch's words: what is wrong, and what to do next."""
    # A retry that gave up wraps what it met last.
    cause = error.cause if isinstance(error, api.RetryError) and error.cause is not None else error
    said = first_line(cause)
    lower = said.lower()
    if "exceeded limit for bytes billed" in lower:
        return SettingsError(
            f"a query of {place} would read more than google.maximum_bytes_billed allows: narrow the Window, or"
            f" raise that setting ({said})"
        )
    if any(words in lower for words in _CONFLICT):
        return BackendError(f"another job changed the same rows of {place}: try again ({said})", retryable=True)
    if "cannot query over table" in lower and "without a filter" in lower:
        return DataError(
            f"a table of {place} refuses queries without a filter on its partition column: name that column as"
            f" the metric's time ({said})"
        )
    if isinstance(cause, api.NotFound):
        return _not_found(said, place, location)
    if isinstance(cause, api.BadRequest) and not isinstance(cause, api.FailedPrecondition):
        return DataError(f"BigQuery refused a query or rows of {place}: {said}")
    return explain_google(cause, f"BigQuery {place}")


def _not_found(said: str, place: str, location: str) -> SegwatchError:
    lower = said.lower()
    if "not found: project" in lower:
        return BackendError(
            f"the project of {place} is not there, or has no BigQuery: check google.project and the warehouse's"
            f" URL ({said})"
        )
    if "dataset" in lower and "not found in location" in lower:
        return DataError(
            f"a dataset that {place} needs is not in {location}, where its jobs run: set google.location to the"
            f" dataset's region, or check its name ({said})"
        )
    return DataError(f"BigQuery {place}: a table or dataset that is read is not there: check the names ({said})")


def first_line(error: BaseException) -> str:
    """What Google said, without the request before it and the repetition after it."""
    text = str(getattr(error, "message", None) or error).strip().partition("\n")[0]
    return text.partition("; reason:")[0][:300] or type(error).__name__
