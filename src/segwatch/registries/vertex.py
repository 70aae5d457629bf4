"""The model registry kept by Vertex AI (Gemini Enterprise Agent Platform), with the bundles in a bucket.

    BUCKET/models/PROJECT/LOCATION/segwatch-new-users/20261124T060000Z-5f3a9c0d1e2b4f67/    one bundle, and its notes

One Vertex model for each metric, one of its versions for each bundle. Parameters, metrics and tags are the notes of
the upload, as labels hold little; what is worth a filter is in the labels too. The version is made last, so whatever
breaks off earlier leaves no version. Vertex's own alias `default` is not segwatch's and stays where it is.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segwatch.errors import BackendError, ModelError, SegwatchError, SettingsError
from segwatch.google import encryption, translated, vertex_client
from segwatch.registries.base import CHAMPION, ModelVersion
from segwatch.settings import Google
from segwatch.storage import Storage

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.services.model_service import ModelServiceClient
    from google.cloud.aiplatform_v1.types import Model

MANAGED_LABEL = "segwatch_managed"
PREDICT_ROUTE = "/predict"
HEALTH_ROUTE = "/health"
PORT = 8080
STALE_AFTER = dt.timedelta(days=1)
PATIENCE_SECONDS = 60.0
_REQUEST_SECONDS = 60.0
_OPERATION_SECONDS = 1800.0
_PAGE = 100
# Vertex's limits.
_ID_LENGTH = 63
_LABEL_LENGTH = 63
_CHAMPIONS_LABEL = "segwatch_champions_"
# 12 versions of four digits each: about a hundred champions back.
_CHAMPION_LABELS = 8
_LABELLED_PARAMETERS = ("window_start", "window_end")
_REFERENCE = re.compile(r"[1-9][0-9]{0,18}|[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")


class VertexRegistry:
    """The models of one project and location that carry segwatch's label."""

    def __init__(self, bucket: str, google: Google, image: str = "") -> None:
        self._google = google
        self._image = image
        self._location = f"projects/{google.project}/locations/{google.location}"
        self._place = f"Vertex AI in {google.project}/{google.location}"
        self._root = f"{bucket.rstrip('/')}/models/{google.project}/{google.location}"
        self._storage = Storage(google)

    def create(self) -> None:
        """Vertex's registry is always there; the bucket must be, and what a version cannot be made without."""
        self._require_image()
        self._storage.require(self._root)

    def register(
        self,
        name: str,
        bundle: Path,
        *,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> ModelVersion:
        self._require_image()
        with translated(self._place):
            is_new = self._own_model(name) is None
        uri = self._storage.upload(bundle, self._folder(name), _notes(parameters, metrics, tags))
        made = self._make_version(name, uri, _labels(self._google.labels, parameters, tags), is_new)
        # The version is made; a leftover that cannot be removed today can tomorrow.
        with suppress(BackendError):
            self._sweep(name)
        return self._described(made, dict(parameters), {key: float(value) for key, value in metrics.items()}, tags)

    def versions(self, name: str) -> list[ModelVersion]:
        with translated(self._place):
            found = self._versions(name)
        return sorted(self._noted(found), key=lambda version: int(version.version), reverse=True)

    def resolve(self, name: str, reference: str = CHAMPION) -> ModelVersion:
        with translated(self._place):
            model = self._resolved(name, reference)
        (version,) = self._noted([model])
        return version

    def download(self, version: ModelVersion, to: Path) -> Path:
        with translated(self._place):
            model = self._resolved(version.name, version.version)
        try:
            return self._storage.download(model.artifact_uri, to)
        except ModelError as error:
            raise ModelError(
                f"{version.name} version {version.version} cannot be used: {error}; run `segwatch train`, or promote"
                " another version"
            ) from error

    def promote(self, name: str, version: str) -> ModelVersion:
        with translated(self._place):
            target = self._resolved(name, version).version_id
            before, current = self._champions(name)
            if current != target:
                # The alias first: broken off here, the list still ends with the champion before.
                self._move_champion(name, target)
                self._keep_champions(name, [*before, *([current] if current else []), target])
        return self.resolve(name, target)

    def rollback(self, name: str) -> ModelVersion:
        with translated(self._place):
            current = self._resolved(name, CHAMPION).version_id
            before, _ = self._champions(name)
            existing = {model.version_id for model in self._versions(name)} - {current}
            while before and before[-1] not in existing:
                before.pop()
            if not before:
                raise ModelError(
                    f"{name} version {current} had no champion before it; `segwatch models promote` takes any version"
                )
            # The list first: broken off here, it ends with the version that the next call goes back to.
            self._keep_champions(name, before)
            self._move_champion(name, before[-1])
        return self.resolve(name, before[-1])

    def drop(self, name: str) -> None:
        with translated(self._place):
            if self._own_model(name) is None:
                return
            uris = [model.artifact_uri for model in self._versions(name)]
            # The model first: from here on nobody resolves a version whose files are going. A model that is
            # deployed is refused, and keeps its files.
            self._client.delete_model(name=self._resource(name), timeout=_REQUEST_SECONDS).result(_OPERATION_SECONDS)
        for uri in uris:
            # A version that someone added by hand may point anywhere.
            if uri.startswith(self._folder(name) + "/"):
                self._storage.delete(uri)
        self._sweep(name)

    def created(self) -> list[str]:
        with translated(self._place):
            models = self._client.list_models(
                request={
                    "parent": self._location,
                    "filter": f"labels.{MANAGED_LABEL}=true",
                    "page_size": _PAGE,
                },
                **self._patiently,
            )
            return sorted(model.display_name for model in models if MANAGED_LABEL in model.labels)

    def destroy(self) -> None:
        for name in self.created():
            self.drop(name)

    @cached_property
    def _client(self) -> ModelServiceClient:
        client: ModelServiceClient = vertex_client("ModelService", self._google)
        return client

    @property
    def _patiently(self) -> dict[str, Any]:
        """How calls are made that may be made twice: again after faults that pass."""
        from google.api_core.retry import Retry, if_transient_error

        return {
            "retry": Retry(predicate=if_transient_error, initial=0.5, maximum=10, timeout=PATIENCE_SECONDS),
            "timeout": _REQUEST_SECONDS,
        }

    def _resource(self, name: str) -> str:
        return f"{self._location}/models/{model_id(name)}"

    def _folder(self, name: str) -> str:
        return f"{self._root}/{model_id(name)}"

    def _get(self, resource: str) -> Model | None:
        from google.api_core.exceptions import NotFound

        try:
            return self._client.get_model(name=resource, **self._patiently)
        except NotFound:
            return None

    def _require_image(self) -> None:
        if not self._image:
            raise SettingsError(
                "Vertex AI takes no model without a container that serves it: set `image` of the target to the"
                " address of segwatch's container image"
            )

    def _own_model(self, name: str) -> Model | None:
        """The model of that name. Raises ModelError if segwatch did not make it."""
        model = self._get(self._resource(name))
        if model is not None and (MANAGED_LABEL not in model.labels or model.display_name != name):
            raise ModelError(
                f"{self._place} has a model {model_id(name)} ({model.display_name}) that segwatch did not make: rename"
                " that one, or the metric"
            )
        return model

    def _resolved(self, name: str, reference: str) -> Model:
        """The exact version that an alias or a number names. Raises ModelError if there is none."""
        if self._own_model(name) is None:
            raise ModelError(f"{self._place} has no model {name}; run `segwatch train` first")
        found = self._get(f"{self._resource(name)}@{reference}") if _REFERENCE.fullmatch(reference) else None
        if found is None and reference == CHAMPION:
            raise ModelError(f"{name} has no champion in {self._place}; run `segwatch train` first")
        if found is None:
            raise ModelError(f"{name} has no version {reference} in {self._place}; `segwatch models list` shows all")
        return found

    def _versions(self, name: str) -> list[Model]:
        from google.api_core.exceptions import NotFound

        try:
            return list(
                self._client.list_model_versions(
                    request={"name": self._resource(name), "page_size": _PAGE}, **self._patiently
                )
            )
        except NotFound:
            return []

    def _make_version(self, name: str, uri: str, labels: Mapping[str, str], is_new: bool) -> Model:
        """The version exists: the one step that makes the upload count.

        The upload is deleted where Vertex refuses. Where no answer came the version may be made all the same, so the
        files stay, for it or for the sweep.
        """
        from google.api_core.exceptions import Conflict

        try:
            with translated(self._place):
                try:
                    number = self._upload_version(name, uri, labels, is_new)
                except Conflict:
                    # Another process made the model meanwhile; the same name means the same model.
                    self._own_model(name)
                    number = self._upload_version(name, uri, labels, is_new=False)
                return self._resolved(name, number)
        except SegwatchError as error:
            if _is_refusal(error):
                with suppress(SegwatchError):
                    self._storage.delete(uri)
            raise

    def _upload_version(self, name: str, uri: str, labels: Mapping[str, str], is_new: bool) -> str:
        from google.api_core.exceptions import ResourceExhausted, TooManyRequests
        from google.api_core.retry import Retry, if_exception_type
        from google.cloud.aiplatform_v1.types import Model, ModelContainerSpec
        from google.cloud.aiplatform_v1.types import Port as ContainerPort

        model = Model(
            display_name=name,
            artifact_uri=uri,
            container_spec=ModelContainerSpec(
                image_uri=self._image,
                predict_route=PREDICT_ROUTE,
                health_route=HEALTH_ROUTE,
                ports=[ContainerPort(container_port=PORT)],
            ),
            labels=dict(labels),
            encryption_spec=encryption(self._google),
            # No alias: Vertex gives `default` to the first version by itself.
            version_aliases=[],
        )
        place = {"model_id": model_id(name)} if is_new else {"parent_model": self._resource(name)}
        operation = self._client.upload_model(
            request={"parent": self._location, "model": model, **place},
            # After anything else the first request may have made a version.
            retry=Retry(
                predicate=if_exception_type(TooManyRequests, ResourceExhausted), initial=0.5, timeout=PATIENCE_SECONDS
            ),
            timeout=_REQUEST_SECONDS,
        )
        return str(operation.result(_OPERATION_SECONDS).model_version_id)

    def _move_champion(self, name: str, version: str) -> None:
        """The alias is at the version, and no longer anywhere else."""
        self._client.merge_version_aliases(
            name=f"{self._resource(name)}@{version}", version_aliases=[CHAMPION], **self._patiently
        )

    def _champions(self, name: str) -> tuple[list[str], str | None]:
        """The champions before the present one, oldest first, and the present one.

        Where the list disagrees, the alias is right.
        """
        model = self._own_model(name)
        champions = _champions(model.labels) if model is not None else []
        champion = self._get(f"{self._resource(name)}@{CHAMPION}")
        current = str(champion.version_id) if champion is not None else None
        return (champions[:-1] if champions and champions[-1] == current else champions), current

    def _keep_champions(self, name: str, champions: Sequence[str]) -> None:
        """The model's labels hold the list; the labels of others are as they were."""
        from google.cloud.aiplatform_v1.types import Model
        from google.protobuf.field_mask_pb2 import FieldMask

        found = self._own_model(name)
        if found is None:
            raise ModelError(f"{self._place} has no model {name} any more; run `segwatch train`")
        # What Vertex returns are the labels of the model and of its default version in one.
        others = {key: value for key, value in found.labels.items() if not key.startswith("segwatch_")}
        model = Model(
            name=self._resource(name),
            # A list that someone else changes meanwhile is refused, not overwritten.
            etag=found.etag,
            labels={**others, MANAGED_LABEL: "true", **_champion_labels(champions)},
        )
        self._client.update_model(model=model, update_mask=FieldMask(paths=["labels"]), timeout=_REQUEST_SECONDS)

    def _sweep(self, name: str) -> None:
        """Uploads that a killed process left behind a day ago or more are gone."""
        oldest = dt.datetime.now(dt.UTC) - STALE_AFTER
        stale = [upload.uri for upload in self._storage.uploads(self._folder(name)) if upload.started_at < oldest]
        if not stale:
            return
        with translated(self._place):
            used = {model.artifact_uri for model in self._versions(name)}
        for uri in stale:
            if uri not in used:
                self._storage.delete(uri)

    def _noted(self, models: Sequence[Model]) -> list[ModelVersion]:
        """The versions with what the notes of their uploads say; where those are lost, with what the labels say."""
        notes = self._storage.notes([model.artifact_uri for model in models])
        return [self._with_notes(model, said) for model, said in zip(models, notes, strict=True)]

    def _with_notes(self, model: Model, notes: Mapping[str, Any] | None) -> ModelVersion:
        if notes is None:
            labels = model.labels
            # An hour's T is in lower case there.
            kept = {key: labels[_label(key)].upper() for key in _LABELLED_PARAMETERS if _label(key) in labels}
            return self._described(model, kept, {}, {})
        metrics = {key: float(value) for key, value in notes.get("metrics", {}).items()}
        return self._described(model, dict(notes.get("parameters", {})), metrics, notes.get("tags", {}))

    def _described(
        self, model: Model, parameters: dict[str, str], metrics: dict[str, float], tags: Mapping[str, str]
    ) -> ModelVersion:
        version = str(model.version_id)
        return ModelVersion(
            name=model.display_name,
            version=version,
            uri=f"{self._resource(model.display_name)}@{version}",
            created_at=model.version_create_time.astimezone(dt.UTC),
            run_id=tags.get("segwatch.run_id") or model.artifact_uri.rpartition("/")[2],
            aliases=tuple(sorted(set(model.version_aliases) - {"default"})),
            parameters=parameters,
            metrics=metrics,
            tags=dict(tags),
        )


def _is_refusal(error: SegwatchError) -> bool:
    """Whether it is certain that nothing was made."""
    from google.api_core.exceptions import ClientError, RetryError

    cause = error.__cause__
    if isinstance(cause, RetryError):
        cause = cause.cause
    return isinstance(cause, ClientError) or not isinstance(error, BackendError)


def model_id(name: str) -> str:
    """Vertex's id of the model: the name itself where it fits, else the name cut short and a digest of it."""
    plain = name.replace("_", "-")
    if re.fullmatch(r"[a-z][a-z0-9-]*", plain) and len(plain) <= _ID_LENGTH and "-" not in name[len("segwatch-") :]:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    start = re.sub(r"[^a-z0-9-]", "-", name.lower()).lstrip("-0123456789")
    return f"{start[: _ID_LENGTH - 13]}-{digest}"


def _notes(parameters: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]) -> dict[str, Any]:
    # JSON has no NaN and no infinity; float() reads them back from text.
    values = {key: float(value) for key, value in metrics.items()}
    return {
        "parameters": dict(parameters),
        "metrics": {key: value if math.isfinite(value) else repr(value) for key, value in values.items()},
        "tags": dict(tags),
    }


