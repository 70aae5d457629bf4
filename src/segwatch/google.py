"""What all adapters of Google's services share: credentials, and their errors in segwatch's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segwatch.errors import BackendError, SettingsError
from segwatch.settings import Google

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_PERMISSION = re.compile(r"\b[a-z]+(?:\.[a-zA-Z]+){2,}\b(?!/)")
_LOGIN = "run `gcloud auth application-default login`, or run where a service account is attached"


def is_emulator(endpoint: str) -> bool:
    """Whether an endpoint is one on plain http, to which no credentials are sent."""
    return endpoint.startswith("http://")


def credentials(google: Google, endpoint: str = "") -> Credentials:
    """Application Default Credentials, as the service account to impersonate if there is one.

    endpoint: of the service they are for; one on http gets anonymous ones, so that no token leaves unencrypted.
    Raises BackendError if this machine has none, SettingsError if the extra `gcp` is not installed.
    """
    try:
        # Not `import google.auth`, which would put the module in the place of the argument.
        from google import auth
        from google.auth import credentials as kinds
        from google.auth import exceptions, impersonated_credentials
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    if is_emulator(endpoint):
        return kinds.AnonymousCredentials()
    try:
        found, _ = auth.default(scopes=[_SCOPE])
    except exceptions.DefaultCredentialsError as error:
        raise BackendError(f"there are no Google credentials on this machine: {_LOGIN}") from error
    if not google.impersonate:
        return found
    return impersonated_credentials.Credentials(found, google.impersonate, [_SCOPE])


@contextmanager
def translated(place: str) -> Iterator[None]:
    """What runs inside raises BackendError where Google's client or the network says no.

    place: what was asked, for the message: `BigQuery dataset p.d`. Errors that mean something about rows or
    models are the adapter's to catch first.
    """
    import requests
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth

    try:
        yield
    except (api.GoogleAPIError, auth.GoogleAuthError, requests.RequestException) as error:
        raise explain(error, place) from error


def explain(error: Exception, place: str) -> BackendError:
    """The error in segwatch's words: what was asked, why it failed, and what to do next."""
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth

    # A retry that gave up wraps what it met last.
    cause = error.cause if isinstance(error, api.RetryError) and error.cause is not None else error
    said = _first_line(cause)
    match cause:
        case auth.RefreshError():
            return BackendError(f"{place}: the Google credentials have expired or were withdrawn: {_LOGIN} ({said})")
        case auth.GoogleAuthError() if not isinstance(cause, auth.TransportError):
            return BackendError(f"{place}: the Google credentials cannot be used: {_LOGIN} ({said})")
        case api.Unauthorized() | api.Unauthenticated():
            return BackendError(f"{place}: Google did not accept the credentials: {_LOGIN} ({said})")
        case api.TooManyRequests() | api.ResourceExhausted():
            return BackendError(
                f"{place}: a quota is used up: try again later, or ask for more ({said})", retryable=True
            )
        case api.Forbidden() | api.PermissionDenied():
            return _forbidden(said, place)
        case api.NotFound():
            return BackendError(f"{place}: there is no such thing: check project, location and names ({said})")
        case api.ServerError() | api.RetryError() | auth.TransportError():
            return BackendError(f"{place} does not answer: try again ({said})", retryable=True)
        case api.GoogleAPICallError():
            return BackendError(f"{place} refused: {said}")
        case _:
            return BackendError(f"{place} cannot be reached: check the network and try again ({said})", retryable=True)


def _forbidden(said: str, place: str) -> BackendError:
    if "quota" in said.lower() or "rate limit" in said.lower():
        return BackendError(f"{place}: a quota is used up: try again later, or ask for more ({said})", retryable=True)
    if "has not been used" in said or "is disabled" in said:
        return BackendError(f"{place}: the API is not enabled in the project: enable it and try again ({said})")
    permission = _PERMISSION.search(said)
    missing = f"the permission {permission[0]} is missing" if permission else "access is denied"
    return BackendError(f"{place}: {missing}: grant a role that holds it to the account of these credentials ({said})")


def missing_extra(error: ModuleNotFoundError) -> SettingsError:
    """What to install where a module of Google's is not there."""
    return SettingsError(f"the module {error.name} is missing: pip install 'segwatch[gcp]'")


def _first_line(error: Any) -> str:
    text = str(getattr(error, "message", None) or error).strip()
    return text.partition("\n")[0][:300] or type(error).__name__
