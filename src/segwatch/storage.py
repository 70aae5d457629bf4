"""Directories kept in a bucket or a folder: whole or not at all, and checked byte by byte on the way back.

    TO/20261124T060000Z-5f3a9c0d1e2b4f67/           one upload: a name that no one else can take
        segments.arrow ...                          the files of the directory
        segwatch-contents.json                      written last: size and sha256 of each file, notes, its own digest

An upload without its list of contents was broken off, and nobody takes it for whole.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from segwatch.errors import BackendError, ModelError, SegwatchError
from segwatch.google import credentials, explain, is_emulator, missing_extra
from segwatch.settings import Google

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONTENTS = "segwatch-contents.json"
_PROTOCOL = 1
_STAMP = "%Y%m%dT%H%M%SZ"
# No check of the library's own either: the digest is what counts.
_ONE_STREAM: dict[bool, dict[str, Any]] = {True: {"concurrency": 1, "consistency": "none"}, False: {}}
_UNIQUE = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{16}")


@dataclass(frozen=True)
class Upload:
    """One upload, whole or broken off. started_at: UTC."""

    uri: str
    started_at: dt.datetime


@dataclass(frozen=True)
class _File:
    size: int
    sha256: str


@dataclass(frozen=True)
class _Contents:
    files: Mapping[str, _File]
    notes: Mapping[str, Any]


class Storage:
    """Uploads below `gs://BUCKET/FOLDER`, `file:///FOLDER` or a plain folder.

    Every method raises BackendError where the store cannot be reached, read or written.
    """

    def __init__(self, google: Google = Google()) -> None:
        self._google = google

    def upload(self, directory: Path, to: str, notes: Mapping[str, Any] | None = None) -> str:
        """A new folder below `to` holds the directory's files and the notes; returns its URI.

        notes: anything that JSON can say. After an error nothing is left, unless the store cannot be reached any more.
        Raises ModelError if the directory is missing, empty or changes meanwhile.
        """
        files = _files(directory)
        uri = f"{to.rstrip('/')}/{dt.datetime.now(dt.UTC):{_STAMP}}-{secrets.token_hex(8)}"
        try:
            with self._asking(uri):
                self._fill(directory, files, uri)
                self._write(uri, _document(_Contents(files, notes or {})))
        except BaseException as error:
            # What broke the upload may break this too, and is the error to tell.
            with suppress(SegwatchError):
                self.delete(uri)
            if isinstance(error, Exception):
                _require_unchanged(directory, files)
            raise
        return uri

    def download(self, uri: str, to: Path) -> Path:
        """The directory `to` holds the files of an upload, every one checked; returns `to`.

        to: absent or an empty directory, and so again after an error.
        Raises ModelError if a file of the upload is lost, extra, cut or changed.
        """
        contents = self._contents(uri)
        self._require_same_names(uri, contents)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as folder:
                whole = Path(folder) / "whole"
                self._fetch(uri, contents, whole)
                whole.replace(to)
        except OSError as error:
            raise BackendError(f"{to} cannot be written: {error}; name a new or empty directory that can") from error
        return to

    def delete(self, uri: str) -> None:
        """Nothing of the upload is left; one that is not there is no error."""
        store = self._store(uri)
        with self._asking(uri):
            # The contents first: broken off after that, it is no longer taken for whole.
            for name in sorted(self._names(uri), key=lambda name: (name != CONTENTS, name)):
                with suppress(FileNotFoundError):
                    store.rm_file(_path(uri, name))
            if not _in_bucket(uri) and store.exists(_path(uri)):
                store.rm(_path(uri), recursive=True)

    def notes(self, uris: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """The notes of each upload; None where it is not whole, or its list of contents was changed."""
        found: list[Mapping[str, Any] | None] = []
        paths = [_path(uri, CONTENTS) for uri in uris]
        answers: dict[str, Any] = {}
        if paths:
            with self._asking(uris[0]):
                answers = self._store(uris[0]).cat(paths, on_error="return")
                for answer in answers.values():
                    if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                        raise answer
        for uri, path in zip(uris, paths, strict=True):
            answer = answers[path]
            try:
                found.append(None if isinstance(answer, Exception) else _parsed(answer, uri).notes)
            except ModelError:
                found.append(None)
        return found

    def uploads(self, to: str) -> list[Upload]:
        """All uploads below `to`, whole or broken off, oldest first."""
        store = self._store(to)
        with self._asking(to):
            try:
                entries = store.ls(_path(to), detail=False)
            except FileNotFoundError:
                if _in_bucket(to):
                    self.require(to)
                return []
        names = sorted(entry.rstrip("/").rpartition("/")[2] for entry in entries)
        return [
            Upload(f"{to.rstrip('/')}/{name}", dt.datetime.strptime(match[1], _STAMP).replace(tzinfo=dt.UTC))
            for name in names
            if (match := _UNIQUE.fullmatch(name))
        ]

    def require(self, to: str) -> None:
        """The bucket is there and can be listed. Raises BackendError saying what is missing."""
        with self._asking(to):
            self._store(to).ls(_path(to).partition("/")[0] if _in_bucket(to) else _path(to), detail=False)

    @cached_property
    def _bucket_store(self) -> AbstractFileSystem:
        try:
            # Not the class that gcsfs itself exports: that one asks first how each bucket is laid out, over
            # gRPC, which stalls on emulators.
            import aiohttp
            from gcsfs.core import GCSFileSystem
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error
        endpoint = self._google.endpoints.storage
        return GCSFileSystem(
            project=self._google.project,
            token="anon" if is_emulator(endpoint) else credentials(self._google, endpoint),
            # Set even to Google's own address, as gcsfs would take another one from the environment.
            endpoint_url=endpoint.rstrip("/") or "https://storage.googleapis.com",
            consistency="md5",
            requests_timeout=aiohttp.ClientTimeout(sock_connect=20, sock_read=60),
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    @cached_property
    def _folder_store(self) -> AbstractFileSystem:
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(skip_instance_cache=True)

    def _store(self, uri: str) -> AbstractFileSystem:
        return self._bucket_store if _in_bucket(uri) else self._folder_store

    def _fill(self, directory: Path, files: Mapping[str, _File], uri: str) -> None:
        if not _in_bucket(uri):
            Path(_path(uri)).mkdir(parents=True)
        for name, file in files.items():
            self._put(directory / name, file, uri, name)
        _require_unchanged(directory, files)

    def _put(self, source: Path, file: _File, uri: str, name: str) -> None:
        """The store holds the file at a name where nothing was."""
        path = _path(uri, name)
        if not _in_bucket(uri):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store(uri).put_file(str(source), path, mode="create")
        except FileExistsError:
            # Nobody else knows the name: the library sent it again because the first answer was lost on the way.
            if self._store(uri).size(path) != file.size:
                raise

    def _write(self, uri: str, document: bytes) -> None:
        path = _path(uri, CONTENTS)
        try:
            self._store(uri).pipe_file(path, document, mode="create")
        except FileExistsError:
            if self._store(uri).cat_file(path) != document:
                raise

    def _names(self, uri: str) -> set[str]:
        """Names of all files below the upload."""
        root = _path(uri) + "/"
        return {path.removeprefix(root) for path in self._store(uri).find(_path(uri)) if path.startswith(root)}

    def _contents(self, uri: str) -> _Contents:
        with self._asking(uri):
            try:
                document = self._store(uri).cat_file(_path(uri, CONTENTS))
            except FileNotFoundError as error:
                # A bucket that is not there is another matter than a lost file.
                self._names(uri)
                raise ModelError(f"the files are gone from {uri}, or were never all there") from error
        return _parsed(document, uri)

    def _require_same_names(self, uri: str, contents: _Contents) -> None:
        with self._asking(uri):
            found = self._names(uri) - {CONTENTS}
        if lost := sorted(contents.files.keys() - found):
            raise ModelError(f"the files are gone from {uri}: {lost[0]} is not there any more")
        if extra := sorted(found - contents.files.keys()):
            raise ModelError(f"{uri} was changed: {extra[0]} was added after the upload")

    def _fetch(self, uri: str, contents: _Contents, to: Path) -> None:
        to.mkdir()
        for name, expected in contents.files.items():
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._asking(uri):
                try:
                    self._store(uri).get_file(_path(uri, name), str(target), **_ONE_STREAM[_in_bucket(uri)])
                except FileNotFoundError as error:
                    raise ModelError(f"the files are gone from {uri}: {name} is not there any more") from error
            found = _file(target)
            if found.size != expected.size:
                raise ModelError(f"{name} of {uri} is damaged: it has {found.size} bytes, not {expected.size}")
            if found.sha256 != expected.sha256:
                raise ModelError(f"{name} of {uri} was changed after the upload: its sha256 is another")

    @contextmanager
    def _asking(self, uri: str) -> Iterator[None]:
        """Inside, the store's library says nothing; what it raises leaves as BackendError."""
        if not _in_bucket(uri):
            try:
                yield
            except OSError as error:
                raise _unreadable(error, uri) from error
            return
        # Asked for first, so that a missing extra is told as such.
        _ = self._bucket_store
        import aiohttp
        import requests
        from fsspec.exceptions import FSTimeoutError
        from gcsfs.retry import ChecksumError, HttpError, NonRetryableError
        from google.auth.exceptions import GoogleAuthError

        with _quiet():
            try:
                yield
            except (HttpError, ChecksumError, NonRetryableError, GoogleAuthError, ValueError) as error:
                raise _explained(error, uri) from error
            except (
                requests.RequestException,
                aiohttp.ClientError,
                FSTimeoutError,
                TimeoutError,
                ConnectionError,
            ) as error:
                raise _explained(error, uri) from error
            except OSError as error:
                # The library's own carry no number; a full disk or a lost file here does.
                raise (_explained if error.errno is None else _unreadable)(error, uri) from error


