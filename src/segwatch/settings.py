"""Settings: segwatch.toml and SEGWATCH_* variables, read here and nowhere else, frozen once read."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from segwatch.core.features import FeatureSet
from segwatch.core.window import Grain
from segwatch.errors import SettingsError

SETTINGS_FILE = "segwatch.toml"
RESERVED_COLUMNS = frozenset(
    "metric level segment_id ts value expected lower upper score p_value prediction is_anomaly direction status"
    " reason model_version run_id scored_at n_rows".split()
)
_DEFAULT_MIN_HISTORY: dict[Grain, int] = {"day": 90, "hour": 1008}

_T = TypeVar("_T")

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Column = Annotated[str, Field(min_length=1, max_length=300)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Endpoints(_Frozen):
    """Other addresses of Google's services: private endpoints, or emulators (http://, no credentials are sent)."""

    bigquery: str = Field("", description="BigQuery's REST API")
    bigquery_storage: str = Field("", description="BigQuery's Storage API (gRPC)")
    storage: str = Field("", description="Cloud Storage")
    vertex: str = Field("", description="Vertex AI")


class Google(_Frozen):
    """Which Google Cloud project a target uses, and how. Credentials are Application Default Credentials only."""

    project: str = Field("", description="Project that jobs run in and are billed to; default: the warehouse's")
    location: str = Field("us-central1", description="Region of the dataset, the bucket, the models and the jobs")
    impersonate: str = Field("", description="Service account to act as, by its e-mail address")
    maximum_bytes_billed: int = Field(
        200_000_000_000, ge=0, description="Bytes that one query may read before BigQuery refuses it; 0: any number"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of all that segwatch makes")
    endpoints: Endpoints = Field(default_factory=Endpoints, description="Other addresses of Google's services")


class Target(_Frozen):
    """Where a run reads, writes and keeps its models."""

    warehouse: str = Field(
        description="URL of the warehouse: duckdb:///FILE, relative to the settings file, or bigquery://PROJECT/DATASET"
    )
    registry: str = Field(description="Model registry: sqlite:///FILE or the URL of an MLflow server")
    bucket: str = Field("", description="Where models and the artifacts of runs are kept: gs://BUCKET/FOLDER")
    google: Google = Field(default_factory=Google, description="The Google Cloud project of a target")
    runner: Literal["local"] = Field("local", description="What executes the steps: local (in process)")


class Metric(_Frozen):
    """One metric of one table, and how it is watched."""

    table: str = Field(min_length=1, description="Table that holds the metric, a schema may precede it: sales.orders")
    time: Column = Field(description="Column of the time: DATE, DATETIME or TIMESTAMP (UTC)")
    value: Column = Field(description="Column of the value: a number")
    dimensions: tuple[Column, ...] = Field(min_length=1, description="Columns whose combinations are the segments")
    grain: Grain = Field("day", description="Length of a period: day or hour")
    missing: Literal["zero", "gap"] = Field(
        "zero",
        description="What an absent row means: zero (a count) or gap (not observed; values may be negative)",
    )
    alpha: float = Field(0.01, gt=0, lt=0.5, description="A row's prediction is -1 where its p-value is at most this")
    fdr: float = Field(
        0.1, gt=0, lt=1, description="Share of false alerts among the alerts of one period, across segments"
    )
    min_history: int = Field(0, ge=0, description="Periods a segment needs to get a model; 0: 90 days or 1008 hours")
    retrain_every: int = Field(7, ge=1, description="Age in days at which segwatch run trains anew")
    holdout: int = Field(28, ge=1, description="Last periods of training that evaluate holds out")

    @model_validator(mode="after")
    def _check(self) -> Metric:
        names = list(self.dimensions)
        for name in names:
            if name.lower() in RESERVED_COLUMNS:
                raise ValueError(
                    f"the dimension {name!r} has the name of a column of the predictions table: make a view that"
                    " renames it"
                )
        if len({name.lower() for name in [*names, self.time, self.value]}) != len(names) + 2:
            raise ValueError("time, value and dimensions must be different columns")
        if self.min_history == 0:
            object.__setattr__(self, "min_history", _DEFAULT_MIN_HISTORY[self.grain])
        return self

    @property
    def feature_set(self) -> FeatureSet:
        return FeatureSet(self.grain, is_count=self.missing == "zero")

    @property
    def level(self) -> str:
        return "/".join(self.dimensions)


class Settings(BaseSettings):
    """All that segwatch.toml says, overridden by SEGWATCH_* variables (`SEGWATCH_METRICS__NEW_USERS__ALPHA=0.02`)."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="SEGWATCH_", env_nested_delimiter="__")

    default_target: Name = Field("dev", description="Target used without --target")
    predictions_table: Name = Field("predictions", description="Table that predictions are written to")
    targets: dict[Name, Target] = Field(min_length=1)
    metrics: dict[Name, Metric] = Field(min_length=1)

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

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Dimensions of all metrics, each once, in order: the dimension columns of the predictions table."""
        return tuple(dict.fromkeys(name for metric in self.metrics.values() for name in metric.dimensions))


def _named(things: Mapping[str, _T], name: str, kind: str) -> _T:
    if name not in things:
        raise SettingsError(f"the settings have no {kind} {name!r}; they have {', '.join(things)}")
    return things[name]


def load_settings(path: Path) -> Settings:
    """The settings in a file, with SEGWATCH_* variables on top and `${NAME}` in its texts taken from the environment.

    Relative database files are placed beside the settings file.
    Raises SettingsError naming the file and the key if the file is missing or wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"there is no settings file {path}: run `segwatch init` to write one, or name it with --settings"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error}") from error
    try:
        settings = Settings(**_expand(document, path))
    except ValidationError as error:
        raise SettingsError(_explain(error, path)) from error
    settings.target(None)
    return _placed(settings, path.parent)


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path) for item in value]
    return re.sub(r"\$\{(\w+)\}", lambda m: _variable(m[1], path), value) if isinstance(value, str) else value


def _variable(name: str, path: Path) -> str:
    if name not in os.environ:
        raise SettingsError(f"{path} uses ${{{name}}}, but the environment has no variable {name}: export it")
    return os.environ[name]


def _explain(error: ValidationError, path: Path) -> str:
    """One line for each wrong key, with what was expected."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}")
        elif item["type"] == "missing":
            lines.append(f"the key {key!r} is missing")
        else:
            lines.append(f"{key or 'settings'}: {item['msg'].removeprefix('Value error, ')}")
    return f"the settings in {path} (and SEGWATCH_* variables) are wrong: " + "; ".join(lines)


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

[targets.dev]
warehouse = "duckdb:///segwatch.duckdb"  # the database that holds the metric; segwatch adds its tables
registry = "sqlite:///mlflow.db"         # MLflow: a SQLite file, or the URL of a server

# A metric: one value by time and dimensions. Edit table, time, value and dimensions for your own.
[metrics.new_users]
table = "new_users_metrics"
time = "created_at"                 # DATE, DATETIME or TIMESTAMP (UTC)
value = "new_users"
dimensions = ["country_code", "platform", "channel"]  # one model for each combination
grain = "day"                       # day or hour
missing = "zero"                    # an absent row is: zero (a count) or gap (not observed)
# alpha = 0.01                      # prediction is -1 where the p-value is at most this
# fdr = 0.1                         # share of false alerts among the alerts of one period, across segments
# min_history = 90                  # periods a segment needs to get a model
# retrain_every = 7                 # age in days at which `segwatch run` trains anew
# holdout = 28                      # last periods of training that evaluate holds out
"""
