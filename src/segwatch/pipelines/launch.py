"""Compiling both pipelines, and running them on this machine."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segwatch.errors import BackendError, DataError, SegwatchError, SettingsError, UsageError
from segwatch.settings import Settings

_BY_EXIT_CODE: dict[int, type[SegwatchError]] = {1: SegwatchError, 2: UsageError, 3: DataError}
_EXECUTING = re.compile(r"Executing task \S*'([\w-]+)'")
_COLOURS = re.compile(r"\x1b\[\d*m")


def parameters(settings: Settings, metric: str | None) -> dict[str, Any]:
    """Values of the parameters that both pipelines have, from the settings' default target."""
    named = {} if metric is None else {"metric": metric}
    return {"settings": settings.model_dump_json(), "image": settings.target(None).image, "select": [], **named}


def compile_pipelines(settings: Settings, metric: str | None, folder: Path) -> list[Path]:
    """The folder holds both pipelines as YAML, with the settings' values as defaults; returns the files.

    Raises SettingsError if the extra `kfp` is not installed.
    """
    compiler = _kfp("kfp.compiler")
    from kfp.dsl import PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER as SCHEDULED

    values = parameters(settings, metric)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, build in _pipelines().items():
        files.append(folder / f"segwatch-{name}.yaml")
        own = {"shards": _shards(settings)} if name == "train" else {}
        compiler.Compiler().compile(build(settings, SCHEDULED), str(files[-1]), pipeline_parameters=values | own)
    return files


def run_locally(
    name: str, settings: Settings, root: Path, say: Callable[[str], None], **options: Any
) -> dict[str, Any]:
    """The pipeline `train` or `infer` ran on this machine; returns the summary that its last step wrote.

    options: its parameters. root: a directory of this run alone, gone afterwards unless the run fails. say: is told
    which step begins. Raises the error of the step that failed.
    """
    local = _kfp("kfp.local")
    own = {"shards": _shards(settings)} if name == "train" else {}
    root.mkdir(parents=True)
    log = _Log(say)  # before the streams are redirected, as it tells of steps on the one there is now
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), warnings.catch_warnings():
        # Steps run in this environment, whatever the image that they would have elsewhere.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        pipeline = _pipelines()[name](settings, "")
        try:
            pipeline(**parameters(settings, None) | own | options)
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


def _shards(settings: Settings) -> Sequence[int]:
    return list(range(settings.target(None).shards))


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
