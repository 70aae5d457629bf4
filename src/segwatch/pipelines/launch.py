"""Compiling both pipelines, and running them on this machine."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segwatch.errors import BackendError, DataError, SegwatchError, SettingsError, UsageError
from segwatch.settings import Settings, Step, Target
from segwatch.storage import Storage

_BY_EXIT_CODE: dict[int, type[SegwatchError]] = {1: SegwatchError, 2: UsageError, 3: DataError}
_EXECUTING = re.compile(r"Executing task \S*'([\w-]+)'")
_COLOURS = re.compile(r"\x1b\[\d*m")


def parameters_of(pipeline: str, settings: Settings, metric: str) -> dict[str, Any]:
    """Values of the parameters of `train` or `infer`, from the settings' default target."""
    from segwatch.pipelines.components import IMAGE

    target = settings.target(None)
    common = {"settings": settings.model_dump_json(), "metric": metric, "image": target.image or IMAGE, "select": []}
    return common | ({"shards": list(range(target.shards))} if pipeline == "train" else {})


def compile_pipelines(settings: Settings, metric: str, folder: Path) -> list[Path]:
    """The folder holds both pipelines as YAML, with the settings' values as defaults; returns the files.

    Raises SettingsError if the extra `kfp` is not installed.
    """
    _kfp("kfp.compiler")  # first, as without it no folder is to be left behind
    folder.mkdir(parents=True, exist_ok=True)
    return [_compile(name, settings, metric, folder / f"segwatch-{name}.yaml") for name in ("train", "infer")]


def upload_pipelines(settings: Settings, metric: str) -> str:
    """A new folder in the bucket of the settings' default target holds both pipelines as YAML; returns its URI.

    Raises SettingsError if the target has no bucket.
    """
    target = settings.target(None)
    if not target.bucket:
        raise SettingsError(f"the target {settings.default_target} has no `bucket` to upload to: set it to gs://BUCKET")
    with tempfile.TemporaryDirectory() as folder:
        compile_pipelines(settings, metric, Path(folder))
        return Storage(target.google).upload(Path(folder), _uploads(target))


def uploaded_pipelines(target: Target) -> list[str]:
    """URIs of all that `upload_pipelines` made in the target's bucket."""
    return [upload.uri for upload in Storage(target.google).uploads(_uploads(target))] if target.bucket else []


def remove_pipelines(target: Target, uris: Sequence[str]) -> None:
    """The uploads are gone."""
    for uri in uris:
        Storage(target.google).delete(uri)


def _uploads(target: Target) -> str:
    return f"{target.bucket.rstrip('/')}/pipelines"


def specification(pipeline: str, settings: Settings) -> dict[str, Any]:
    """The compiled pipeline `train` or `infer` as the document that Vertex AI runs."""
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        text = _compile(pipeline, settings, None, Path(folder) / "pipeline.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = next(iter(yaml.safe_load_all(text)))
    return document


def _compile(pipeline: str, settings: Settings, metric: str | None, to: Path) -> Path:
    compiler = _kfp("kfp.compiler")
    from kfp.dsl import PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER as SCHEDULED

    values = None if metric is None else parameters_of(pipeline, settings, metric)
    built = _pipelines()[pipeline](settings, SCHEDULED)
    compiler.Compiler().compile(built, str(to), pipeline_parameters=values)
    return to


def run_locally(
    name: str, settings: Settings, metric: str, root: Path, say: Callable[[str], None], **options: Any
) -> dict[str, Any]:
    """The pipeline `train` or `infer` ran on this machine; returns the summary that its last step wrote.

    options: its parameters. root: a directory of this run alone, gone afterwards unless the run fails. say: is told
    which step begins. Raises the error of the step that failed.
    """
    local = _kfp("kfp.local")
    root.mkdir(parents=True)
    log = _Log(say)  # before the streams are redirected, as it tells of steps on the one there is now
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), warnings.catch_warnings():
        # Steps run in this environment, whatever the image that they would have elsewhere.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        pipeline = _pipelines()[name](_as_this_machine(settings), "")
        try:
            pipeline(**parameters_of(name, settings, metric) | options)
        except RuntimeError as error:
            (root / "log.txt").write_text(log.getvalue(), encoding="utf-8")
            raise _failure(log.getvalue(), root / "log.txt") from error
    summary: dict[str, Any] = json.loads(next(root.glob("*/*/summary")).read_text(encoding="utf-8"))
    shutil.rmtree(root, ignore_errors=True)
    return summary


def _pipelines() -> Mapping[str, Callable[[Settings, str], Callable[..., Any]]]:
    from segwatch.pipelines.inference import inference_pipeline
    from segwatch.pipelines.training import training_pipeline

    return {"train": training_pipeline, "infer": inference_pipeline}


def _kfp(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SettingsError(f"the module {error.name} is missing: pip install 'segwatch[kfp]'") from error


def _as_this_machine(settings: Settings) -> Settings:
    """The settings without limits, and without second tries: whoever waits here wants to be told at once."""
    name, target = settings.default_target, settings.target(None)
    return settings.model_copy(
        update={"targets": {name: target.model_copy(update={"steps": {"default": Step(retries=0)}})}}
    )


class _Log(io.StringIO):
    """What KFP prints, kept; each step that begins is told."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self._stderr = sys.stderr

    def write(self, text: str) -> int:
        found = _EXECUTING.search(text)
        if found:
            with contextlib.redirect_stderr(self._stderr):
                self._say(found[1])
        return super().write(_COLOURS.sub("", text))


def _failure(log: str, file: Path) -> SegwatchError:
    """The error that a step told of in the log, or that the log is to be read."""
    for line in reversed(log.splitlines()):
        start = line.find('{"event": "error"')
        if start >= 0:
            told = json.loads(line[start:])
            kind = _BY_EXIT_CODE.get(told["exit_code"])
            return kind(told["message"]) if kind else BackendError(told["message"], retryable=told["retryable"])
    last = next((name for name in reversed(_EXECUTING.findall(log))), "first")
    return BackendError(f"the pipeline failed at its step {last}: see {file}")
