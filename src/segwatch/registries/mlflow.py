"""The model registry kept by MLflow: in a SQLite file with a directory beside it, or on a tracking server.

A bundle is stored as the artifacts of one run, with an MLmodel file that lets MLflow's own tools load it
without pickle. The version is created last, so whatever breaks off earlier leaves no version.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from segwatch.errors import BackendError, ModelError
from segwatch.registries.base import CHAMPION, ModelVersion
from segwatch.registries.mlflow_call import load_client, mlflow_call, shown
from segwatch.registries.mlflow_file import CREATED_TAG, DEFAULT_EXPERIMENT, RegistryFile

if TYPE_CHECKING:
    from pandas import DataFrame

MANAGED_TAG = "segwatch.managed"
CHAMPIONS_TAG = "segwatch.champions"
STALE_AFTER_SECONDS = 3600
_MODEL = "model"
_BUNDLE = "bundle"
_LONG_PARAMETER = "segwatch.parameter."
# MLflow's limits: characters of a run's parameter and tag, of a version's tag, and items of one request.
_PARAMETER_LENGTH = 6000
_RUN_TAG_LENGTH = 8000
_VERSION_TAG_LENGTH = 100_000
_PARAMETERS_PER_BATCH = 100
_METRICS_PER_BATCH = 900
_PAGE = 1000
# A thousand champions back is far enough, and fits a tag.
_CHAMPIONS_KEPT = 1000


class MlflowRegistry:
    """The models of one MLflow: an experiment, a registered model and its versions for each name."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._file = RegistryFile(uri) if uri.startswith("sqlite:") else None

    def create(self) -> None:
        if self._file is None or self._file.exists():
            return
        self._file.create(self._build)

    def register(
        self,
        name: str,
        bundle: Path,
        *,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> ModelVersion:
        _content(bundle)
        self.create()
        with self._writing(f"register {name}"):
            self._own_model(name)
            experiment_id = self._own_experiment(name)
            self._close_stale_runs(experiment_id)
            run = self._client.create_run(experiment_id, tags=_clipped(tags, _RUN_TAG_LENGTH))
            try:
                self._log(run.info.run_id, parameters, metrics)
                self._store(run.info.run_id, bundle)
                made = self._commit(name, run, parameters, tags)
            except BaseException:
                self._discard(run, "FAILED")
                raise
        values = {key: float(value) for key, value in metrics.items()}
        return _model_version(made, (), dict(parameters), values)

    def versions(self, name: str) -> list[ModelVersion]:
        self._require()
        with self._reading(f"list the versions of {name}"):
            model = self._model(name)
            if model is None:
                return []
            runs = self._runs_by_id(name)
            found = [self._described(made, model, runs.get(made.run_id)) for made in self._versions(name)]
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def resolve(self, name: str, reference: str = CHAMPION) -> ModelVersion:
        self._require()
        with self._reading(f"look up {name}"):
            model = self._model(name)
            if model is None:
                raise ModelError(f"the registry {shown(self.uri)} has no model {name}; run `segwatch train` first")
            number = reference if reference.isdecimal() else self._aliased(model, reference)
            made = _found(self._client.get_model_version, name, number)
            if made is None:
                raise ModelError(
                    f"{name} has no version {number} in {shown(self.uri)}; `segwatch models list` shows all"
                )
            return self._described(made, model, _found(self._client.get_run, made.run_id))

    def download(self, version: ModelVersion, to: Path) -> Path:
        self._require()
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as folder:
                self._fetch(version, folder).replace(to)
        except OSError as error:
            raise BackendError(f"{to} cannot be written: {error}; name a new or empty directory that can") from error
        return to

    def _fetch(self, version: ModelVersion, folder: str) -> Path:
        """The bundle is below the folder, at the path returned."""
        path = f"{_MODEL}/{_BUNDLE}"
        with self._reading(f"download {version.name} version {version.version}"):
            # MLflow takes some missing artifacts for an empty directory.
            if not _found(self._client.list_artifacts, version.run_id, path):
                raise ModelError(
                    f"the files of {version.name} version {version.version} are gone from {shown(self.uri)},"
                    " or were moved; run `segwatch train`, or promote another version"
                )
            # The client's own download hides what went wrong.
            return Path(self._artifacts(self._client.get_run(version.run_id)).download_artifacts(path, folder))

    def promote(self, name: str, version: str) -> ModelVersion:
        target = self.resolve(name, version)
        with self._writing(f"promote {name} version {target.version}"):
            model = self._client.get_registered_model(name)
            current = dict(model.aliases).get(CHAMPION)
            if current != target.version:
                # The alias first: broken off here, the list still ends with the champion before.
                self._client.set_registered_model_alias(name, CHAMPION, target.version)
                self._keep_champions(name, [*_before(model), *([current] if current else []), target.version])
        return self.resolve(name, target.version)

    def rollback(self, name: str) -> ModelVersion:
        current = self.resolve(name)
        with self._writing(f"roll {name} back"):
            model = self._client.get_registered_model(name)
            existing = {str(made.version) for made in self._versions(name)} - {current.version}
            before = _before(model)
            while before and before[-1] not in existing:
                before.pop()
            if not before:
                raise ModelError(
                    f"{name} version {current.version} had no champion before it; `segwatch models promote`"
                    " takes any version"
                )
            # The list first: broken off here, it ends with the version that the next call goes back to.
            self._keep_champions(name, before)
            self._client.set_registered_model_alias(name, CHAMPION, before[-1])
        return self.resolve(name, before[-1])

    def drop(self, name: str) -> None:
        if not self._is_there():
            return
        with self._writing(f"drop {name}"):
            # The model first: from here on nobody resolves a version whose files are going.
            if (model := self._model(name)) is not None:
                self._require_ours(model.tags, "model", name)
                self._client.delete_registered_model(name)
            experiment = self._client.get_experiment_by_name(name)
            if experiment is not None and MANAGED_TAG in experiment.tags:
                self._drop_experiment(experiment)

    def created(self) -> list[str]:
        if not self._is_there():
            return []
        ours = f"tags.`{MANAGED_TAG}` = 'true'"
        with self._reading("list models"):
            models = _pages(self._client.search_registered_models, filter_string=ours, max_results=_PAGE)
            # A drop that broke off leaves an experiment without a model.
            experiments = _pages(self._client.search_experiments, filter_string=ours, max_results=_PAGE)
            return sorted({item.name for item in (*models, *experiments)})

    def destroy(self) -> None:
        for name in self.created():
            self.drop(name)
        if self._file is not None and self._file.exists():
            self._file.remove_if_ours()

    @cached_property
    def _client(self) -> Any:
        return load_client()(tracking_uri=self.uri, registry_uri=self.uri)

    def _is_there(self) -> bool:
        return self._file is None or self._file.exists()

    def _require(self) -> None:
        if not self._is_there():
            raise ModelError(f"there is no registry {self.uri} yet; run `segwatch create`, then `segwatch train`")

    def _reading(self, doing: str) -> AbstractContextManager[None]:
        if self._file is not None:
            self._file.check_readable()
        return mlflow_call(self.uri, doing)

    def _writing(self, doing: str) -> AbstractContextManager[None]:
        if self._file is not None:
            self._file.check_writable()
        return mlflow_call(self.uri, doing)

    def _build(self, path: Path) -> None:
        uri = f"sqlite:///{path}"
        with mlflow_call(self.uri, "be created"):
            load_client()(tracking_uri=uri, registry_uri=uri).set_experiment_tag(
                DEFAULT_EXPERIMENT, CREATED_TAG, "true"
            )

    def _model(self, name: str) -> Any | None:
        return _found(self._client.get_registered_model, name)

    def _own_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        model = self._model(name)
        if model is not None:
            self._require_ours(model.tags, "model", name)
            return
        try:
            self._client.create_registered_model(name, tags={MANAGED_TAG: "true"})
        except MlflowException as error:
            # Another process was faster; the same name means the same model.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _own_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, self._new_location(name), tags={MANAGED_TAG: "true"}))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self._client.get_experiment_by_name(name)
        self._require_ours(experiment.tags, "experiment", name)
        if experiment.lifecycle_stage != "active":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _require_ours(self, tags: Mapping[str, str], kind: str, name: str) -> None:
        if MANAGED_TAG not in tags:
            raise ModelError(
                f"the registry {shown(self.uri)} has a {kind} {name} that segwatch did not make; rename that"
                " one, or the metric"
            )

    def _new_location(self, name: str) -> str | None:
        """Where a new experiment keeps its artifacts; a server decides that itself."""
        if self._file is None:
            return None
        # Two databases in one directory share mlartifacts/, and may hold models of the same name.
        return (self._file.artifacts / f"{name}-{uuid.uuid4().hex[:8]}").as_uri()

    def _drop_experiment(self, experiment: Any) -> None:
        if self._file is None:
            self._drop_remote_experiment(experiment)
        else:
            self._drop_local_experiment(experiment, self._file.artifacts)

    def _drop_remote_experiment(self, experiment: Any) -> None:
        """The experiment is deleted as far as a client may, its name free; `mlflow gc` does the rest."""
        for run in self._runs(experiment.experiment_id):
            self._remove_artifacts(run)
        self._client.rename_experiment(experiment.experiment_id, f"{experiment.name} (dropped {uuid.uuid4().hex[:8]})")
        self._client.delete_experiment(experiment.experiment_id)

    def _drop_local_experiment(self, experiment: Any, artifacts: Path) -> None:
        """Nothing is left of the experiment, its runs and their files."""
        from mlflow.entities import ViewType

        location = Path(url2pathname(urlsplit(experiment.artifact_location).path))
        if location.parent == artifacts and location.is_dir():
            shutil.rmtree(location)
        # A client only marks as deleted, which keeps the name taken; `mlflow gc` too goes to the store.
        store = self._client._tracking_client.store
        for run in self._runs(experiment.experiment_id, ViewType.ALL):
            store._hard_delete_run(run.info.run_id)
        if experiment.lifecycle_stage == "active":
            self._client.delete_experiment(experiment.experiment_id)
        store._hard_delete_experiment(experiment.experiment_id)

    def _runs(self, experiment_id: str, *view: Any, filter_string: str = "") -> Iterator[Any]:
        arguments = dict(zip(["run_view_type"], view, strict=False))
        return _pages(self._client.search_runs, [experiment_id], filter_string, max_results=_PAGE, **arguments)

    def _runs_by_id(self, name: str) -> dict[str, Any]:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return {}
        return {run.info.run_id: run for run in self._runs(experiment.experiment_id)}

    def _close_stale_runs(self, experiment_id: str) -> None:
        """Runs that a killed process left open an hour ago or more are closed, and their files gone."""
        oldest = int((time.time() - STALE_AFTER_SECONDS) * 1000)
        stale = f"attributes.status = 'RUNNING' and attributes.start_time < {oldest}"
        for run in list(self._runs(experiment_id, filter_string=stale)):
            self._discard(run, "KILLED")

    def _store(self, run_id: str, bundle: Path) -> None:
        """The run holds the bundle as a model that MLflow's tools can load."""
        from mlflow.models import Model

        loaded_by = {"loader_module": __name__, "data": _BUNDLE, "python_version": python_version()}
        content = _content(bundle)
        try:
            self._client.log_artifacts(run_id, str(bundle), f"{_MODEL}/{_BUNDLE}")
        finally:
            if _content(bundle) != content:
                raise ModelError(f"the bundle {bundle} changed while it was registered; train again")
        description = Model(artifact_path=_MODEL, run_id=run_id, flavors={"python_function": loaded_by}).to_yaml()
        self._client.log_text(run_id, description, f"{_MODEL}/MLmodel")

    def _log(self, run_id: str, parameters: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        params = [Param(key, value) for key, value in _clipped(parameters, _PARAMETER_LENGTH).items()]
        values = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
        for batch in _batches(params, _PARAMETERS_PER_BATCH):
            self._client.log_batch(run_id, params=batch)
        for batch in _batches(values, _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=batch)

    def _commit(self, name: str, run: Any, parameters: Mapping[str, str], tags: Mapping[str, str]) -> Any:
        """The version exists: the one step that makes all before it count."""
        run_id = run.info.run_id
        if self._client.get_run(run_id).info.status != "RUNNING":
            raise BackendError(
                f"registering {name} took so long that another process closed its run; run again",
                retryable=True,
            )
        self._client.set_terminated(run_id, "FINISHED")
        return self._client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{_MODEL}",
            run_id,
            tags=_clipped({**tags, **_long(parameters)}, _VERSION_TAG_LENGTH),
        )

    def _discard(self, run: Any, status: str) -> None:
        """The run is closed with that status and its files are gone, unless a version has come of it."""
        from mlflow.exceptions import MlflowException

        # What broke the run may break this too, and is the error to tell.
        with suppress(MlflowException, OSError):
            # A server may have made the version and its answer been lost.
            if not self._client.search_model_versions(f"run_id = '{run.info.run_id}'"):
                self._client.set_terminated(run.info.run_id, status)
                self._remove_artifacts(run)

    def _remove_artifacts(self, run: Any) -> None:
        from mlflow.exceptions import MlflowException

        # Not every store can delete; there `mlflow gc` or its own expiry does.
        with suppress(MlflowException, OSError, NotImplementedError):
            self._artifacts(run).delete_artifacts()

    def _artifacts(self, run: Any) -> Any:
        """Where the run's files are."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)

    def _versions(self, name: str) -> Iterator[Any]:
        return _pages(self._client.search_model_versions, f"name = '{name}'", max_results=_PAGE)

    def _aliased(self, model: Any, alias: str) -> str:
        aliases = dict(model.aliases)
        if alias not in aliases:
            mend = "run `segwatch train` first" if alias == CHAMPION else f"it has {', '.join(aliases) or 'none'}"
            raise ModelError(f"{model.name} has no {alias} in {shown(self.uri)}; {mend}")
        return str(aliases[alias])

    def _described(self, made: Any, model: Any, run: Any | None) -> ModelVersion:
        aliases = tuple(
            sorted(alias for alias, number in dict(model.aliases).items() if str(number) == str(made.version))
        )
        parameters = dict(run.data.params) if run is not None else {}
        metrics = dict(run.data.metrics) if run is not None else {}
        for key, value in dict(made.tags).items():
            if key.startswith(_LONG_PARAMETER):
                parameters[key.removeprefix(_LONG_PARAMETER)] = value
        return _model_version(made, aliases, parameters, metrics)

    def _keep_champions(self, name: str, champions: Sequence[str]) -> None:
        self._client.set_registered_model_tag(name, CHAMPIONS_TAG, json.dumps(champions[-_CHAMPIONS_KEPT:]))


class PyfuncModel:
    """What `mlflow.pyfunc.load_model` wraps: a bundle's predict under MLflow's signature."""

    def __init__(self, bundle: Any) -> None:
        self.bundle = bundle

    def predict(self, frame: DataFrame, params: dict[str, Any] | None = None) -> DataFrame:  # noqa: ARG002
        predictions: DataFrame = self.bundle.predict_frame(frame)
        return predictions


def _load_pyfunc(path: str) -> PyfuncModel:
    """The model of a bundle directory; MLflow finds this function through the MLmodel file."""
    from segwatch.core.bundle import ModelBundle

    return PyfuncModel(ModelBundle.open(Path(path)))


def _before(model: Any) -> list[str]:
    """The champions before the present one, oldest first. Where the list disagrees, the alias is right."""
    try:
        champions = [str(item) for item in json.loads(model.tags.get(CHAMPIONS_TAG, "[]"))]
    except (ValueError, TypeError):
        champions = []
    current = dict(model.aliases).get(CHAMPION)
    return champions[:-1] if champions and champions[-1] == current else champions


def _content(bundle: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of the bundle. Raises ModelError if there is none."""
    try:
        files = {path: path.stat() for path in sorted(bundle.rglob("*")) if path.is_file()}
    except OSError as error:
        raise ModelError(f"the bundle {bundle} cannot be read: {error}; train again") from error
    if not files:
        raise ModelError(f"the bundle {bundle} is missing or empty; train again")
    return {str(path.relative_to(bundle)): (status.st_size, status.st_mtime_ns) for path, status in files.items()}


def _model_version(
    made: Any, aliases: tuple[str, ...], parameters: dict[str, str], metrics: dict[str, float]
) -> ModelVersion:
    return ModelVersion(
        name=made.name,
        version=str(made.version),
        uri=f"models:/{made.name}/{made.version}",
        created_at=datetime.fromtimestamp(made.creation_timestamp / 1000, UTC),
        run_id=made.run_id or "",
        aliases=aliases,
        parameters=parameters,
        metrics=metrics,
        tags={key: value for key, value in dict(made.tags).items() if not key.startswith(_LONG_PARAMETER)},
    )


def _found(ask: Any, *arguments: Any) -> Any | None:
    """What MLflow answers, or None where it has no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _pages(search: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def _clipped(texts: Mapping[str, str], length: int) -> dict[str, str]:
    return {key: value if len(value) <= length else value[: length - 1] + "…" for key, value in texts.items()}


def _long(parameters: Mapping[str, str]) -> dict[str, str]:
    """Parameters that a run has no room for, as tags of the version."""
    return {_LONG_PARAMETER + key: value for key, value in parameters.items() if len(value) > _PARAMETER_LENGTH}


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
