"""Model registries: the interface and one adapter for each product."""

from __future__ import annotations

from segwatch.errors import SettingsError
from segwatch.registries.base import CHAMPION, ModelRegistry, ModelVersion
from segwatch.settings import Google

__all__ = ["CHAMPION", "ModelRegistry", "ModelVersion", "open_registry"]


def open_registry(uri: str, bucket: str = "", google: Google = Google(), image: str = "") -> ModelRegistry:
    """The registry at a URI; nothing is read or written yet.

    uri: sqlite:///FILE (MLflow in a SQLite file), http(s)://HOST (an MLflow tracking server) or vertex.
    bucket, google, image: of the target; only vertex asks for them.
    Raises SettingsError for any other form, and where vertex lacks one of them.
    """
    if uri == "vertex":
        return _open_vertex(bucket, google, image)
    scheme, _, rest = uri.partition("://")
    in_file = scheme == "sqlite" and rest.strip("/") and "?" not in rest
    if not (in_file and rest.startswith("/")) and not (scheme in {"http", "https"} and rest.strip("/")):
        raise SettingsError(
            f"registry = {uri!r} is not a model registry: use sqlite:///FILE (no ? in its name), the http:// or"
            " https:// URL of an MLflow tracking server, or vertex"
        )
    # The adapter loads nothing of MLflow, which takes seconds, until a method needs it.
    from segwatch.registries.mlflow import MlflowRegistry

    return MlflowRegistry(uri)


def _open_vertex(bucket: str, google: Google, image: str) -> ModelRegistry:
    if not google.project:
        raise SettingsError('registry = "vertex" needs a project: set `google.project` of the target')
    if not bucket.startswith("gs://") or not bucket.removeprefix("gs://").strip("/"):
        raise SettingsError(
            f'registry = "vertex" needs a bucket for the models, not {bucket!r}: set `bucket` of the target to'
            " gs://BUCKET/FOLDER"
        )
    # Nor does this one load any of Google's.
    from segwatch.registries.vertex import VertexRegistry

    return VertexRegistry(bucket, google, image)
