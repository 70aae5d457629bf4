"""Settings: segwatch.toml and SEGWATCH_* variables, read here and nowhere else, frozen once read."""

from __future__ import annotations

import datetime as dt
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as VariableError

from segwatch.core.baseline import Recursion
from segwatch.core.features import FeatureSet
from segwatch.core.noise import Kind
from segwatch.core.schema import CALENDAR_COLUMNS
from segwatch.core.window import Grain
from segwatch.errors import SettingsError

SETTINGS_FILE = "segwatch.toml"
_PREFIX = "SEGWATCH_"
RESERVED_COLUMNS = frozenset(
    "metric level segment_id ts value expected lower upper impact impact_share score p_value prediction is_anomaly"
    " direction status reason model_version run_id scored_at n_rows denominator incident_id first_seen last_seen"
    " change_share total_impact peak_impact n_segments segments updated_at contributions"
    " median_value smallest_drop smallest_rise evaluated_at".split()
)
_DEFAULT_MIN_HISTORY: dict[Grain, int] = {"day": 90, "hour": 1008}
_DEFAULT_ADAPT_AFTER: dict[Grain, int] = {"day": 7, "hour": 48}

_T = TypeVar("_T")

RunnerName = Literal["local", "kfp-local", "vertex"]

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Column = Annotated[str, Field(min_length=1, max_length=300)]
Route = Annotated[str, Field(pattern=r"^/[^?#\s]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Endpoints(_Frozen):
    """Other addresses of Google's services: private endpoints, or emulators (http://, no credentials are sent)."""

    bigquery: str = Field("", description="BigQuery's REST API")
    bigquery_storage: str = Field("", description="BigQuery's Storage API (gRPC)")
    storage: str = Field("", description="Cloud Storage")
    vertex: str = Field("", description="Vertex AI")
    secret_manager: str = Field("", description="Secret Manager")
    service_usage: str = Field("", description="Service Usage, which knows the APIs that are enabled")


class Google(_Frozen):
    """Which Google Cloud project a target uses, and how. Credentials are Application Default Credentials only."""

    project: str = Field("", description="Project that jobs run in and are billed to; default: the warehouse's")
    location: str = Field("us-central1", description="Region of the dataset, the bucket, the models and the jobs")
    impersonate: str = Field("", description="Service account to act as, by its e-mail address")
    maximum_bytes_billed: int = Field(
        200_000_000_000, ge=0, description="Bytes that one query may read before BigQuery refuses it; 0: any number"
    )
    service_account: str = Field("", description="Service account that pipelines run as, by its e-mail address")
    network: str = Field("", description="VPC network of pipelines: projects/NUMBER/global/networks/NAME")
    encryption_key: str = Field("", description="Cloud KMS key of pipelines and models, by its resource name")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of all that segwatch makes")
    endpoints: Endpoints = Field(default_factory=Endpoints, description="Other addresses of Google's services")


class Step(_Frozen):
    """What one step of a pipeline may use, and how often it is tried."""

    cpu: str = Field("", description="CPUs, as KFP writes them: 4; empty: the platform's default")
    memory: str = Field("", description="Memory, as KFP writes it: 16G; empty: the platform's default")
    retries: int = Field(1, ge=0, le=10, description="How often a step that failed is tried again")
    timeout_minutes: int = Field(180, ge=1, description="Minutes after which a step that has not ended fails")


class Target(_Frozen):
    """Where a run reads, writes and keeps its models."""

    warehouse: str = Field(
        description="URL of the warehouse: duckdb:///FILE, relative to the settings file, bigquery://PROJECT/DATASET"
        " or postgresql://USER@HOST:PORT/DATABASE"
    )
    registry: str = Field(description="Model registry: sqlite:///FILE, the URL of an MLflow server, or vertex")
    bucket: str = Field("", description="Where models and the artifacts of runs are kept: gs://BUCKET/FOLDER")
    google: Google = Field(default_factory=Google, description="The Google Cloud project of a target")
    runner: RunnerName = Field("local", description="What executes the steps: local (in process), kfp-local, vertex")
    shards: int = Field(1, ge=1, le=64, description="Parts that a pipeline trains apart, at the same time")
    image: str = Field("", description="Container image of segwatch: steps and serving")
    steps: dict[str, Step] = Field(
        default_factory=dict, description="Resources of a pipeline's steps by their names; `default` is for the others"
    )


class Holidays(_Frozen):
    """Public holidays by a dimension's values."""

    dimension: Column = Field(description="Dimension whose values are, or stand for, countries")
    countries: dict[str, str] = Field(
        default_factory=dict,
        description="ISO 3166 code of each value, DE-BY for a part of one; without any the values are codes",
    )


class Metric(_Frozen):
    """One metric of one table, and how it is watched."""

    table: str = Field(min_length=1, description="Table that holds the metric, a schema may precede it: sales.orders")
    time: Column = Field(description="Column of the time: DATE, DATETIME or TIMESTAMP (UTC)")
    value: Column = Field(description="Column of the value: a number")
    denominator: Column | None = Field(
        None,
        description="Column that the value is divided by: the metric is then the ratio of two sums, as conversions of"
        " visits",
    )
    dimensions: tuple[Column, ...] = Field(min_length=1, description="Columns whose combinations are the segments")
    grain: Grain = Field("day", description="Length of a period: day or hour")
    missing: Literal["zero", "gap"] = Field(
        "zero",
        description="What an absent row means: zero (a count) or gap (not observed; values may be negative); with a"
        " denominator always a gap",
    )
    alpha: float = Field(0.01, gt=0, lt=0.5, description="A row's prediction is -1 where its p-value is at most this")
    fdr: float = Field(
        0.05, gt=0, lt=1, description="Share of false alerts among the alerts of one period, across segments"
    )
    alert_budget: float = Field(
        0.0,
        ge=0,
        description="Alerts a week at most, in place of fdr; the last `holdout` periods say what keeps it; 0: fdr",
    )
    min_history: int = Field(0, ge=0, description="Periods a segment needs to get a model; 0: 90 days or 1008 hours")
    retrain_every: int = Field(7, ge=1, description="Age in days at which segwatch run trains anew")
    holdout: int = Field(28, ge=1, description="Last periods of training that evaluate holds out")
    min_impact: float = Field(
        0.0,
        ge=0,
        description="Difference from the expected value below which a row is no anomaly",
    )
    min_impact_share: float = Field(
        0.0, ge=0, le=1, description="The same, as a share of what all segments together are expected to have"
    )
    adapt_after: int = Field(
        0, ge=0, description="Anomalous periods after which a shift is the new normal; 0: 7 days or 48 hours"
    )
    timezone: str = Field("UTC", description="Whose hours and weeks an hourly metric follows: Europe/Rome")
    holidays: Holidays | None = Field(None, description="Public holidays that are expected to be other than usual")
    calendar: str = Field(
        "",
        description="Table of the user's own days: first_day, last_day, event, effect (mask or expect), and any of the"
        " dimensions",
    )
    max_rollup_order: int = Field(
        1,
        ge=-1,
        description="Sums that are watched too: 0 the total, 1 also each value of a dimension, 2 also pairs; -1 none",
    )
    settle: int = Field(0, ge=0, description="Last periods that are not scored yet, as rows may still arrive late")
    rescore: int = Field(0, ge=0, description="Periods before the last one that are scored again, for late rows")
    max_alert_increase: float = Field(
        20.0, ge=0, description="Alerts per 1,000 rows by which a new model may exceed the champion and be promoted"
    )
    max_recall_loss: float = Field(
        0.1, ge=0, le=1, description="Recall of injected changes by which it may fall short of the champion"
    )
    max_model_age: int = Field(
        0, ge=0, description="Days from the end of training to the Window past which infer refuses a model; 0: any"
    )

    @model_validator(mode="after")
    def _check(self) -> Metric:
        for name in self.dimensions:
            if name.lower() in RESERVED_COLUMNS:
                raise ValueError(
                    f"the dimension {name!r} has the name of a column of the predictions table: make a view that"
                    " renames it"
                )
        if self.holidays and self.holidays.dimension not in self.dimensions:
            raise ValueError(f"holidays.dimension is {self.holidays.dimension!r}, which is none of the dimensions")
        self._check_calendar()
        if self.timezone not in available_timezones():
            raise ValueError(f"timezone {self.timezone!r} is no time zone: name one as Europe/Rome, or UTC")
        if len({name.lower() for name in self.columns}) != len(self.columns):
            raise ValueError("time, value, denominator and dimensions must be different columns")
        if self.min_history == 0:
            object.__setattr__(self, "min_history", _DEFAULT_MIN_HISTORY[self.grain])
        if self.adapt_after == 0:
            object.__setattr__(self, "adapt_after", _DEFAULT_ADAPT_AFTER[self.grain])
        return self

    def _check_calendar(self) -> None:
        if not self.calendar:
            return
        if self.calendar.lower() == self.table.lower():
            raise ValueError(f"calendar is {self.calendar!r}, the metric's own table: name the table of your days")
        for name in self.dimensions:
            if name.lower() in CALENDAR_COLUMNS:
                raise ValueError(
                    f"the dimension {name!r} has the name of a column of the calendar: make a view of the metric's"
                    " table that renames it"
                )

    @property
    def feature_set(self) -> FeatureSet:
        kind: Kind = "ratio" if self.denominator else "count" if self.missing == "zero" else "value"
        return FeatureSet(self.grain, kind)

    @property
    def recursion(self) -> Recursion:
        return Recursion(self.feature_set, self.adapt_after, self.timezone)

    @property
    def sums(self) -> dict[str, str]:
        """The columns that are summed by segment and period, by what observations call the sums."""
        named = {"value": self.value, "denominator": self.denominator}
        return {name: column for name, column in named.items() if column is not None}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read: time, dimensions, and what is summed."""
        return (self.time, *self.dimensions, *self.sums.values())

    @property
    def level(self) -> str:
        return "/".join(self.dimensions)


class Channel(_Frozen):
    """Where alerts go."""

    url: str = Field(
        min_length=1,
        description="Address as Apprise writes it; ${NAME} is taken from the environment when a message is sent,"
        " secret://projects/P/secrets/S/versions/V from Secret Manager",
    )


_TIME = r"([01]\d|2[0-3]):[0-5]\d"


class Alert(_Frozen):
    """A rule: which incidents are told of, where and when."""

    channels: tuple[Name, ...] = Field(min_length=1, description="Channels that are told")
    metrics: tuple[Name, ...] = Field((), description="Metrics that it is about; none: all")
    select: dict[Column, tuple[str, ...]] = Field(
        default_factory=dict, description="Values by dimension: incidents of these, and of what holds them"
    )
    direction: Literal["up", "down", "both"] = Field("both", description="up, down or both")
    min_impact: float = Field(0.0, ge=0, description="Impact in one period under which an incident is not told of")
    min_impact_share: float = Field(0.0, ge=0, description="The same, as a share of what was expected of its segments")
    min_duration: int = Field(1, ge=1, description="Periods that it has to last before it is told of")
    also: tuple[Literal["worse", "resolved"], ...] = Field(
        ("worse", "resolved"), description="What is told beside that it is new"
    )
    group_by: str = Field("incident", description="One message for each incident, run, or value of a dimension")
    max_messages: int = Field(10, ge=1, description="Messages of a run, and one more that names the rest")
    quiet_hours: str = Field(
        "", pattern=rf"^({_TIME}-{_TIME})?$", description="When nothing is sent: 22:00-07:00; told by the next run"
    )
    digest_at: str = Field(
        "", pattern=rf"^({_TIME})?$", description="In place of messages one digest a day, by the first run from then on"
    )
    timezone: str = Field("UTC", description="Whose hours these are: Europe/Rome")

    @model_validator(mode="after")
    def _check(self) -> Alert:
        if self.timezone not in available_timezones():
            raise ValueError(f"timezone {self.timezone!r} is no time zone: name one as Europe/Rome, or UTC")
        return self

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def digest_time(self) -> dt.time:
        return dt.time.fromisoformat(self.digest_at or "00:00")

    def is_quiet(self, now: dt.datetime) -> bool:
        """Whether nothing is to be sent now; hours from late to early hold midnight."""
        if not self.quiet_hours:
            return False
        start, end = map(dt.time.fromisoformat, self.quiet_hours.split("-"))
        time = now.astimezone(self.zone).time()
        return start <= time < end if start <= end else time >= start or time < end


class Settings(BaseSettings):
    """All that segwatch.toml says, overridden by SEGWATCH_* variables (`SEGWATCH_METRICS__NEW_USERS__ALPHA=0.02`)."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=_PREFIX, env_nested_delimiter="__")

    default_target: Name = Field("dev", description="Target used without --target")
    predictions_table: Name = Field("predictions", description="Table that predictions are written to")
    incidents_table: Name = Field("incidents", description="Table that incidents are written to")
    labels_table: Name = Field("labels", description="Table that what people say of incidents is written to")
    audit_table: Name = Field("audit", description="Table that says who labelled, snoozed and promoted")
    deliveries_table: Name = Field("deliveries", description="Table that every alert that was sent is written to")
    page_url: str = Field("", description="Address of `segwatch ui`, for links in alerts")
    detectability_table: Name = Field("detectability", description="Table that the smallest detectable changes are in")
    backtests_table: Name = Field("backtests", description="Table that backtests are written to")
    targets: dict[Name, Target] = Field(min_length=1)
    metrics: dict[Name, Metric] = Field(min_length=1)
    channels: dict[Name, Channel] = Field(default_factory=dict)
    alerts: dict[Name, Alert] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        for name, rule in self.alerts.items():
            _check_names(f"alerts.{name}.channels", rule.channels, self.channels)
            _check_names(f"alerts.{name}.metrics", rule.metrics, self.metrics)
            metrics = [self.metrics[one] for one in rule.metrics or self.metrics]
            dimensions = list(dict.fromkeys(one for metric in metrics for one in metric.dimensions))
            _check_names(f"alerts.{name}.select", tuple(rule.select), dimensions)
            if rule.group_by not in ("incident", "run"):
                _check_names(f"alerts.{name}.group_by", (rule.group_by,), ["incident", "run", *dimensions])
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's content arrives as init values; a variable set for one run must win over it.
        return env_settings, init_settings

    def target(self, name: str | None) -> Target:
        """The named target, or the default one. Raises SettingsError if there is none of that name."""
        return _named(self.targets, name or self.default_target, "target")

    def metric(self, name: str) -> Metric:
        """The named metric. Raises SettingsError if there is none of that name."""
        return _named(self.metrics, name, "metric")

    def step(self, name: str) -> Step:
        """Resources of a step of the default target."""
        steps = self.target(None).steps
        return steps.get(name) or steps.get("default") or Step()

    def for_target(self, name: str | None) -> Settings:
        """The same settings with no other target than the named one."""
        chosen = name or self.default_target
        return self.model_copy(update={"default_target": chosen, "targets": {chosen: self.target(chosen)}})

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Dimensions of all metrics, each once, in order: the dimension columns of the predictions table."""
        return tuple(dict.fromkeys(name for metric in self.metrics.values() for name in metric.dimensions))


def _check_names(key: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key} names {name!r}, which is none of {', '.join(known) or 'nothing'}")


class Page(BaseSettings):
    """Who may open the page, in SEGWATCH_UI_* variables, so that no secret is on a command line."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix=f"{_PREFIX}UI_", env_ignore_empty=True)

    token: SecretStr | None = Field(None, min_length=16, description="What the page asks for before it shows anything")


def load_page() -> Page:
    """What the SEGWATCH_UI_* variables say. Raises SettingsError naming the variable that is wrong."""
    try:
        return Page()
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        variable = f"{_PREFIX}UI_" + "_".join(str(part) for part in wrong["loc"]).upper()
        raise SettingsError(f"the variable {variable} is wrong: {wrong['msg']}") from error


class Serving(BaseSettings):
    """What Vertex AI asks of a container that serves predictions, in AIP_* variables."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="AIP_", env_ignore_empty=True)

    http_port: int | None = Field(None, ge=1, le=65535, description="Port to listen on, on every interface")
    health_route: Route = Field("/health", description="Path of the health checks")
    predict_route: Route = Field("/predict", description="Path of the requests for predictions")
    storage_uri: str = Field("", description="Where the model is: gs://BUCKET/FOLDER or a folder")


def load_serving() -> Serving:
    """What the AIP_* variables ask. Raises SettingsError naming the variable that is wrong."""
    try:
        serving = Serving()
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        variable = "AIP_" + "_".join(str(part) for part in wrong["loc"]).upper()
        raise SettingsError(f"the variable {variable} is {wrong['input']!r}: {wrong['msg']}") from error
    if serving.health_route == serving.predict_route:
        raise SettingsError(f"AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are both {serving.health_route}: they must differ")
    return serving


def _named(things: Mapping[str, _T], name: str, kind: str) -> _T:
    if name not in things:
        raise SettingsError(f"the settings have no {kind} {name!r}; they have {', '.join(things)}")
    return things[name]


def load_settings(path: Path, target: str | None = None) -> Settings:
    """The settings in a file, with SEGWATCH_* variables on top and `${NAME}` in its texts taken from the environment.

    Relative database files are placed beside the settings file. target: the one to be used, by default the settings'
    own; in other targets a `${NAME}` stays as it is, since nobody needs the variables of a target that is not used.
    Raises SettingsError naming the file and the key if the file is missing or wrong, or naming the variable.
    """
    _check_variables()
    try:
        # Some editors put a byte order mark before UTF-8.
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"there is no settings file {path}: run `segwatch init` to write one, or name it with --settings"
        ) from error
    except IsADirectoryError as error:
        raise SettingsError(f"the settings file {path} is a folder: name a file in it with --settings") from error
    except OSError as error:
        raise SettingsError(
            f"the settings file {path} cannot be read ({error.strerror}): grant the right to read it, or name another"
            " with --settings"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"the settings file {path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}; mend that line") from error
    try:
        settings = Settings(**_expand_used(document, target, path))
    except ValidationError as error:
        raise SettingsError(_explain(error, path)) from error
    except VariableError as error:
        raise SettingsError(_not_json(error.__cause__)) from error
    settings.target(target)
    return _placed(settings, path.parent)


def _check_variables() -> None:
    """Nothing happens if every SEGWATCH_* variable sets a key: pydantic ignores those that set none."""
    for name in sorted(os.environ):
        key, _, rest = name.upper().removeprefix(_PREFIX).lower().partition("__")
        is_known = key in Settings.model_fields and (not rest or key in ("targets", "metrics", "alerts"))
        is_known |= name.upper() in {f"{_PREFIX}UI_{field.upper()}" for field in Page.model_fields}
        if name.upper().startswith(f"{_PREFIX}CHANNELS"):
            # It would be read at once, and stand in every pipeline's parameters.
            raise SettingsError(
                f"the variable {name} would put a channel's address into the settings: unset it, and write"
                ' url = "${NAME}" for a variable of another name, which is read when a message is sent'
            )
        if name.upper().startswith(_PREFIX) and not is_known:
            raise SettingsError(
                f"the variable {name} sets no key of the settings: unset it, or name one, as {_PREFIX}DEFAULT_TARGET or"
                f" {_PREFIX}METRICS__NEW_USERS__ALPHA"
            )


def _not_json(error: BaseException | None) -> str:
    """Which variable should hold a list or table and does not: the error has only its value."""
    text = getattr(error, "doc", None)
    names = [name for name, value in sorted(os.environ.items()) if name.upper().startswith(_PREFIX) and value == text]
    return f'the variable {", ".join(names)} is not JSON ({error}): write a list as ["a", "b"]'


def _expand_used(document: dict[str, Any], target: str | None, path: Path) -> dict[str, Any]:
    used = target or os.environ.get(f"{_PREFIX}DEFAULT_TARGET") or document.get("default_target", "dev")
    targets = document.get("targets")
    if not isinstance(targets, dict):
        return _expand(document, path)  # type: ignore[no-any-return]
    expanded = {name: _expand(one, path) if name == used else one for name, one in targets.items()}
    rest = {key: value for key, value in document.items() if key != "targets"}
    # Channels may be told of by some runs alone, and their secrets belong in no pipeline's parameters.
    later = {"channels": rest.pop("channels")} if "channels" in rest else {}
    return {**_expand(rest, path), "targets": expanded, **later}


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path) for item in value]
    return _expanded(value, str(path)) if isinstance(value, str) else value


def secret(text: str, key: str) -> str:
    """The text of a key that holds a secret, with each `${NAME}` taken from the environment now.

    Raises SettingsError naming the variable that is missing, and never what there is.
    """
    return _expanded(text, key)


def _expanded(text: str, place: str) -> str:
    """The text with each `${NAME}` taken from the environment. place: where it stands, for the message."""
    return re.sub(r"\$\{(\w+)\}", lambda found: _variable(found[1], place), text)


def _variable(name: str, place: str) -> str:
    if name not in os.environ:
        raise SettingsError(f"{place} uses ${{{name}}}, but the environment has no variable {name}: export it")
    return os.environ[name]


def _explain(error: ValidationError, path: Path) -> str:
    """For each wrong key what was expected, and the variables that set it."""
    lines = []
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        key = ".".join(parts)
        if item["type"] == "extra_forbidden":
            line = f"unknown key {key!r}"
        elif item["type"] == "missing":
            line = f"the key {key!r} is missing"
        else:
            line = f"{key or 'settings'}: {item['msg'].removeprefix('Value error, ')}"
        lines.append(line + _variables(parts[:-1] if item["type"] == "missing" else parts))
    return f"the settings in {path} (and SEGWATCH_* variables) are wrong: " + "; ".join(lines)


def _variables(parts: list[str]) -> str:
    """The variables that set a key or one below it, in brackets."""
    start = (_PREFIX + "__".join(parts)).upper()
    names = [name for name in sorted(os.environ) if parts and name.upper().startswith(start)]
    return f" (set by {', '.join(names)})" if names else ""


def _placed(settings: Settings, folder: Path) -> Settings:
    targets = {
        name: target.model_copy(
            update={
                "warehouse": _absolute(target.warehouse, "duckdb:///", folder),
                "registry": _absolute(target.registry, "sqlite:///", folder),
            }
        )
        for name, target in settings.targets.items()
    }
    return settings.model_copy(update={"targets": targets})


def _absolute(url: str, scheme: str, folder: Path) -> str:
    if not url.startswith(scheme):
        return url
    return scheme + str((folder / url.removeprefix(scheme)).absolute())


TEMPLATE = """\
# Settings of segwatch. Relative files are beside this file; ${NAME} is taken from the environment.
# Any key can be set for one run by a variable: SEGWATCH_METRICS__NEW_USERS__ALPHA=0.02

default_target = "dev"              # the target used without --target
# predictions_table = "predictions" # where predictions are written
# incidents_table = "incidents"     # where incidents are written
# labels_table = "labels"           # where what people say of incidents is written
# audit_table = "audit"             # where it is written who labelled, snoozed and promoted
# deliveries_table = "deliveries"   # where it is written which alerts were sent
# page_url = ""                     # address of `segwatch ui`, for links in alerts
# detectability_table = "detectability"  # where `segwatch evaluate` keeps the smallest change that each segment notices
# backtests_table = "backtests"     # where backtests are written

[targets.dev]
warehouse = "duckdb:///segwatch.duckdb"  # the database that holds the metric; segwatch adds its tables
registry = "sqlite:///mlflow.db"         # MLflow: a SQLite file, or the URL of a server

# The same metric in a Google Cloud project: `make create TARGET=prod PROJECT_ID=... BUCKET_NAME=...` (docs/gcp.md).
[targets.prod]
warehouse = "bigquery://${PROJECT_ID}/anomaly_detection"
registry = "vertex"
runner = "vertex"
bucket = "gs://${BUCKET_NAME}-${ENV}/segwatch"
image = "${REGION}-docker.pkg.dev/${PROJECT_ID}/segwatch-${ENV}/segwatch:${TAG}"
[targets.prod.google]
project = "${PROJECT_ID}"
location = "${REGION}"
service_account = "segwatch-pipeline-${ENV}@${PROJECT_ID}.iam.gserviceaccount.com"

# A metric: one value by time and dimensions. Edit table, time, value and dimensions for your own.
[metrics.new_users]
table = "new_users_metrics"
time = "created_at"                 # DATE, DATETIME or TIMESTAMP (UTC)
value = "new_users"
# denominator = "visits"            # what value is divided by: the metric is then a rate, as conversions of visits
dimensions = ["country_code", "platform", "channel"]  # one model for each combination
grain = "day"                       # day or hour
missing = "zero"                    # an absent row is: zero (a count) or gap (not observed)
# alpha = 0.01                      # prediction is -1 where the p-value is at most this
# fdr = 0.05                        # share of false alerts among the alerts of one period, across segments
# min_history = 90                  # periods a segment needs to get a model
# retrain_every = 7                 # age in days at which `segwatch run` trains anew
# holdout = 28                      # last periods of training that evaluate holds out
# min_impact = 0                    # difference from the expected value below which a row is no anomaly
# min_impact_share = 0              # the same, as a share of all segments' expected total
# adapt_after = 7                   # anomalous periods after which a lasting shift is the new normal
# max_rollup_order = 1              # sums watched too: 0 the total, 1 each value of a dimension, 2 pairs; -1 none
# holidays = {dimension = "country_code"}  # public holidays to expect, by a dimension whose values are countries
# calendar = "days"                 # a table of your own days: first_day, last_day, event, effect, any dimensions
# timezone = "UTC"                  # whose hours and weeks an hourly metric follows: Europe/Rome
# alert_budget = 0                  # alerts a week at most, in place of fdr; 0: fdr
# settle = 0                        # last periods that are not scored yet, as rows may still arrive late
# rescore = 0                       # periods before the last one that are scored again, for late rows
# max_alert_increase = 20           # alerts per 1,000 rows by which a new model may exceed the champion
# max_recall_loss = 0.1             # recall of injected changes by which it may fall short of the champion
# max_model_age = 0                 # days after training past which infer refuses a model; 0: any

# Alerts (pip install 'segwatch[alerts]'): a channel is an address as Apprise has it, a rule says what goes there.
# [channels.team]
# url = "${TEAM_WEBHOOK}"           # slack://..., mailto://..., json://HOST/PATH; read when a message is sent
# [alerts.big]
# channels = ["team"]
# metrics = ["new_users"]           # all without
# select = {country_code = ["it"]}  # incidents of these values, and of what holds them
# direction = "both"                # up, down or both
# min_impact = 100                  # in one period, in the metric's unit
# min_impact_share = 0.2            # as a share of what was expected of its segments
# min_duration = 1                  # periods
# also = ["worse", "resolved"]      # told beside that it is new
# group_by = "incident"             # one message for each incident, run, or value of a dimension
# max_messages = 10                 # of a run, and one more that names the rest
# quiet_hours = "22:00-07:00"       # nothing is sent; the next run tells
# digest_at = "08:00"               # in place of messages one digest a day
# timezone = "Europe/Rome"          # whose hours these are
"""
