"""How MLflow is called: quietly, without telemetry, with its errors told in one sentence."""

from __future__ import annotations

import errno
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from segwatch.errors import BackendError

_LOGGERS = ("mlflow", "alembic", "sqlalchemy", "urllib3")
_ENVIRONMENT = {
    # A pooled connection outlives the call and would keep a removed database file open.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# MLflow's own seven retries take four minutes to say that a server is not there.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}

# What a vendor's text holds -> what to tell, and whether to try again.
_KNOWN: tuple[tuple[str, str, bool], ...] = (
    (
        r"database( table| schema)? is locked|database is busy",
        "is held by another process; run again when that has finished",
        True,
    ),
    (
        r"readonly database|read-only file system|permission denied",
        "cannot be written; give yourself write permission on it and on its directory",
        False,
    ),
    (
        r"file is not a database|malformed|file is encrypted",
        "is not a SQLite database, or a damaged one; restore it from a backup or name another file",
        False,
    ),
    (
        r"database or disk is full|no space left|disk quota",
        "met a full disk; free some space and run again",
        False,
    ),
    (
        r"file too large",
        "met the limit on the size of files; raise it (ulimit -f) and run again",
        False,
    ),
    (r"disk i/o error", "cannot be read or written (disk I/O error); check the disk", False),
    (r"unable to open database file", "cannot be opened; check the path and its permissions", False),
    (
        r"out-of-date database schema|can't locate revision",
        "was made by another release of MLflow; install that release, or back the database up and run"
        " `mlflow db upgrade`",
        False,
    ),
    (
        r"max retries exceeded|connection refused|timed out|connection aborted|failed to establish",
        "does not answer; start the server, or correct `registry` in segwatch.toml",
        True,
    ),
    (r"\b40[13]\b|unauthorized|forbidden", "refuses access; set MLflow's credentials", False),
)


def load_client() -> Any:
    """MLflow's client class, imported with telemetry off."""
    # Read once, at import: set any later it does nothing.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient


@contextmanager
def mlflow_call(uri: str, doing: str) -> Iterator[None]:
    """Inside, MLflow says nothing and keeps no connection; what it raises leaves as BackendError.

    doing: completes "failed to ...". Loggers, warnings and environment are as they were afterwards.
    """
    load_client()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SADeprecationWarning, SQLAlchemyError

    with _quiet(), _environment(), warnings.catch_warnings():
        # MLflow 3.17 under SQLAlchemy 2.1; neither is ours to mend.
        warnings.simplefilter("ignore", SADeprecationWarning)
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise backend_error(uri, doing, error) from error


def backend_error(uri: str, doing: str, error: Exception) -> BackendError:
    """One sentence for a vendor's error: which registry, what is wrong with it, what to do."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        text += " (permission denied)"
    for pattern, meaning, retryable in _KNOWN:
        if re.search(pattern, text, re.IGNORECASE):
            return BackendError(f"the registry {shown(uri)} {meaning}", retryable=retryable)
    lines = text.strip().splitlines() or [type(error).__name__]
    # A heading says nothing without what stands under it.
    reason = lines[-1] if lines[0].endswith(":") else lines[0]
    return BackendError(f"the registry {shown(uri)} failed to {doing}: {reason[:300]}")


def shown(uri: str) -> str:
    """The URI without the credentials it may carry."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        # MLflow logs each database error with its traceback before it raises it.
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _environment() -> Iterator[None]:
    wanted = _ENVIRONMENT | {name: os.environ.get(name, value) for name, value in _PATIENCE.items()}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
