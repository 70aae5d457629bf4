"""The contract of every ModelRegistry; what only MLflow in a SQLite file has (locks, death, owners) is at the end."""

from __future__ import annotations

import datetime as dt
import logging
import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import segwatch
from segwatch.errors import BackendError, ModelError, SettingsError
from segwatch.registries import CHAMPION, ModelRegistry, ModelVersion, mlflow_file, open_registry
from segwatch.settings import Endpoints, Google
from segwatch.storage import Storage

from ..conftest import Bucket
from ..fakes.vertex import VertexFake

NAME = "segwatch-new_users"
OTHER = "segwatch-orders"


class MlflowBackend:
    """MLflow in a SQLite file, and ways to reach it behind segwatch's back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "mlflow.db"
        self.uri = f"sqlite:///{self.path}"

    def open(self) -> ModelRegistry:
        return open_registry(self.uri)

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def version_uri(self, name: str, version: str) -> str:
        return f"models:/{name}/{version}"

    def lose_artifacts(self, _version: ModelVersion) -> None:
        shutil.rmtree(self.folder / "mlartifacts")

    def stored(self) -> list[str]:
        """The model of each bundle that is kept, whole or not."""
        found = (self.folder / "mlartifacts").rglob("detectors.arrow")
        names = [path.relative_to(self.folder / "mlartifacts").parts[0] for path in found]
        return sorted(name.rpartition("-")[0] for name in names)

    def make_foreign(self, name: str) -> None:
        self.client().create_registered_model(name)

    def has(self, name: str) -> bool:
        return bool(self.client().get_registered_model(name).name == name)

    def fail_storing(self, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
        """The next bundle is written halfway, then the hook is called."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        def halfway(repository: Any, local_dir: str, artifact_path: str) -> None:
            repository.log_artifact(str(next(Path(local_dir).glob("*.arrow"))), artifact_path)
            hook()

        monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", halfway)