def _labels(own: Mapping[str, str], parameters: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """The version's labels: the target's, the mark, the training Window and what is known of the origin."""
    chosen = {
        **{_label(key): parameters[key] for key in _LABELLED_PARAMETERS if key in parameters},
        **{_label(key): value for key, value in tags.items() if key.startswith("segwatch.")},
    }
    return {**own, MANAGED_LABEL: "true", **{key: _label_value(value) for key, value in chosen.items()}}


def _label(key: str) -> str:
    return "segwatch_" + _label_value(key.removeprefix("segwatch."))


def _label_value(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "_", text.lower())[:_LABEL_LENGTH]


def _champions(labels: Mapping[str, str]) -> list[str]:
    texts = [labels.get(f"{_CHAMPIONS_LABEL}{i}", "") for i in range(_CHAMPION_LABELS)]
    return [number for text in texts for number in text.split("-") if number.isdecimal()]


def _champion_labels(champions: Sequence[str]) -> dict[str, str]:
    """The newest champions, oldest first, in as many labels as they need; those with no room are forgotten."""
    texts: list[str] = []
    for number in reversed(champions):
        if texts and len(texts[-1]) + 1 + len(number) <= _LABEL_LENGTH:
            texts[-1] = f"{number}-{texts[-1]}"
        else:
            texts.append(number)
    kept = reversed(texts[:_CHAMPION_LABELS])
    return {f"{_CHAMPIONS_LABEL}{i}": text for i, text in enumerate(kept)}
