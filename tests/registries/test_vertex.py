"""Vertex AI as the registry: what is asked of it, and what happens where it refuses or says nothing.

The server is a fake and shows only that segwatch's requests are well formed and its reactions right.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import segwatch
from segwatch.errors import BackendError, ModelError, SettingsError
from segwatch.registries import CHAMPION, ModelRegistry, ModelVersion, open_registry, vertex
from segwatch.registries.vertex import model_id
from segwatch.settings import Endpoints, Google
from segwatch.storage import CONTENTS

from ..conftest import Bucket
from ..fakes.storage import UPLOADS
from ..fakes.vertex import VertexFake

NAME = "segwatch-new_users"
ID = "segwatch-new-users"
UPLOAD = "POST .*/models:upload"


@pytest.fixture
def fake() -> Iterator[VertexFake]:
    fake = VertexFake(page_size=3)
    yield fake
    fake.close()


@pytest.fixture
def google(fake: VertexFake, bucket: Bucket) -> Google:
    endpoints = Endpoints(storage=bucket.door.url, vertex=fake.url)
    return Google(project="test-project", location="europe-west1", labels={"team": "growth"}, endpoints=endpoints)


@pytest.fixture
def registry(bucket: Bucket, google: Google) -> ModelRegistry:
    return open_registry("vertex", f"{bucket.uri}/models-of-all", google, "region-docker.pkg.dev/p/r/segwatch:1")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "vectors.arrow").write_bytes(b"\0" * 1000)
    return folder


def register(registry: ModelRegistry, bundle: Path, name: str = NAME, **parameters: str) -> ModelVersion:
    return registry.register(name, bundle, parameters=parameters, metrics={"a": 0.5}, tags={})


def numbers(registry: ModelRegistry) -> list[str]:
    return [version.version for version in registry.versions(NAME)]


def body(fake: VertexFake, pattern: str, n: int = -1) -> Any:
    return json.loads([said for call, said in zip(fake.calls, fake.bodies, strict=True) if re.match(pattern, call)][n])


def test_one_metric_is_one_model_and_one_bundle_one_version(
    registry: ModelRegistry, fake: VertexFake, bucket: Bucket, bundle: Path
) -> None:
    for _ in range(2):
        register(registry, bundle)
    first, second = (body(fake, UPLOAD, n) for n in (0, 1))
    assert (first["modelId"], "parentModel" in first) == (ID, False)
    assert second["parentModel"] == f"projects/test-project/locations/europe-west1/models/{ID}"
    assert "modelId" not in second
    model = second["model"]
    assert model["displayName"] == NAME
    assert model["containerSpec"] == {
        "imageUri": "region-docker.pkg.dev/p/r/segwatch:1",
        "predictRoute": "/predict",
        "healthRoute": "/health",
        "ports": [{"containerPort": 8080}],
    }
    assert "versionAliases" not in model
    folder = f"{bucket.uri}/models-of-all/models/test-project/europe-west1/{ID}/"
    assert re.fullmatch(re.escape(folder) + r"\d{8}T\d{6}Z-[0-9a-f]{16}", model["artifactUri"])
    assert fake.models[ID].aliases == {"default": "1"}


def test_labels_hold_the_window_and_the_origin_within_their_limits(
    registry: ModelRegistry, fake: VertexFake, bundle: Path
) -> None:
    tags = {
        "segwatch.run_id": "20261124T060000_ab12cd",
        "segwatch.git_revision": "a" * 40,
        "segwatch.settings_digest": "b" * 64,
        "note": "not a label",
    }
    parameters = {"window_start": "2026-01-01T00", "window_end": "2026-11-04T05", "alpha": "0.01"}
    made = registry.register(NAME, bundle, parameters=parameters, metrics={}, tags=tags)
    assert body(fake, UPLOAD)["model"]["labels"] == {
        "team": "growth",
        "segwatch_managed": "true",
        "segwatch_window_start": "2026-01-01t00",
        "segwatch_window_end": "2026-11-04t05",
        "segwatch_run_id": "20261124t060000_ab12cd",
        "segwatch_git_revision": "a" * 40,
        "segwatch_settings_digest": "b" * 63,
    }
    assert made.run_id == "20261124T060000_ab12cd"
    assert registry.resolve(NAME, "1").tags == tags


def test_the_window_is_known_even_where_the_bucket_has_lost_the_notes(
    registry: ModelRegistry, bucket: Bucket, bundle: Path
) -> None:
    register(registry, bundle, window_start="2026-01-01T00", window_end="2026-11-04T05", alpha="0.01")
    for name in bucket.door.names(bucket.uri):
        bucket.door.remove(f"{bucket.uri}/{name}")
    assert registry.resolve(NAME, "1").parameters == {"window_start": "2026-01-01T00", "window_end": "2026-11-04T05"}


def test_the_champion_moves_in_one_call(registry: ModelRegistry, fake: VertexFake, bundle: Path) -> None:
    for _ in range(2):
        register(registry, bundle)
    registry.promote(NAME, "1")
    fake.calls.clear()
    registry.promote(NAME, "2")
    moves = [call for call in fake.calls if "mergeVersionAliases" in call]
    assert moves == [f"POST /v1/projects/test-project/locations/europe-west1/models/{ID}@2:mergeVersionAliases"]
    assert fake.models[ID].aliases == {"default": "1", CHAMPION: "2"}
    assert fake.models[ID].labels["segwatch_champions_0"] == "1-2"
    assert fake.models[ID].labels["team"] == "growth"


def test_more_champions_than_labels_hold_are_forgotten_oldest_first(
    registry: ModelRegistry, fake: VertexFake, bundle: Path
) -> None:
    for _ in range(2):
        register(registry, bundle)
    registry.promote(NAME, "1")
    numbers_before = [str(1000 + i) for i in range(300)]
    fake.models[ID].labels.update(vertex._champion_labels([*numbers_before, "1"]))
    registry.promote(NAME, "2")
    kept = vertex._champions(fake.models[ID].labels)
    assert kept == [*numbers_before, "1", "2"][-len(kept) :]
    assert 90 < len(kept) < 120
    assert registry.rollback(NAME).version == "1"


def test_a_list_of_champions_that_someone_else_changes_meanwhile_is_not_overwritten(
    registry: ModelRegistry, fake: VertexFake, bundle: Path
) -> None:
    register(registry, bundle)
    fake.fail("PATCH", 1, 409, "The etag does not match.")
    with pytest.raises(BackendError, match="etag"):
        registry.promote(NAME, "1")
    assert body(fake, "PATCH")["etag"]
    assert registry.resolve(NAME).version == "1"


@pytest.mark.parametrize("broken_off", ["promote", "rollback"])
def test_rollback_is_right_after_a_change_that_broke_off(
    registry: ModelRegistry, fake: VertexFake, bundle: Path, broken_off: str
) -> None:
    for version in ("1", "2", "3"):
        register(registry, bundle)
        registry.promote(NAME, version)
    register(registry, bundle)
    fake.fail("PATCH" if broken_off == "promote" else "POST .*:mergeVersionAliases", 1, 403, "no")
    with pytest.raises(BackendError):
        registry.promote(NAME, "4") if broken_off == "promote" else registry.rollback(NAME)
    assert registry.resolve(NAME).version == ("4" if broken_off == "promote" else "3")
    assert registry.rollback(NAME).version == ("3" if broken_off == "promote" else "2")
    assert registry.rollback(NAME).version == ("2" if broken_off == "promote" else "1")


def test_rollback_after_someone_else_moved_the_alias(registry: ModelRegistry, fake: VertexFake, bundle: Path) -> None:
    for version in ("1", "2", "3"):
        register(registry, bundle)
        if version != "3":
            registry.promote(NAME, version)
    fake.models[ID].aliases[CHAMPION] = "3"
    assert registry.rollback(NAME).version == "2"
    fake.models[ID].aliases["default"] = "2"
    del fake.models[ID].versions["1"]
    with pytest.raises(ModelError, match="no champion before"):
        registry.rollback(NAME)


@pytest.mark.parametrize(
    ("code", "said", "message", "retryable"),
    [
        (
            403,
            "Permission 'aiplatform.models.upload' denied on resource '//aiplatform.googleapis.com/projects/p'",
            "the permission aiplatform.models.upload is missing",
            False,
        ),
        (403, "Vertex AI API has not been used in project 1 before or it is disabled", "is not enabled", False),
        (400, "Image does not exist", "refused: .*Image does not exist", False),
        (409, "Concurrent update", "Concurrent update", False),
        (429, "Quota exceeded for models", "a quota is used up", True),
    ],
)
def test_a_refusal_to_register_is_one_sentence_and_leaves_no_version_and_no_files(
    registry: ModelRegistry,
    fake: VertexFake,
    bucket: Bucket,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    code: int,
    said: str,
    message: str,
    retryable: bool,
) -> None:
    monkeypatch.setattr(vertex, "PATIENCE_SECONDS", 0.1)
    for n in (1, 1):
        fake.fail(UPLOAD, n, code, said)
    with pytest.raises(BackendError, match=f"Vertex AI in test-project/europe-west1.*{message}") as error:
        register(registry, bundle)
    assert error.value.retryable is retryable
    assert numbers(registry) == []
    assert bucket.door.names(bucket.uri) == []
    assert capfd.readouterr() == ("", "")


def test_a_quota_that_is_free_again_in_time_is_no_error(
    registry: ModelRegistry, fake: VertexFake, bundle: Path
) -> None:
    fake.fail(UPLOAD, 1, 429, "Quota exceeded")
    fake.fail("GET", 1, 503, "Try again")
    assert register(registry, bundle).version == "1"
    assert numbers(registry) == ["1"]


def test_an_upload_that_fails_registers_nothing(
    registry: ModelRegistry, fake: VertexFake, bucket: Bucket, bundle: Path
) -> None:
    bucket.door.refuse(UPLOADS, 2, 403, "x does not have storage.objects.create access")
    with pytest.raises(BackendError, match=r"storage\.objects\.create is missing"):
        register(registry, bundle)
    assert not any("upload" in call for call in fake.calls)
    assert bucket.door.names(bucket.uri) == []


def test_a_version_whose_answer_was_lost_keeps_its_files(
    registry: ModelRegistry, fake: VertexFake, bundle: Path, tmp_path: Path
) -> None:
    fake.fail(UPLOAD, 1, 503, "The service is unavailable.", after=True)
    with pytest.raises(BackendError, match="does not answer: try again") as error:
        register(registry, bundle)
    assert error.value.retryable
    (version,) = registry.versions(NAME)
    assert (registry.download(version, tmp_path / "copy") / "manifest.json").read_text() == "{}"


def test_files_without_a_version_are_swept_after_a_day_and_not_before(
    registry: ModelRegistry, fake: VertexFake, bucket: Bucket, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, bundle)
    fake.fail(UPLOAD, 1, 503, "The service is unavailable.")
    with pytest.raises(BackendError):
        register(registry, bundle)
    register(registry, bundle)
    assert len(folders(bucket)) == 3
    monkeypatch.setattr(vertex, "STALE_AFTER", dt.timedelta(seconds=-10))
    register(registry, bundle)
    assert len(folders(bucket)) == 3
    assert numbers(registry) == ["3", "2", "1"]
    assert all(version.metrics == {"a": 0.5} for version in registry.versions(NAME))


def folders(bucket: Bucket) -> set[str]:
    return {name.rpartition("/")[0] for name in bucket.door.names(bucket.uri)}


def test_processes_that_make_the_model_at_once_both_get_a_version(
    registry: ModelRegistry, google: Google, bucket: Bucket, bundle: Path
) -> None:
    other = open_registry("vertex", f"{bucket.uri}/models-of-all", google, "image")
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda one: register(one, bundle).version, (registry, other)))
    assert sorted(made) == ["1", "2"]


def test_an_id_taken_between_the_look_and_the_upload_is_no_conflict(
    registry: ModelRegistry, fake: VertexFake, bundle: Path
) -> None:
    register(registry, bundle)
    fake.fail("GET", 1, 404, "The Model does not exist")
    assert register(registry, bundle).version == "2"


def test_an_operation_that_takes_its_time_is_waited_for(
    registry: ModelRegistry, fake: VertexFake, bundle: Path
) -> None:
    fake.looks_until_done = 1
    assert register(registry, bundle).version == "1"
    registry.drop(NAME)
    assert fake.models == {}
    assert any("/operations/" in call for call in fake.calls)


def test_lists_longer_than_a_page_are_read_to_the_end(registry: ModelRegistry, bundle: Path) -> None:
    names = [f"segwatch-m{i}" for i in range(7)]
    for name in names:
        register(registry, bundle, name)
    for _ in range(7):
        register(registry, bundle)
    assert registry.created() == [*names, NAME]
    assert numbers(registry) == [str(n) for n in range(7, 0, -1)]


def test_destroy_removes_versions_and_the_folders_they_point_to_and_nothing_else(
    registry: ModelRegistry, fake: VertexFake, bucket: Bucket, bundle: Path
) -> None:
    from google.cloud.aiplatform_v1 import types

    register(registry, bundle)
    register(registry, bundle, "segwatch-orders")
    bucket.door.put(f"{bucket.uri}/theirs/model.bin", b"x")
    bucket.door.put(f"{bucket.uri}/models-of-all/models/note.txt", b"x")
    # Someone adds a version by hand to segwatch's model, and a model of their own.
    theirs = types.Model(display_name=NAME, artifact_uri=f"{bucket.uri}/theirs", container_spec={"image_uri": "theirs"})
    fake._add_version(ID, theirs)
    fake.models["theirs"] = type(fake.models[ID])("segwatch-theirs", {})
    fake._add_version("theirs", theirs)
    registry.destroy()
    registry.destroy()
    assert list(fake.models) == ["theirs"]
    assert bucket.door.names(bucket.uri) == ["models-of-all/models/note.txt", "theirs/model.bin"]


def test_a_model_that_is_deployed_keeps_its_files(
    registry: ModelRegistry, fake: VertexFake, bucket: Bucket, bundle: Path
) -> None:
    register(registry, bundle)
    before = bucket.door.names(bucket.uri)
    fake.fail("DELETE", 1, 400, "The Model is deployed at an Endpoint")
    with pytest.raises(BackendError, match="is deployed at an Endpoint"):
        registry.drop(NAME)
    assert bucket.door.names(bucket.uri) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda door, folder: door.put(f"{folder}/vectors.arrow", b"\1" * 1000),
        lambda door, folder: door.put(f"{folder}/vectors.arrow", b"x"),
        lambda door, folder: door.put(f"{folder}/more", b"x"),
        lambda door, folder: door.remove(f"{folder}/vectors.arrow"),
        lambda door, folder: door.remove(f"{folder}/{CONTENTS}"),
    ],
    ids=["changed", "cut", "extra", "lost", "no contents"],
)
def test_a_damaged_bundle_says_which_version_and_what_to_do(
    registry: ModelRegistry, bucket: Bucket, bundle: Path, tmp_path: Path, damage: Callable[[Any, str], None]
) -> None:
    version = register(registry, bundle)
    (folder,) = folders(bucket)
    damage(bucket.door, f"{bucket.uri}/{folder}")
    with pytest.raises(ModelError, match=f"{NAME} version 1 cannot be used: .* run `segwatch train`, or promote"):
        registry.download(version, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_create_says_that_the_bucket_is_not_there(google: Google) -> None:
    with pytest.raises(BackendError, match="gs://no-such-bucket is not there"):
        open_registry("vertex", "gs://no-such-bucket/x", google, "image").create()


@pytest.mark.parametrize(
    ("bucket_uri", "project", "key"),
    [("gs://b", "", r"google\.project"), ("", "p", "bucket"), ("/a/folder", "p", "bucket"), ("gs://", "p", "bucket")],
)
def test_a_missing_setting_is_named(bucket_uri: str, project: str, key: str) -> None:
    with pytest.raises(SettingsError, match=f"set `{key}` of the target"):
        open_registry("vertex", bucket_uri, Google(project=project))


def test_without_an_image_nothing_is_registered(bucket: Bucket, google: Google, fake: VertexFake, bundle: Path) -> None:
    with pytest.raises(SettingsError, match="set `image` of the target"):
        register(open_registry("vertex", bucket.uri, google), bundle)
    with pytest.raises(SettingsError, match="set `image` of the target"):
        open_registry("vertex", bucket.uri, google).create()
    assert (fake.calls, bucket.door.names(bucket.uri)) == ([], [])


def test_ids_fit_vertex_and_no_two_names_share_one() -> None:
    names = [
        NAME,
        "segwatch-new-users",
        "segwatch-New_Users",
        "segwatch-NEW_USERS",
        "segwatch-_",
        "segwatch-" + "x" * 100,
        "segwatch-" + "x" * 99 + "y",
        "segwatch-" + "x" * 60,
    ]
    ids = [model_id(name) for name in names]
    assert ids[0] == ID
    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]{0,62}", one) for one in ids)


def test_elsewhere_than_on_an_emulator_it_speaks_grpc_to_the_location(monkeypatch: pytest.MonkeyPatch) -> None:
    from google.auth.credentials import AnonymousCredentials

    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), None))
    registry = open_registry("vertex", "gs://b", Google(project="p", location="europe-west1"))
    client = registry._client  # type: ignore[attr-defined]
    assert (client.transport.kind, client.api_endpoint) == ("grpc", "europe-west1-aiplatform.googleapis.com")
    client.transport.close()


def test_opening_a_registry_imports_no_google_sdk() -> None:
    code = (
        "import sys; from segwatch.registries import open_registry; from segwatch.settings import Google;"
        "open_registry('vertex', 'gs://b', Google(project='p'), 'image');"
        "sdks = ('google.auth', 'google.api_core', 'google.cloud.', 'gcsfs', 'fsspec', 'aiohttp', 'mlflow', 'grpc');"
        "sys.exit(any(name.startswith(sdks) for name in sys.modules))"
    )
    assert python(code).wait() == 0


def python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    source = str(Path(segwatch.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, "PYTHONPATH": source})


@pytest.mark.parametrize("n", [2, 3], ids=["a file", "the contents"])
def test_kill_9_amid_a_register_leaves_nothing_registered_and_the_next_run_is_right(
    registry: ModelRegistry, google: Google, bucket: Bucket, bundle: Path, tmp_path: Path, n: int
) -> None:
    register(registry, bundle)
    registry.promote(NAME, "1")
    code = (
        "import sys; from pathlib import Path; from segwatch.registries import open_registry;"
        "from segwatch.settings import Google;"
        "registry = open_registry('vertex', sys.argv[1], Google.model_validate_json(sys.argv[2]), 'image');"
        f"registry.register({NAME!r}, Path(sys.argv[3]), parameters={{}}, metrics={{}}, tags={{}})"
    )
    reached = bucket.door.hang(UPLOADS, n)
    with python(code, f"{bucket.uri}/models-of-all", google.model_dump_json(), str(bundle)) as process:
        assert reached.wait(60)
        process.kill()
    assert numbers(registry) == [registry.resolve(NAME).version] == ["1"]
    made = register(registry, bundle)
    assert registry.promote(NAME, made.version).version == "2"
    assert (registry.download(registry.resolve(NAME), tmp_path / "copy") / "manifest.json").read_text() == "{}"
