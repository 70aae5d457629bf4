"""Model registries: the interface and one adapter for each product."""

from __future__ import annotations

from segwatch.errors import SettingsError
from segwatch.registries.base import CHAMPION, ModelRegistry, ModelVersion

__all__ = ["CHAMPION", "ModelRegistry", "ModelVersion", "open_registry"]


def open_registry(uri: str) -> ModelRegistry:
    """The registry at a URI; nothing is read or written yet.

    uri: sqlite:///FILE (MLflow in a SQLite file) or http(s)://HOST (an MLflow tracking server).
    Raises SettingsError for any other form.
    """
    scheme, _, rest = uri.partition("://")
    in_file = scheme == "sqlite" and rest.strip("/") and "?" not in rest
    if not (in_file and rest.startswith("/")) and not (scheme in {"http", "https"} and rest.strip("/")):
        raise SettingsError(
            f"registry = {uri!r} is not a model registry: use sqlite:///FILE (no ? in its name) or"
            " the http:// or https:// URL of an MLflow tracking server"
        )
    # The adapter loads nothing of MLflow, which takes seconds, until a method needs it.
    from segwatch.registries.mlflow import MlflowRegistry

    return MlflowRegistry(uri)
