"""Pipeline jobs and schedules for the fake of Vertex AI: kept, checked against their own specification, never run."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from google.cloud.aiplatform_v1 import types
from google.protobuf import empty_pb2

from .vertex import PROJECT_NUMBER, Refusal, Request, VertexFake

_PLACE = r"/v1/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)"


class PipelinesFake:
    """The jobs and schedules that a fake was asked for. states: what a job is in, look after look; the last stays."""

    def __init__(self, fake: VertexFake) -> None:
        self.jobs: dict[str, Any] = {}
        self.schedules: dict[str, Any] = {}
        self.states = ["RUNNING", "SUCCEEDED"]
        self.failed_task = ""
        self._fake = fake
        self._looks = 0
        fake.route("POST", rf"{_PLACE}/pipelineJobs", self._create)
        fake.route("GET", rf"{_PLACE}/pipelineJobs/(?P<id>[^/]+)", self._get)
        fake.route("POST", rf"{_PLACE}/schedules", self._schedule)
        fake.route("GET", rf"{_PLACE}/schedules", self._list)
        fake.route("PATCH", rf"{_PLACE}/schedules/(?P<id>[^/:]+)", self._update)
        fake.route("POST", rf"{_PLACE}/schedules/(?P<id>[^/:]+):pause", self._pause)
        fake.route("POST", rf"{_PLACE}/schedules/(?P<id>[^/:]+):resume", self._resume)
        fake.route("DELETE", rf"{_PLACE}/schedules/(?P<id>[^/:]+)", self._delete)

    def _create(self, request: Request) -> Any:
        job = request.message(types.PipelineJob)
        id_ = request.query.get("pipelineJobId", "")
        if not re.fullmatch(r"[a-z][-a-z0-9]{0,127}", id_):
            raise Refusal(400, f"Invalid pipeline job id: {id_!r}")
        _require_valid(job)
        job.name = f"projects/{PROJECT_NUMBER}/locations/{request.arguments['location']}/pipelineJobs/{id_}"
        job.state = types.PipelineState.PIPELINE_STATE_PENDING
        self.jobs[id_] = job
        return job

    def _get(self, request: Request) -> Any:
        job = self.jobs.get(str(request.arguments["id"]))
        if job is None:
            raise Refusal(404, f"The PipelineJob does not exist: {request.path.removeprefix('/v1/')}")
        state = self.states[min(self._looks, len(self.states) - 1)]
        self._looks += 1
        job.state = types.PipelineState[f"PIPELINE_STATE_{state}"]
        if state == "FAILED":
            task = types.PipelineTaskDetail(task_name=self.failed_task, state="FAILED")
            task.error = {"code": 9, "message": "The DAG failed because some tasks failed."}
            job.job_detail = types.PipelineJobDetail(task_details=[task])
        return job

    def _schedule(self, request: Request) -> Any:
        schedule = request.message(types.Schedule)
        self._require_valid_schedule(schedule)
        id_ = str(1000 + len(self.schedules))
        schedule.name = f"projects/{PROJECT_NUMBER}/locations/{request.arguments['location']}/schedules/{id_}"
        schedule.state = types.Schedule.State.ACTIVE
        schedule.next_run_time = datetime(2030, 1, 1, 5, tzinfo=UTC)
        self.schedules[id_] = schedule
        return schedule

    def _list(self, request: Request) -> Any:
        match = re.fullmatch(r'display_name="([^"]*)"', request.query.get("filter", ""))
        if match is None:
            raise Refusal(400, f"Invalid filter: {request.query.get('filter')}")
        found = [schedule for schedule in self.schedules.values() if schedule.display_name == match[1]]
        return types.ListSchedulesResponse(schedules=found)

    def _update(self, request: Request) -> Any:
        kept, asked = self._found(request), request.message(types.Schedule)
        paths = set(request.query.get("updateMask", "").split(","))
        if not paths <= {"cron", "maxConcurrentRunCount", "createPipelineJobRequest"}:
            raise Refusal(400, f"Cannot update {', '.join(sorted(paths))}")
        self._require_valid_schedule(asked)
        kept.cron = asked.cron
        kept.create_pipeline_job_request = asked.create_pipeline_job_request
        return kept

    def _pause(self, request: Request) -> Any:
        self._found(request).state = types.Schedule.State.PAUSED
        self._found(request).next_run_time = None
        return empty_pb2.Empty()

    def _resume(self, request: Request) -> Any:
        self._found(request).state = types.Schedule.State.ACTIVE
        return empty_pb2.Empty()

    def _delete(self, request: Request) -> Any:
        self._found(request)
        del self.schedules[str(request.arguments["id"])]
        parent = f"projects/{PROJECT_NUMBER}/locations/{request.arguments['location']}"
        return self._fake.done(parent, empty_pb2.Empty(), types.DeleteOperationMetadata())

    def _found(self, request: Request) -> Any:
        schedule = self.schedules.get(str(request.arguments["id"]))
        if schedule is None:
            raise Refusal(404, f"The Schedule does not exist: {request.path.removeprefix('/v1/')}")
        return schedule

    @staticmethod
    def _require_valid_schedule(schedule: Any) -> None:
        if not re.fullmatch(r"(TZ=[\w/+-]+ )?(\S+ ){4}\S+", schedule.cron):
            raise Refusal(400, f"Invalid cron: {schedule.cron!r}")
        if schedule.max_concurrent_run_count < 1:
            raise Refusal(400, "max_concurrent_run_count is required.")
        _require_valid(schedule.create_pipeline_job_request.pipeline_job)


def _require_valid(job: Any) -> None:
    """What the service checks before it takes a job: an output directory, and the parameters of the specification."""
    if not re.fullmatch(r"gs://[^/]+/.+", job.runtime_config.gcs_output_directory):
        raise Refusal(400, "runtime_config.gcs_output_directory is not a Cloud Storage directory.")
    spec = types.PipelineJob.to_dict(job)["pipeline_spec"]
    declared = spec["root"]["inputDefinitions"]["parameters"]
    given = set(job.runtime_config.parameter_values)
    unknown = given - set(declared)
    missing = {
        name for name, one in declared.items() if not one.get("isOptional") and "defaultValue" not in one
    } - given
    if unknown or missing:
        raise Refusal(400, f"Parameters unknown: {sorted(unknown)}, missing: {sorted(missing)}")
