"""What segwatch asks of a model registry, whoever keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

CHAMPION = "champion"


@dataclass(frozen=True)
class ModelVersion:
    """One registered bundle, as the registry knew it when asked.

    version: a number, as text; a larger one is newer. uri: what the registry's own tools call it. created_at: UTC.
    """

    name: str
    version: str
    uri: str
    created_at: datetime
    run_id: str
    aliases: tuple[str, ...]
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class ModelRegistry(Protocol):
    """Keeps bundles as numbered versions of named models; the alias `champion` names the one that scores.

    Every method raises BackendError where the registry cannot be reached, read or written; it is retryable
    where another process merely holds it.
    """

    def create(self) -> None:
        """The registry exists; one that was there is as it was."""

    def register(
        self,
        name: str,
        bundle: Path,
        *,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> ModelVersion:
        """The bundle directory is stored as one new version, complete or not at all; no alias moves.

        The registry is created if it is not there. Raises ModelError if the bundle is missing, empty or
        changes meanwhile, or if the name belongs to a model that segwatch did not make.
        """

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions, newest first; none where there is no such model.

        Raises ModelError where there is no registry yet.
        """

    def resolve(self, name: str, reference: str = CHAMPION) -> ModelVersion:
        """The version that an alias or a version number names. Raises ModelError if there is none."""

    def download(self, version: ModelVersion, to: Path) -> Path:
        """The directory `to` holds the bundle as the registry has it; returns `to`.

        to: absent or an empty directory, and so again after an error.
        Raises ModelError if the registry has lost the files.
        """

    def promote(self, name: str, version: str) -> ModelVersion:
        """The champion is that version. Raises ModelError if there is no such version."""

    def rollback(self, name: str) -> ModelVersion:
        """The champion is the version that was champion before it; a second call goes back one further.

        Raises ModelError where there was none before.
        """

    def drop(self, name: str) -> None:
        """Nothing of the model is left: versions, runs, artifacts, experiment. Other models are untouched.

        A name that the registry does not have is no error. Raises ModelError if segwatch did not make it.
        """

    def created(self) -> list[str]:
        """Names of the models that segwatch made here, in order; none where there is no registry."""

    def destroy(self) -> None:
        """All that segwatch made here is gone.

        The registry itself too, if segwatch created it and it holds nothing else.
        """
