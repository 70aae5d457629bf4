"""A directory comes back from a bucket or a folder as it was, or not at all."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import segwatch
from segwatch.errors import BackendError, ModelError, SettingsError
from segwatch.settings import Endpoints, Google
from segwatch.storage import CONTENTS, Storage

from .conftest import Bucket
from .fakes.storage import UPLOADS, Door


class BucketPlace:
    """A bucket, and ways to change it behind segwatch's back."""

    def __init__(self, bucket: Bucket) -> None:
        self.storage = Storage(bucket.google)
        self.root = f"{bucket.uri}/some/folder"
        self._bucket = bucket

    def names(self) -> list[str]:
        return self._bucket.door.names(self._bucket.uri)

    def write(self, uri: str, content: bytes) -> None:
        self._bucket.door.put(uri, content)

    def read(self, uri: str) -> bytes:
        return self._bucket.door.get(uri)

    def remove(self, uri: str) -> None:
        self._bucket.door.remove(uri)


class FolderPlace:
    """A folder, and ways to change it behind segwatch's back."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage()
        self.root = f"{folder}/some/folder"
        self._folder = folder

    def names(self) -> list[str]:
        return [str(path) for path in self._folder.rglob("*") if path.is_file()]

    def write(self, uri: str, content: bytes) -> None:
        Path(uri).write_bytes(content)

    def read(self, uri: str) -> bytes:
        return Path(uri).read_bytes()

    def remove(self, uri: str) -> None:
        Path(uri).unlink()


Place = BucketPlace | FolderPlace


@pytest.fixture(params=["bucket", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "bucket":
        return BucketPlace(request.getfixturevalue("bucket"))
    return FolderPlace(tmp_path / "kept")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "directory"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.arrow").write_bytes(random.Random(1).randbytes(200_000))
    (folder / "inner" / "empty").write_bytes(b"")
    (folder / "inner" / "ün + % #?.txt").write_bytes(b"\r\n--==\n\x00")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_directory_comes_back_byte_for_byte(place: Place, directory: Path, tmp_path: Path) -> None:
    uri = place.storage.upload(directory, place.root)
    assert uri.startswith(f"{place.root}/")
    to = place.storage.download(uri, tmp_path / "new" / "copy")
    assert content(to) == content(directory)
    assert [path.name for path in to.parent.iterdir()] == ["copy"]


def test_a_folder_may_be_named_by_a_url(directory: Path, tmp_path: Path) -> None:
    uri = Storage().upload(directory, (tmp_path / "kept").as_uri())
    assert uri.startswith("file:///")
    assert content(Storage().download(uri, tmp_path / "copy")) == content(directory)


def test_a_large_file_goes_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "vectors.arrow").write_bytes(random.Random(2).randbytes(6_000_000))
    storage = Storage(bucket.google)
    uri = storage.upload(folder, bucket.uri)
    assert content(storage.download(uri, tmp_path / "copy")) == content(folder)
    assert any("uploadType=resumable" in line for line in bucket.door.requests)


def test_notes_come_back_and_none_is_whole_by_half(place: Place, directory: Path) -> None:
    notes = {"metrics": {"a": 5e-324, "b": None}, "text": "è" * 20_000}
    uri = place.storage.upload(directory, place.root, notes)
    broken = place.storage.upload(directory, place.root, notes)
    place.write(f"{broken}/{CONTENTS}", place.read(f"{broken}/{CONTENTS}")[:-9])
    assert place.storage.notes([uri, broken, f"{place.root}/none"]) == [notes, None, None]
    assert place.storage.notes([]) == []


def test_uploads_are_listed_with_their_age_and_strangers_are_not(place: Place, directory: Path) -> None:
    assert place.storage.uploads(place.root) == []
    uris = [place.storage.upload(directory, place.root) for _ in range(2)]
    place.write(f"{place.root}/note.txt", b"x")
    found = place.storage.uploads(place.root)
    assert sorted(upload.uri for upload in found) == sorted(uris)
    assert all(f"{upload.started_at:%Y%m%dT%H%M%SZ}" in upload.uri for upload in found)


def test_two_uploads_of_the_same_name_at_once_are_two(place: Place, directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    (other / "a.arrow").write_bytes(b"other")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda folder: place.storage.upload(folder, place.root), (directory, other))
    assert content(place.storage.download(first, tmp_path / "1")) == content(directory)
    assert content(place.storage.download(second, tmp_path / "2")) == content(other)


def test_every_object_is_created_where_none_was_and_the_contents_last(bucket: Bucket, directory: Path) -> None:
    Storage(bucket.google).upload(directory, bucket.uri)
    uploads = [line for line in bucket.door.requests if line.startswith("POST /upload")]
    assert len(uploads) == 4
    assert all("ifGenerationMatch=0" in line for line in uploads)
    names = bucket.door.names(bucket.uri)
    bucket.door.refuse(UPLOADS, 4, 403, "x@y.z does not have storage.objects.create access")
    with pytest.raises(BackendError):
        Storage(bucket.google).upload(directory, bucket.uri)
    assert bucket.door.names(bucket.uri) == names


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("n", [1, 4])
def test_an_answer_lost_on_the_way_is_no_conflict(bucket: Bucket, directory: Path, tmp_path: Path, n: int) -> None:
    bucket.door.lose_answer(UPLOADS, n)
    uri = Storage(bucket.google).upload(directory, bucket.uri)
    assert len([line for line in bucket.door.requests if line.startswith("POST /upload")]) == 5
    assert content(Storage(bucket.google).download(uri, tmp_path / "copy")) == content(directory)


def test_half_an_upload_is_never_taken_for_whole(place: Place, directory: Path, tmp_path: Path) -> None:
    uri = place.storage.upload(directory, place.root)
    place.remove(f"{uri}/{CONTENTS}")
    with pytest.raises(ModelError, match=r"are gone from .*, or were never all there"):
        place.storage.download(uri, tmp_path / "copy")
    place.storage.delete(uri)
    assert place.names() == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place, uri: place.remove(f"{uri}/a.arrow"), "are gone from .*: a.arrow is not there any more"),
        (lambda place, uri: place.write(f"{uri}/inner/more", b"x"), "was changed: inner/more was added"),
        (lambda place, uri: place.write(f"{uri}/a.arrow", b"x"), "a.arrow of .* has 1 bytes, not 200000"),
        (lambda place, uri: place.write(f"{uri}/a.arrow", b"\0" * 200_000), "a.arrow of .* was changed"),
        (lambda place, uri: edit(place, uri, '"size": 200000', '"size": 200001'), "list of contents of .* was changed"),
        (lambda place, uri: edit(place, uri, '"a.arrow"', '"../a.arrow"'), "list of contents of .* was changed"),
        (lambda place, uri: edit(place, uri, '"protocol": 1', '"protocol": 2'), "is of protocol 2"),
        (lambda place, uri: place.write(f"{uri}/{CONTENTS}", b"[]"), "list of contents of .* is damaged"),
        (lambda place, uri: place.write(f"{uri}/{CONTENTS}", b" "), "list of contents of .* is damaged"),
    ],
    ids=["lost", "extra", "cut", "changed", "contents", "outside", "protocol", "other JSON", "empty contents"],
)
def test_a_damaged_upload_is_a_model_error_and_nothing_is_left_of_it(
    place: Place, directory: Path, tmp_path: Path, damage: Callable[[Place, str], None], message: str
) -> None:
    uri = place.storage.upload(directory, place.root)
    damage(place, uri)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=message) as error:
        place.storage.download(uri, tmp_path / "copy")
    assert uri in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def edit(place: Place, uri: str, old: str, new: str) -> None:
    text = place.read(f"{uri}/{CONTENTS}").decode()
    assert old in text
    place.write(f"{uri}/{CONTENTS}", text.replace(old, new).encode())


def test_contents_that_point_outside_are_refused_even_with_a_right_digest(
    place: Place, directory: Path, tmp_path: Path
) -> None:
    from segwatch import storage

    uri = place.storage.upload(directory, place.root)
    said = json.loads(place.read(f"{uri}/{CONTENTS}"))
    said["files"]["../../escaped"] = said["files"].pop("a.arrow")
    del said["digest"]
    place.write(f"{uri}/{CONTENTS}", json.dumps({**said, "digest": storage._digest(said)}).encode())
    with pytest.raises(ModelError, match="names a file outside of it"):
        place.storage.download(uri, tmp_path / "copy")


def test_a_directory_that_changes_meanwhile_leaves_nothing(
    place: Place, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Storage._put

    def put_and_remove(storage: Storage, *arguments: object) -> None:
        put(storage, *arguments)  # type: ignore[arg-type]
        (directory / "inner" / "empty").unlink(missing_ok=True)

    monkeypatch.setattr(Storage, "_put", put_and_remove)
    with pytest.raises(ModelError, match="changed while it was uploaded"):
        place.storage.upload(directory, place.root)
    assert place.names() == []


@pytest.mark.parametrize("broken", ["missing", "empty", "a file"])
def test_a_directory_that_is_none_is_refused(place: Place, tmp_path: Path, broken: str) -> None:
    path = tmp_path / "none"
    if broken == "empty":
        path.mkdir()
    elif broken == "a file":
        path.write_text("x")
    with pytest.raises(ModelError, match="missing or empty"):
        place.storage.upload(path, place.root)
    assert place.names() == []


def test_delete_takes_one_upload_and_a_second_time_nothing(place: Place, directory: Path, tmp_path: Path) -> None:
    first, second = (place.storage.upload(directory, place.root) for _ in range(2))
    place.storage.delete(first)
    place.storage.delete(first)
    assert [upload.uri for upload in place.storage.uploads(place.root)] == [second]
    assert content(place.storage.download(second, tmp_path / "copy")) == content(directory)


def test_download_keeps_a_directory_that_is_in_use(place: Place, directory: Path, tmp_path: Path) -> None:
    uri = place.storage.upload(directory, place.root)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("x")
    with pytest.raises(BackendError, match="used cannot be written"):
        place.storage.download(uri, tmp_path / "used")
    assert (tmp_path / "used" / "mine").read_text() == "x"


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket, directory: Path, tmp_path: Path) -> None:
    storage = Storage(bucket.google)
    for ask in (
        lambda: storage.require("gs://no-such-bucket/folder"),
        lambda: storage.upload(directory, "gs://no-such-bucket/folder"),
        lambda: storage.download("gs://no-such-bucket/folder/x", tmp_path / "copy"),
        lambda: storage.uploads("gs://no-such-bucket"),
    ):
        with pytest.raises(BackendError, match="gs://no-such-bucket is not there: make it, or correct `bucket`") as e:
            ask()
        assert not e.value.retryable
    storage.require(bucket.uri)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("status", "said", "message", "retryable"),
    [
        (
            403,
            "x@y.z does not have storage.objects.create access to the Google Cloud Storage object."
            " Permission 'storage.objects.create' denied on resource (or it may not exist).",
            "the permission storage.objects.create is missing: grant a role",
            False,
        ),
        (403, "Forbidden by the organisation", "access is denied", False),
        (400, "Some field is invalid", "refused: .*Some field is invalid", False),
        (401, "Login required", "did not accept the credentials", False),
        (429, "The object exceeded the rate limit", "a quota is used up", True),
        (503, "Backend unavailable", "does not answer: try again", True),
    ],
)
def test_what_the_store_says_is_told_in_one_sentence_and_leaves_nothing(
    bucket: Bucket,
    directory: Path,
    capfd: pytest.CaptureFixture[str],
    status: int,
    said: str,
    message: str,
    retryable: bool,
) -> None:
    for n in range(7):
        bucket.door.refuse(UPLOADS, 1 if n else 2, status, said)
    with pytest.raises(BackendError, match=f"bucket {bucket.uri}.*{message}") as error:
        Storage(bucket.google).upload(directory, bucket.uri)
    assert error.value.retryable is retryable
    assert bucket.door.names(bucket.uri) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
def test_a_fault_that_passes_is_no_error(bucket: Bucket, directory: Path) -> None:
    bucket.door.refuse(UPLOADS, 2, 503, "Backend unavailable")
    Storage(bucket.google).upload(directory, bucket.uri)


@pytest.mark.usefixtures("impatient")
def test_a_network_that_is_not_there_is_retryable(directory: Path) -> None:
    with pytest.raises(BackendError, match="cannot be reached: check the network") as error:
        Storage(Google(endpoints=Endpoints(storage="http://127.0.0.1:9"))).upload(directory, "gs://some")
    assert error.value.retryable


def test_without_credentials_nothing_is_sent_to_the_real_service(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(BackendError, match="no Google credentials on this machine"):
        Storage().upload(directory, "gs://some")


def test_a_service_account_to_impersonate_is_impersonated(monkeypatch: pytest.MonkeyPatch) -> None:
    from google.auth.credentials import AnonymousCredentials

    from segwatch.google import credentials

    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), None))
    assert isinstance(credentials(Google()), AnonymousCredentials)
    found = credentials(Google(impersonate="daily@p.iam.gserviceaccount.com"))
    assert found.service_account_email == "daily@p.iam.gserviceaccount.com"  # type: ignore[attr-defined]


def test_a_missing_extra_is_told_as_such(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    with pytest.raises(SettingsError, match=r"pip install 'segwatch\[gcp\]'"):
        Storage(Google(endpoints=Endpoints(storage="http://127.0.0.1:9"))).upload(directory, "gs://some")


def test_environment_and_loggers_are_as_they_were(bucket: Bucket, directory: Path) -> None:
    environment, level = dict(os.environ), logging.getLogger("gcsfs").level
    Storage(bucket.google).upload(directory, bucket.uri)
    assert (dict(os.environ), logging.getLogger("gcsfs").level) == (environment, level)


def test_kill_9_amid_an_upload_leaves_half_of_one_that_nobody_takes_for_whole(
    bucket: Bucket, directory: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from segwatch.settings import Endpoints, Google;"
        "from segwatch.storage import Storage;"
        "Storage(Google(endpoints=Endpoints(storage=sys.argv[1]))).upload(Path(sys.argv[2]), sys.argv[3])"
    )
    reached = bucket.door.hang(UPLOADS, 3)
    arguments = [sys.executable, "-c", code, bucket.door.url, str(directory), bucket.uri]
    environment = {**os.environ, "PYTHONPATH": str(Path(segwatch.__file__).parents[1])}
    with subprocess.Popen(arguments, env=environment) as process:
        assert reached.wait(30)
        process.kill()
    storage = Storage(bucket.google)
    (half,) = storage.uploads(bucket.uri)
    assert len(bucket.door.names(bucket.uri)) == 2
    assert storage.notes([half.uri]) == [None]
    with pytest.raises(ModelError, match="or were never all there"):
        storage.download(half.uri, tmp_path / "copy")
    whole = storage.upload(directory, bucket.uri)
    assert content(storage.download(whole, tmp_path / "copy")) == content(directory)


def test_the_door_holds_preconditions(bucket: Bucket) -> None:
    from gcsfs.core import GCSFileSystem

    store = GCSFileSystem(token="anon", endpoint_url=bucket.door.url, skip_instance_cache=True)
    path = f"{bucket.uri}/x"
    store.pipe_file(path, b"1", mode="create")
    with pytest.raises(FileExistsError):
        store.pipe_file(path, b"2", mode="create")
    assert isinstance(bucket.door, Door)
