"""What all adapters of Google's services share: credentials, and their errors in segwatch's words."""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segwatch.errors import BackendError, SettingsError
from segwatch.settings import Google

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_PERMISSION = re.compile(r"\b[a-z]+(?:\.[a-zA-Z]+){2,}\b(?!/)")
_IMAGE = re.compile(r"(?P<host>[^/]+)/(?P<path>[^:@]+)(?:@(?P<digest>\w+:\w+)|:(?P<tag>[\w.-]+))?")
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
_SECRET_VERSION = re.compile(r"projects/[\w:.-]+/secrets/[\w-]+/versions/\w+")
_PATIENCE_SECONDS = 20.0
_LOGIN = "run `gcloud auth application-default login`, or run where a service account is attached"


def is_emulator(endpoint: str) -> bool:
    """Whether an endpoint is one on plain http, to which no credentials are sent."""
    return endpoint.startswith("http://")


def credentials(settings: Google, endpoint: str = "") -> Credentials:
    """Application Default Credentials, as the service account to impersonate if there is one.

    endpoint: of the service they are for; one on http gets anonymous ones, so that no token leaves unencrypted.
    Raises BackendError if this machine has none, SettingsError if the extra `gcp` is not installed.
    """
    try:
        # Not `import google.auth`: that would make `google` the package here, no longer the settings.
        from google.auth import credentials as kinds
        from google.auth import default, exceptions, impersonated_credentials
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    if is_emulator(endpoint):
        return kinds.AnonymousCredentials()
    try:
        found, _ = default(scopes=[_SCOPE])
    except exceptions.DefaultCredentialsError as error:
        raise BackendError(f"there are no Google credentials on this machine: {_LOGIN}") from error
    if not settings.impersonate:
        return found
    return impersonated_credentials.Credentials(found, settings.impersonate, [_SCOPE])


def account(settings: Google) -> str:
    """Whose credentials these are, after Google has accepted them. Raises BackendError if it does not."""
    found = _refreshed(settings)
    return getattr(found, "service_account_email", None) or "a user account"


def _refreshed(settings: Google) -> Any:
    found = credentials(settings)
    from google.auth.transport.requests import Request

    with translated("the Google credentials"):
        found.refresh(Request())
    return found


def disabled_apis(settings: Google, apis: Sequence[str]) -> list[str]:
    """Those of the APIs, named as `bigquery.googleapis.com`, that are not enabled in the project.

    Raises BackendError if Service Usage does not say.
    """
    endpoint = settings.endpoints.service_usage or "https://serviceusage.googleapis.com"
    found = credentials(settings, endpoint)
    from google.api_core.exceptions import from_http_response
    from google.auth.transport.requests import AuthorizedSession

    project = f"projects/{settings.project}"
    with translated(f"Service Usage of {settings.project}"), AuthorizedSession(found) as session:
        answer = session.get(
            f"{endpoint.rstrip('/')}/v1/{project}/services:batchGet",
            params=[("names", f"{project}/services/{api}") for api in apis],
            timeout=_PATIENCE_SECONDS,
        )
        if not answer.ok:
            raise from_http_response(answer)
    states = {one["name"].rpartition("/")[2]: one.get("state") for one in answer.json().get("services", [])}
    return [api for api in apis if states.get(api) != "ENABLED"]


def read_secret(version: str, settings: Google) -> str:
    """The text of a version of a secret in Secret Manager, named `projects/P/secrets/S/versions/V`.

    Raises SettingsError if that is no such name or holds no text, BackendError if Secret Manager does not give it.
    """
    if _SECRET_VERSION.fullmatch(version) is None:
        raise SettingsError(f"secret://{version} names no secret: write it as secret://projects/P/secrets/S/versions/V")
    endpoint = settings.endpoints.secret_manager or "https://secretmanager.googleapis.com"
    found = credentials(settings, endpoint)
    from google.api_core.exceptions import from_http_response
    from google.auth.transport.requests import AuthorizedSession

    with translated(f"Secret Manager, {version}"), AuthorizedSession(found) as session:
        answer = session.get(f"{endpoint.rstrip('/')}/v1/{version}:access", timeout=_PATIENCE_SECONDS)
        if not answer.ok:
            raise from_http_response(answer)
    held = base64.b64decode(answer.json().get("payload", {}).get("data", ""))
    try:
        text = held.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise SettingsError(f"secret://{version} holds no text: add a version that does")
    return text


def has_image(image: str, settings: Google) -> bool:
    """Whether a container image is in its registry.

    Raises SettingsError if the name is none, BackendError if the registry does not say.
    Source: the distribution specification of the Open Container Initiative, version 2.
    """
    parts = _IMAGE.fullmatch(image)
    if parts is None:
        raise SettingsError(f"image = {image!r} names no registry: write it as HOST/PATH:TAG")
    import requests

    # A registry on this machine has no certificate, and wants no token.
    is_here = parts["host"].partition(":")[0] in ("127.0.0.1", "localhost")
    reference = parts["digest"] or parts["tag"] or "latest"
    url = f"{'http' if is_here else 'https'}://{parts['host']}/v2/{parts['path']}/manifests/{reference}"
    headers = {"Accept": _MANIFESTS}
    if not is_here:
        headers["Authorization"] = f"Bearer {_refreshed(settings).token}"
    with translated(f"the image registry {parts['host']}"):
        answer = requests.head(url, headers=headers, timeout=_PATIENCE_SECONDS)
    if answer.status_code in (401, 403):
        raise BackendError(f"the image {image} may not be read: grant roles/artifactregistry.reader")
    if not answer.ok and answer.status_code != 404:
        said = f"the image registry {parts['host']} answered {answer.status_code}: try again"
        raise BackendError(said, retryable=True)
    return bool(answer.ok)


def vertex_client(service: str, settings: Google) -> Any:
    """A client of one of Vertex AI's services, by its name: `ModelService`, `PipelineService`, `ScheduleService`.

    Not of `google.cloud.aiplatform`, whose import takes seconds. Raises as `credentials` does.
    """
    try:
        from google.api_core.client_options import ClientOptions

        folder = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", service).lower()
        module = importlib.import_module(f"google.cloud.aiplatform_v1.services.{folder}")
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    endpoint = settings.endpoints.vertex
    return getattr(module, f"{service}Client")(
        credentials=credentials(settings, endpoint),
        # Emulators speak REST on plain http. Elsewhere gRPC, the library's own choice: over REST it looks for
        # operations at an address that is documented nowhere.
        transport="rest" if is_emulator(endpoint) else "grpc",
        client_options=ClientOptions(
            api_endpoint=endpoint.rstrip("/") or f"{settings.location}-aiplatform.googleapis.com"
        ),
    )


def encryption(settings: Google) -> dict[str, str] | None:
    """What a job or model of Vertex AI is encrypted with; None for Google's own keys."""
    return {"kms_key_name": settings.encryption_key} if settings.encryption_key else None


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