def _unreadable(error: OSError, uri: str) -> BackendError:
    return BackendError(
        f"{error.filename or uri} cannot be read or written: {error.strerror or type(error).__name__}; free the disk or"
        " mend its rights"
    )


def _in_bucket(uri: str) -> bool:
    return uri.startswith("gs://")


def _bucket(uri: str) -> str:
    return "gs://" + uri.removeprefix("gs://").partition("/")[0]


def _path(uri: str, name: str = "") -> str:
    """What the store's library calls a file of an upload, or the upload itself."""
    if _in_bucket(uri):
        path = uri.removeprefix("gs://").rstrip("/")
    else:
        path = str(Path(uri.removeprefix("file://")).absolute())
    return f"{path}/{name}" if name else path


def _explained(error: Exception, uri: str) -> BackendError:
    """The library's error in segwatch's words."""
    from gcsfs.retry import ChecksumError, HttpError
    from google.api_core import exceptions as api

    said = str(error)
    place = f"the bucket {_bucket(uri)}"
    match error:
        case FileNotFoundError():
            return BackendError(f"{place} is not there: make it, or correct `bucket` in segwatch.toml")
        case FileExistsError():
            return BackendError(f"{place} holds {said} already, with other bytes: try again", retryable=True)
        case ChecksumError():
            return BackendError(f"{place} got other bytes than were sent: try again", retryable=True)
        case HttpError() if isinstance(error.code, int):
            return explain(api.from_http_status(error.code, said), place)
        case OSError() if said.startswith("Forbidden"):
            return explain(api.Forbidden(said.partition("\n")[2] or said), place)
        case ValueError():
            return BackendError(f"{place} refused: {' '.join(said.split())[:300]}")
        case _:
            return explain(error, place)