class VertexBackend:
    """The real client library against a fake of Vertex AI and an emulator of Cloud Storage."""

    def __init__(self, folder: Path, fake: VertexFake, bucket: Bucket) -> None:
        self.folder = folder
        self._fake = fake
        self._bucket = bucket
        self._google = Google(project="test-project", endpoints=Endpoints(storage=bucket.door.url, vertex=fake.url))

    def open(self) -> ModelRegistry:
        return open_registry("vertex", f"{self._bucket.uri}/segwatch", self._google, "region/image:1")

    def version_uri(self, name: str, version: str) -> str:
        return f"projects/test-project/locations/us-central1/models/{name.replace('_', '-')}@{version}"

    def lose_artifacts(self, _version: ModelVersion) -> None:
        for name in self._bucket.door.names(self._bucket.uri):
            self._bucket.door.remove(f"{self._bucket.uri}/{name}")

    def fail_storing(self, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
        put, calls = Storage._put, []

        def halfway(*arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == 2:
                hook()
            else:
                put(*arguments)

        monkeypatch.setattr(Storage, "_put", halfway)

    def stored(self) -> list[str]:
        names = self._bucket.door.names(self._bucket.uri)
        return sorted(name.split("/")[4] for name in names if name.endswith("detectors.arrow"))

    def make_foreign(self, name: str) -> None:
        from google.cloud.aiplatform_v1.services.model_service import ModelServiceClient

        uri = f"{self._bucket.uri}/theirs"
        model = {"display_name": name, "artifact_uri": uri, "container_spec": {"image_uri": "theirs"}}
        request = {"parent": "projects/p/locations/l", "model_id": name.replace("_", "-"), "model": model}
        from google.auth.credentials import AnonymousCredentials

        client = ModelServiceClient(
            credentials=AnonymousCredentials(), transport="rest", client_options={"api_endpoint": self._fake.url}
        )
        client.upload_model(request=request).result()

    def has(self, name: str) -> bool:
        return name.replace("_", "-") in self._fake.models


Backend = MlflowBackend | VertexBackend
mlflow_only = pytest.mark.parametrize("backend", ["mlflow"], indirect=True)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that segwatch created, made once because that takes seconds."""
    backend = MlflowBackend(tmp_path_factory.mktemp("empty"))
    backend.open().create()
    return backend.path


@pytest.fixture(params=["mlflow", "vertex"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    folder = tmp_path / "a project"
    folder.mkdir()
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    if request.param == "vertex":
        fake = VertexFake(page_size=4)
        yield VertexBackend(folder, fake, request.getfixturevalue("bucket"))
        fake.close()
        return
    backend = MlflowBackend(folder)
    monkeypatch.setattr(mlflow_file, "LOCK_WAIT_SECONDS", 0.2)
    shutil.copy(request.getfixturevalue("empty_mlflow"), backend.path)
    yield backend


@pytest.fixture
def registry(backend: Backend) -> ModelRegistry:
    return backend.open()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", 1)


def write_bundle(folder: Path, seed: int) -> Path:
    """A directory shaped like a bundle; the contract does not look inside."""
    numbers = random.Random(seed)
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_text(f'{{"protocol": 1, "seed": {seed}}}')
    (folder / "detectors.arrow").write_bytes(numbers.randbytes(50_000))
    (folder / "shards" / "0000.arrow").write_bytes(numbers.randbytes(1000))
    (folder / "shards" / "empty").write_bytes(b"")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def register(registry: ModelRegistry, bundle: Path, name: str = NAME, **parameters: str) -> ModelVersion:
    return registry.register(name, bundle, parameters=parameters, metrics={}, tags={})


def numbers(registry: ModelRegistry, name: str = NAME) -> list[str]:
    return [version.version for version in registry.versions(name)]


def champion(registry: ModelRegistry, name: str = NAME) -> str:
    return registry.resolve(name).version


def test_registered_bundle_comes_back_byte_for_byte(registry: ModelRegistry, bundle: Path, tmp_path: Path) -> None:
    made = register(registry, bundle)
    registry.promote(NAME, made.version)
    to = registry.download(registry.resolve(NAME), tmp_path / "new" / "copy")
    assert to == tmp_path / "new" / "copy"
    assert content(to) == content(bundle)


def test_parameters_metrics_and_tags_are_readable_back(backend: Backend, registry: ModelRegistry, bundle: Path) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    parameters = {f"p{i}": str(i) for i in range(150)} | {"long": "è" * 20_000, "empty": ""}
    metrics = {f"m{i}": i / 7 for i in range(1200)} | {"nan": math.nan, "tiny": 5e-324}
    tags = {"commit": "abc", "note": "x" * 9000}
    made = registry.register(NAME, bundle, parameters=parameters, metrics=metrics, tags=tags)
    for version in (made, registry.resolve(NAME, made.version), *registry.versions(NAME)):
        assert version.parameters == parameters
        assert version.tags == tags
        assert math.isnan(version.metrics["nan"])
        assert {**version.metrics, "nan": 0} == {**metrics, "nan": 0}
        assert (version.name, version.version, version.uri) == (NAME, "1", backend.version_uri(NAME, "1"))
        assert version.run_id == made.run_id != ""
        assert before <= version.created_at <= dt.datetime.now(dt.UTC)
        assert version.created_at.tzinfo is dt.UTC


def test_versions_are_newest_first(registry: ModelRegistry, bundle: Path) -> None:
    for _ in range(11):
        register(registry, bundle)
    assert numbers(registry) == [str(number) for number in range(11, 0, -1)]
    assert numbers(registry, "nobody") == []


def test_register_moves_no_alias(registry: ModelRegistry, bundle: Path) -> None:
    assert register(registry, bundle).aliases == ()
    registry.promote(NAME, "1")
    register(registry, bundle)
    assert champion(registry) == "1"
    assert [version.aliases for version in registry.versions(NAME)] == [(), (CHAMPION,)]


def test_resolve_says_to_train_where_there_is_no_model_or_no_champion(registry: ModelRegistry, bundle: Path) -> None:
    with pytest.raises(ModelError, match=f"no model {NAME}; run `segwatch train`"):
        registry.resolve(NAME)
    register(registry, bundle)
    with pytest.raises(ModelError, match=r"no champion .* run `segwatch train`"):
        registry.resolve(NAME)


@pytest.mark.parametrize("reference", ["2", "0", "previous", "1.5", "", "-1", "²"])
def test_unknown_version_is_a_model_error(registry: ModelRegistry, bundle: Path, reference: str) -> None:
    register(registry, bundle)
    with pytest.raises(ModelError, match=f"{NAME} has no"):
        registry.resolve(NAME, reference)
    with pytest.raises(ModelError, match=f"{NAME} has no"):
        registry.promote(NAME, reference)


def test_rollback_goes_back_one_champion_each_time(registry: ModelRegistry, bundle: Path) -> None:
    for _ in range(4):
        register(registry, bundle)
    for version in ("1", "3", "2"):
        assert registry.promote(NAME, version).aliases == (CHAMPION,)
    assert registry.rollback(NAME).version == "3"
    assert registry.rollback(NAME).version == champion(registry) == "1"
    with pytest.raises(ModelError, match="no champion before"):
        registry.rollback(NAME)
    assert champion(registry) == "1"


def test_promotion_after_a_rollback_forgets_the_version_rolled_back(registry: ModelRegistry, bundle: Path) -> None:
    for _ in range(3):
        register(registry, bundle)
    registry.promote(NAME, "1")
    registry.promote(NAME, "2")
    registry.rollback(NAME)
    registry.promote(NAME, "3")
    assert registry.rollback(NAME).version == "1"


def test_promoting_the_champion_again_changes_nothing(registry: ModelRegistry, bundle: Path) -> None:
    for _ in range(2):
        register(registry, bundle)
    for version in ("1", "2", "2", CHAMPION):
        registry.promote(NAME, version)
    assert registry.rollback(NAME).version == "1"


@pytest.mark.parametrize("broken", ["missing", "empty", "a file"])
def test_a_bundle_that_is_none_is_refused(registry: ModelRegistry, tmp_path: Path, broken: str) -> None:
    path = tmp_path / "none"
    if broken == "empty":
        path.mkdir()
    elif broken == "a file":
        path.write_text("x")
    with pytest.raises(ModelError, match="missing or empty"):
        register(registry, path)
    assert numbers(registry) == []


def test_a_file_vanishing_halfway_leaves_no_version(
    backend: Backend, registry: ModelRegistry, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, bundle)
    registry.promote(NAME, "1")
    with monkeypatch.context() as patch:
        backend.fail_storing(patch, (bundle / "shards" / "0000.arrow").unlink)
        with pytest.raises(ModelError, match=r"changed while it was (registered|uploaded)"):
            register(registry, bundle)
    assert numbers(registry) == ["1"]
    assert champion(registry) == "1"
    assert register(registry, bundle).version == "2"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_register_broken_off_halfway_leaves_no_version_and_no_files(
    backend: Backend,
    registry: ModelRegistry,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail() -> None:
        raise error

    register(registry, bundle)
    registry.promote(NAME, "1")
    with monkeypatch.context() as patch:
        backend.fail_storing(patch, fail)
        with pytest.raises((BackendError, KeyboardInterrupt)):
            register(registry, bundle)
    assert numbers(registry) == [champion(registry)] == ["1"]
    assert len(backend.stored()) == 1
    if isinstance(backend, MlflowBackend):
        runs = backend.client().search_runs([backend.client().get_experiment_by_name(NAME).experiment_id])
        assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_lost_artifacts_are_a_model_error_and_nothing_is_downloaded(
    backend: Backend, registry: ModelRegistry, bundle: Path, tmp_path: Path
) -> None:
    made = register(registry, bundle)
    backend.lose_artifacts(made)
    with pytest.raises(ModelError, match=r"are gone from .* run `segwatch train`"):
        registry.download(made, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a project", "bundle", "cwd"]


def test_download_keeps_a_directory_that_is_in_use(registry: ModelRegistry, bundle: Path, tmp_path: Path) -> None:
    made = register(registry, bundle)
    used = tmp_path / "used"
    used.mkdir()
    registry.download(made, used)
    (used / "mine").write_text("x")
    with pytest.raises(BackendError, match="used cannot be written"):
        registry.download(made, used)
    assert (used / "mine").read_text() == "x"


def test_drop_removes_its_model_and_only_that(
    backend: Backend, registry: ModelRegistry, bundle: Path, tmp_path: Path
) -> None:
    for name in (NAME, OTHER):
        register(registry, bundle, name)
        registry.promote(name, "1")
    assert registry.created() == [NAME, OTHER]
    registry.drop(NAME)
    registry.drop(NAME)
    assert registry.created() == [OTHER]
    assert numbers(registry) == []
    with pytest.raises(ModelError, match="no model"):
        registry.resolve(NAME)
    assert content(registry.download(registry.resolve(OTHER), tmp_path / "copy")) == content(bundle)
    assert backend.stored() == [OTHER]
    assert register(registry, bundle).version == "1"


def test_a_foreign_model_of_the_same_name_is_left_alone(
    backend: Backend, registry: ModelRegistry, bundle: Path
) -> None:
    backend.make_foreign(NAME)
    for refused in (lambda: register(registry, bundle), lambda: registry.drop(NAME)):
        with pytest.raises(ModelError, match="that segwatch did not make"):
            refused()
    assert registry.created() == []
    assert backend.has(NAME)


def test_an_alias_that_moves_meanwhile_does_not_change_the_version_in_hand(
    registry: ModelRegistry, bundle: Path, tmp_path: Path
) -> None:
    other = write_bundle(tmp_path / "other", 2)
    register(registry, bundle)
    register(registry, other)
    registry.promote(NAME, "1")
    in_hand = registry.resolve(NAME)
    registry.promote(NAME, "2")
    assert content(registry.download(in_hand, tmp_path / "copy")) == content(bundle)


def test_nothing_is_written_beside_the_registry(
    backend: Backend, registry: ModelRegistry, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environment, levels = dict(os.environ), [logging.getLogger(name).level for name in ("mlflow", "alembic")]
    register(registry, bundle)
    registry.promote(NAME, "1")
    registry.drop(NAME)
    assert list(Path.cwd().iterdir()) == []
    assert {path.name for path in backend.folder.iterdir()} <= {"mlflow.db", "mlartifacts"}
    assert dict(os.environ) == environment
    assert [logging.getLogger(name).level for name in ("mlflow", "alembic")] == levels
    assert capfd.readouterr() == ("", "")


def test_another_registry_object_sees_the_same(backend: Backend, registry: ModelRegistry, bundle: Path) -> None:
    made = register(registry, bundle)
    registry.promote(NAME, "1")
    assert backend.open().resolve(NAME).run_id == made.run_id


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "mlflow.db",
        "sqlite:",
        "sqlite:///",
        "sqlite://mlflow.db",
        "sqlite:///a?b",
        "http://",
        "vertex://project/location",
        "ftp://x",
    ],
)
def test_an_unknown_uri_is_a_settings_error_naming_the_forms(uri: str) -> None:
    with pytest.raises(
        SettingsError, match=r"is not a model registry: use sqlite:///FILE .* https:// .* vertex"
    ) as error:
        open_registry(uri)
    assert repr(uri) in str(error.value)


# MLflow alone


def test_opening_a_registry_imports_no_mlflow() -> None:
    code = (
        "import sys; from segwatch.registries import open_registry; open_registry('sqlite:////x/y.db');"
        "sys.exit(any(name.partition('.')[0] in ('mlflow', 'sqlalchemy', 'pandas') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@mlflow_only
def test_telemetry_is_off(registry: ModelRegistry) -> None:
    registry.created()
    from mlflow.telemetry.utils import MLFLOW_DISABLE_TELEMETRY

    assert MLFLOW_DISABLE_TELEMETRY.get() is True


@mlflow_only
def test_create_destroy_create(backend: MlflowBackend, registry: ModelRegistry, bundle: Path) -> None:
    backend.path.unlink()
    registry.create()
    made = backend.path.stat()
    registry.create()
    assert backend.path.stat() == made
    register(registry, bundle)
    registry.destroy()
    registry.destroy()
    assert list(backend.folder.iterdir()) == []
    assert register(registry, bundle).version == "1"
    assert [path.name for path in (backend.folder / "mlartifacts").iterdir() if path.name[0] == "."] == []


@mlflow_only
def test_reading_does_not_make_the_file(backend: MlflowBackend, registry: ModelRegistry, bundle: Path) -> None:
    backend.path.unlink()
    version = ModelVersion(NAME, "1", "", dt.datetime.now(dt.UTC), "r", (), {}, {}, {})
    for read in (
        lambda: registry.versions(NAME),
        lambda: registry.resolve(NAME),
        lambda: registry.download(version, bundle / "x"),
        lambda: registry.promote(NAME, "1"),
        lambda: registry.rollback(NAME),
    ):
        with pytest.raises(ModelError, match=r"no registry .* yet; run `segwatch create`"):
            read()
    assert registry.created() == []
    registry.drop(NAME)
    registry.destroy()
    assert list(backend.folder.iterdir()) == []


@mlflow_only
def test_destroy_keeps_a_file_with_a_foreign_experiment(
    backend: MlflowBackend, registry: ModelRegistry, bundle: Path
) -> None:
    register(registry, bundle)
    foreign = backend.client().create_experiment("theirs", (backend.folder / "mlartifacts/theirs").as_uri())
    run = backend.client().create_run(foreign)
    backend.client().log_text(run.info.run_id, "x", "note.txt")
    registry.destroy()
    assert registry.created() == []
    assert backend.client().get_experiment(foreign).name == "theirs"
    assert [path.name for path in (backend.folder / "mlartifacts").iterdir()] == ["theirs"]


@mlflow_only
@pytest.mark.parametrize("foreign", ["run", "model", "deleted experiment", "prompt"])
def test_destroy_keeps_a_file_with_anything_foreign(
    backend: MlflowBackend, registry: ModelRegistry, foreign: str
) -> None:
    client = backend.client()
    if foreign == "run":
        client.create_run("0")
    elif foreign == "model":
        client.create_registered_model("theirs")
    elif foreign == "prompt":
        client.register_prompt("theirs", "say {{ this }}")
    else:
        client.delete_experiment(client.create_experiment("theirs"))
    registry.destroy()
    assert backend.path.exists()


@mlflow_only
def test_destroy_keeps_a_file_that_segwatch_did_not_create(
    backend: MlflowBackend, registry: ModelRegistry, bundle: Path
) -> None:
    backend.client().delete_experiment_tag("0", mlflow_file.CREATED_TAG)
    register(registry, bundle)
    registry.destroy()
    assert backend.path.exists()
    assert registry.created() == []


@mlflow_only
def test_drop_completes_one_that_broke_off(backend: MlflowBackend, registry: ModelRegistry, bundle: Path) -> None:
    register(registry, bundle)
    backend.client().delete_registered_model(NAME)
    assert registry.created() == [NAME]
    registry.destroy()
    assert list(backend.folder.iterdir()) == []


@mlflow_only
def test_two_databases_of_one_directory_share_no_artifacts(
    backend: MlflowBackend, registry: ModelRegistry, bundle: Path, tmp_path: Path
) -> None:
    second = open_registry(f"sqlite:///{backend.folder}/second.db")
    shutil.copy(backend.path, backend.folder / "second.db")
    register(registry, bundle)
    made = register(second, bundle)
    registry.destroy()
    assert content(second.download(made, tmp_path / "copy")) == content(bundle)


@mlflow_only
@pytest.mark.parametrize("broken_off", ["promote", "rollback"])
def test_rollback_is_right_after_a_change_that_broke_off(
    registry: ModelRegistry,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken_off: str,
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_: object) -> None:
        raise MlflowException("killed")

    for version in ("1", "2", "3"):
        register(registry, bundle)
        registry.promote(NAME, version)
    second = "set_registered_model_tag" if broken_off == "promote" else "set_registered_model_alias"
    register(registry, bundle)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, second, fail)
        with pytest.raises(BackendError, match="killed"):
            registry.promote(NAME, "4") if broken_off == "promote" else registry.rollback(NAME)
    assert champion(registry) == ("4" if broken_off == "promote" else "3")
    assert registry.rollback(NAME).version == ("3" if broken_off == "promote" else "2")
    assert registry.rollback(NAME).version == ("2" if broken_off == "promote" else "1")


@mlflow_only
def test_rollback_after_someone_else_moved_the_alias(
    backend: MlflowBackend, registry: ModelRegistry, bundle: Path
) -> None:
    for version in ("1", "2", "3"):
        register(registry, bundle)
        if version != "3":
            registry.promote(NAME, version)
    backend.client().set_registered_model_alias(NAME, CHAMPION, "3")
    assert registry.rollback(NAME).version == "2"
    backend.client().delete_model_version(NAME, "1")
    with pytest.raises(ModelError, match="no champion before"):
        registry.rollback(NAME)


@mlflow_only
def test_runs_left_open_are_closed_after_an_hour(backend: MlflowBackend, registry: ModelRegistry, bundle: Path) -> None:
    register(registry, bundle)
    client = backend.client()
    experiment = client.get_experiment_by_name(NAME).experiment_id
    now = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    old, young = (client.create_run(experiment, start_time=now - ms).info for ms in (3_700_000, 1000))
    client.log_text(old.run_id, "x", "model/bundle/half")
    register(registry, bundle)
    assert client.get_run(old.run_id).info.status == "KILLED"
    assert client.list_artifacts(old.run_id) == []
    assert client.get_run(young.run_id).info.status == "RUNNING"


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    source = str(Path(segwatch.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": source},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@mlflow_only
def test_processes_that_register_at_once_into_no_registry_yet_all_get_a_version(
    backend: MlflowBackend, registry: ModelRegistry, bundle: Path
) -> None:
    backend.path.unlink()
    code = (
        "import sys; from pathlib import Path; from segwatch.registries import open_registry;"
        "registry = open_registry(sys.argv[1]); sys.stdin.readline();"
        f"registry.register({NAME!r}, Path(sys.argv[2]), parameters={{}}, metrics={{}}, tags={{}})"
    )
    started = [python(code, backend.uri, str(bundle)) for _ in range(3)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert numbers(registry) == ["3", "2", "1"]


def hold(path: Path) -> subprocess.Popen[str]:
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    )
    holder = python(code, str(path))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@mlflow_only
def test_a_locked_database_is_a_retryable_backend_error(
    backend: MlflowBackend, registry: ModelRegistry, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with hold(backend.path) as holder:
        for call in (
            lambda: register(registry, bundle),
            lambda: registry.versions(NAME),
            lambda: registry.drop(NAME),
            registry.destroy,
        ):
            with pytest.raises(BackendError, match=r"sqlite:///.*mlflow.db is held by another process") as error:
                call()
            assert error.value.retryable
        holder.communicate()
    assert capfd.readouterr() == ("", "")
    assert register(registry, bundle).version == "1"


@mlflow_only
def test_a_lock_taken_in_the_middle_is_told_the_same_way(
    registry: ModelRegistry,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import sqlalchemy

    def fail(*_: object) -> None:
        raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))

    registry.created()
    monkeypatch.setattr(sqlalchemy.orm.Session, "commit", fail)
    with pytest.raises(BackendError, match="is held by another process") as error:
        register(registry, bundle)
    assert error.value.retryable
    assert capfd.readouterr() == ("", "")


@mlflow_only
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"this is not a database " * 100), "is not a SQLite database"),
        (lambda path: path.write_bytes(path.read_bytes()[:100_000]), "is not a SQLite database"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be opened"),
        (lambda path: (path.unlink(), other_database(path)), "not one of MLflow's"),
        (lambda path: shutil.rmtree(path.parent), "the directory .* does not exist; make it"),
        (lambda path: (path.unlink(), (path.parent / "mlartifacts").write_text("x")), "File exists"),
    ],
    ids=["text", "cut", "directory", "other program's", "no directory", "no artifacts directory"],
)
def test_a_damaged_registry_is_a_backend_error(
    backend: MlflowBackend,
    registry: ModelRegistry,
    bundle: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(backend.path)
    with pytest.raises(BackendError, match=message) as error:
        register(registry, bundle)
    assert backend.uri in str(error.value)
    assert not error.value.retryable
    assert capfd.readouterr() == ("", "")


def other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()


@mlflow_only
def test_an_empty_file_is_taken_for_no_registry_yet(backend: MlflowBackend, registry: ModelRegistry) -> None:
    backend.path.write_bytes(b"")
    assert registry.created() == []
    registry.create()
    assert registry.versions(NAME) == []


def test_a_server_that_is_not_there_is_a_retryable_backend_error(capfd: pytest.CaptureFixture[str]) -> None:
    registry = open_registry("http://user:secret@127.0.0.1:9")
    with pytest.raises(BackendError, match=r"http://127.0.0.1:9 does not answer; start the server") as error:
        registry.versions(NAME)
    assert error.value.retryable
    assert "secret" not in str(error.value)
    assert capfd.readouterr() == ("", "")


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from segwatch.registries import open_registry

uri, bundle, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
registry = open_registry(uri)
steps = {"seen": 0, "last": None}

def register():
    return registry.register("segwatch-new_users", bundle, parameters={"a": "1"}, metrics={"b": 2.0}, tags={})

def hook(event, _):
    if event in ("open", "sqlite3.connect", "os.rename", "os.mkdir", "os.remove"):
        steps["seen"] += 1
        if steps["seen"] == steps["last"]:
            os.kill(os.getpid(), signal.SIGKILL)

registry.promote("segwatch-new_users", register().version)
sys.addaudithook(hook)
start = time.monotonic()
register()
seconds, moments = time.monotonic() - start, random.Random(seed)
# Before a chosen step, and at a time of its own: a commit is one step and can be cut anywhere.
steps_to_die_at = moments.sample(range(1, steps["seen"] + 1), 8)
for last in [*steps_to_die_at, *([None] * 6)]:
    child = os.fork()
    if child == 0:
        steps.update(seen=0, last=last)
        register()
        os._exit(0)
    if last is None:
        time.sleep(seconds * moments.random())
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(os.WIFSIGNALED(status) and os.WTERMSIG(status), flush=True)
"""


@mlflow_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_any_moment_leaves_whole_versions_and_the_champion(
    backend: MlflowBackend, registry: ModelRegistry, bundle: Path, tmp_path: Path
) -> None:
    killer = python(KILLED, backend.uri, str(bundle), "1")
    out, err = killer.communicate()
    assert killer.returncode == 0, err
    assert out.split().count("9") >= 8
    assert champion(registry) == "1"
    found = registry.versions(NAME)
    assert 2 <= len(found) <= 8
    for version in found:
        assert content(registry.download(version, tmp_path / version.version)) == content(bundle)
        assert (version.parameters, version.metrics) == ({"a": "1"}, {"b": 2.0})
    assert register(registry, bundle).version == str(len(found) + 1)
