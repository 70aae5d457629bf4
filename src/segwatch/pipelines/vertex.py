"""Pipelines on Vertex AI (Agent Platform Pipelines): jobs and schedules, through Google's own client."""

from __future__ import annotations

import datetime as dt
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from segwatch.errors import BackendError, SettingsError, UsageError
from segwatch.google import encryption, translated, vertex_client
from segwatch.pipelines.launch import parameters_of, specification
from segwatch.settings import Google, Settings, Target

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.services.pipeline_service import PipelineServiceClient
    from google.cloud.aiplatform_v1.services.schedule_service import ScheduleServiceClient
    from google.cloud.aiplatform_v1.types import PipelineJob, Schedule

POLL_SECONDS = 20.0
_FIELDS_OF_CRON = 5


@dataclass(frozen=True)
class Job:
    """One pipeline job. state: as Vertex AI names it, without its prefix: RUNNING, SUCCEEDED, FAILED, ..."""

    name: str
    state: str
    console: str


@dataclass(frozen=True)
class Scheduled:
    """One schedule. pipeline: train or infer. cron: with its time zone before it. next_run: empty while paused."""

    pipeline: str
    metric: str
    cron: str
    state: str
    next_run: str


class VertexPipelines:
    """The pipeline jobs and schedules of a target's project and region.

    Raises SettingsError if the target lacks what a job needs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        target = settings.target(None)
        self._google: Google = target.google
        _check(settings.default_target, target)
        # Under tmp/, which the bucket's life cycle empties: models are kept elsewhere, by the registry.
        self._root = f"gs://{target.bucket.removeprefix('gs://').partition('/')[0]}/tmp/pipelines"
        self._parent = f"projects/{self._google.project}/locations/{self._google.location}"
        self._place = f"Vertex AI of {self._google.project} in {self._google.location}"

    def submit(self, pipeline: str, metric: str, **options: Any) -> Job:
        """A job of the pipeline `train` or `infer` has been made. options: its parameters."""
        id_ = f"segwatch-{pipeline}-{dt.datetime.now(dt.UTC):%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        with translated(self._place):
            made = self._jobs.create_pipeline_job(
                parent=self._parent, pipeline_job=self._job(pipeline, metric, **options), pipeline_job_id=id_
            )
        return self._described(made)

    def wait(self, job: Job, say: Callable[[str], None]) -> None:
        """The job has succeeded. say: is told each new state. Raises BackendError if it failed or was cancelled."""
        while True:
            with translated(self._place):
                found = self._jobs.get_pipeline_job(name=job.name)
            state = self._described(found).state
            if state != job.state:
                say(state.lower())
            if state == "SUCCEEDED":
                return
            if state in ("FAILED", "CANCELLED", "PAUSED"):
                raise BackendError(f"the pipeline job {job.name} ended as {state}{_why(found)}: see {job.console}")
            job = self._described(found)
            time.sleep(POLL_SECONDS)

    def schedule(self, pipeline: str, metric: str, cron: str, time_zone: str) -> Scheduled:
        """The pipeline runs at the times of the cron expression; a schedule that it had is replaced.

        Raises UsageError if the expression or the time zone is none.
        """
        from google.cloud.aiplatform_v1.types import CreatePipelineJobRequest, Schedule

        request = CreatePipelineJobRequest(parent=self._parent, pipeline_job=self._job(pipeline, metric))
        wanted = Schedule(
            display_name=_display_name(pipeline, metric),
            cron=_cron(cron, time_zone),
            max_concurrent_run_count=1,
            create_pipeline_job_request=request,
        )
        with translated(self._place):
            found = self._find(pipeline, metric)
            if found is None:
                made = self._schedules.create_schedule(parent=self._parent, schedule=wanted)
            else:
                wanted.name = found.name
                fields = {"paths": ["cron", "max_concurrent_run_count", "create_pipeline_job_request"]}
                made = self._schedules.update_schedule(schedule=wanted, update_mask=fields)
        return _scheduled(made)

    def schedules(self, metric: str) -> list[Scheduled]:
        """The metric's schedules."""
        with translated(self._place):
            found = [self._find(pipeline, metric) for pipeline in ("train", "infer")]
        return [_scheduled(one) for one in found if one is not None]

    def pause(self, pipeline: str, metric: str) -> None:
        """The pipeline runs no more until `resume`. Raises UsageError if it has no schedule."""
        with translated(self._place):
            self._schedules.pause_schedule(name=self._need(pipeline, metric).name)

    def resume(self, pipeline: str, metric: str) -> None:
        """The pipeline runs again; times missed meanwhile are left out. Raises UsageError if it has no schedule."""
        with translated(self._place):
            self._schedules.resume_schedule(name=self._need(pipeline, metric).name)

    def unschedule(self, pipeline: str, metric: str) -> None:
        """The pipeline has no schedule. Raises UsageError if it had none."""
        with translated(self._place):
            self._schedules.delete_schedule(name=self._need(pipeline, metric).name).result(timeout=120)

    def _job(self, pipeline: str, metric: str, **options: Any) -> PipelineJob:
        from google.cloud.aiplatform_v1.types import PipelineJob

        google = self._google
        values = parameters_of(pipeline, self._settings, metric) | options
        return PipelineJob(
            display_name=_display_name(pipeline, metric),
            pipeline_spec=specification(pipeline, self._settings),
            runtime_config={"gcs_output_directory": self._root, "parameter_values": values},
            labels={"segwatch": pipeline, **google.labels},
            service_account=google.service_account,
            network=google.network,
            encryption_spec=encryption(google),
        )

    @cached_property
    def _jobs(self) -> PipelineServiceClient:
        client: PipelineServiceClient = vertex_client("PipelineService", self._google)
        return client

    @cached_property
    def _schedules(self) -> ScheduleServiceClient:
        client: ScheduleServiceClient = vertex_client("ScheduleService", self._google)
        return client

    def _described(self, job: PipelineJob) -> Job:
        id_ = job.name.rpartition("/")[2]
        console = (
            f"https://console.cloud.google.com/vertex-ai/locations/{self._google.location}/pipelines/runs/{id_}"
            f"?project={self._google.project}"
        )
        return Job(job.name, job.state.name.removeprefix("PIPELINE_STATE_"), console)

    def _find(self, pipeline: str, metric: str) -> Schedule | None:
        name = _display_name(pipeline, metric)
        found = self._schedules.list_schedules(
            request={"parent": self._parent, "filter": f'display_name="{name}"', "order_by": "create_time desc"}
        )
        return next((one for one in found if one.display_name == name), None)

    def _need(self, pipeline: str, metric: str) -> Schedule:
        found = self._find(pipeline, metric)
        if found is None:
            raise UsageError(f"the pipeline {pipeline} of {metric} has no schedule: `segwatch schedule set` makes one")
        return found