@contextmanager
def _quiet() -> Iterator[None]:
    # It logs every error with its traceback before it raises it.
    logger = logging.getLogger("gcsfs")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _files(directory: Path) -> dict[str, _File]:
    """Every file of the directory by its name. Raises ModelError if there is none."""
    try:
        paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
        files = {path.relative_to(directory).as_posix(): _file(path) for path in paths}
    except OSError as error:
        raise ModelError(f"the directory {directory} cannot be read: {error}; make it anew") from error
    if not files:
        raise ModelError(f"the directory {directory} is missing or empty; make it anew")
    return files


def _require_unchanged(directory: Path, files: Mapping[str, _File]) -> None:
    try:
        same = _files(directory) == files
    except ModelError:
        same = False
    if not same:
        raise ModelError(f"the directory {directory} changed while it was uploaded; make it anew")


def _file(path: Path) -> _File:
    with path.open("rb") as file:
        return _File(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _document(contents: _Contents) -> bytes:
    said = {
        "protocol": _PROTOCOL,
        "files": {name: {"size": file.size, "sha256": file.sha256} for name, file in contents.files.items()},
        "notes": dict(contents.notes),
    }
    return json.dumps({**said, "digest": _digest(said)}, indent=2).encode()


def _parsed(document: bytes, uri: str) -> _Contents:
    """Raises ModelError if it is cut, changed, of another protocol, or names a file outside of the upload."""
    try:
        said = json.loads(document)
        protocol, digest = said["protocol"], said.pop("digest")
        if protocol != _PROTOCOL:
            raise ModelError(f"{uri} is of protocol {protocol}, this segwatch reads {_PROTOCOL}: upgrade segwatch")
        if digest != _digest(said):
            raise ModelError(f"the list of contents of {uri} was changed after the upload")
        files = {str(name): _File(int(f["size"]), str(f["sha256"])) for name, f in said["files"].items()}
        notes = dict(said["notes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the list of contents of {uri} is damaged") from error
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelError(f"the list of contents of {uri} names a file outside of it: {name}")
    return _Contents(files, notes)


def _digest(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