def _check(name: str, target: Target) -> None:
    needed = {"google.project": target.google.project, "bucket": target.bucket, "image": target.image}
    for key, value in needed.items():
        if not value:
            raise SettingsError(f"the target {name} has no `{key}`, which a pipeline on Vertex AI needs")
    for key, value in {"warehouse": target.warehouse, "registry": target.registry}.items():
        if value.startswith(("duckdb:", "sqlite:")):
            raise SettingsError(
                f"the target {name} has {key} = {value!r}, a file that Vertex AI's machines cannot reach"
            )


def _display_name(pipeline: str, metric: str) -> str:
    return f"segwatch-{pipeline}-{metric}"


def _cron(cron: str, time_zone: str) -> str:
    fields = cron.split()
    if len(fields) != _FIELDS_OF_CRON or not all(re.fullmatch(r"[\w*/,-]+", field) for field in fields):
        raise UsageError(f"--cron {cron!r} is no cron expression of five fields, as '0 5 * * *' is for 05:00 each day")
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(f"--time-zone {time_zone!r} is not known: write it as Europe/Rome or Etc/UTC") from error
    return f"TZ={time_zone} {' '.join(fields)}"


def _scheduled(schedule: Schedule) -> Scheduled:
    _, pipeline, metric = schedule.display_name.split("-", 2)
    next_run = schedule.next_run_time
    return Scheduled(
        pipeline, metric, schedule.cron, schedule.state.name, next_run.isoformat(timespec="minutes") if next_run else ""
    )


def _why(job: PipelineJob) -> str:
    """The steps that failed and what was said of them."""
    failed = [task for task in job.job_detail.task_details if task.state.name == "FAILED"]
    said = [f"{task.task_name}: {task.error.message}" if task.error.message else task.task_name for task in failed]
    if not said and job.error.message:
        said = [job.error.message]
    return f" ({'; '.join(said)[:500]})" if said else ""
