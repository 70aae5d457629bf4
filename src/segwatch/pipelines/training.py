"""The training pipeline: plan -> extract -> preprocess -> train in shards -> join -> evaluate -> register."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from segwatch.pipelines import components
from segwatch.pipelines.resources import at_work
from segwatch.settings import Settings

NAME = "segwatch-train"


def training_pipeline(settings: Settings, scheduled: str) -> Callable[..., Any]:
    """The pipeline, its steps given the settings' resources.

    scheduled: the time that a schedule runs it for, or KFP's placeholder of it.
    """
    at = at_work(settings)

    @dsl.pipeline(name=NAME, description="One One-Class SVM per segment, registered as one version.")
    def train(
        settings: str,
        metric: str,
        image: str,
        shards: list[int],
        select: list[str],
        as_of: str = "",
        start: str = "",
        force: bool = False,
        git_revision: str = "",
    ) -> None:
        """Parameters: settings as JSON; shards: 0, 1, ... one for each; select: dimension=value texts."""
        job = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
        common = {"settings": settings, "metric": metric}
        planned = at(components.plan_training(**common, as_of=as_of, start=start, scheduled=scheduled), image)
        window = planned.output
        extracted = at(components.extract(**common, window=window), image)
        panel = at(
            components.preprocess(
                **common, window=window, select=select, observations=extracted.outputs["observations"]
            ),
            image,
        ).outputs["panel"]
        with dsl.ParallelFor(shards) as shard:
            part = at(components.train(**common, panel=panel, shard=shard, shards=shards), image)
        joined = at(components.join(**common, panel=panel, parts=dsl.Collected(part.outputs["part"])), image)
        evaluated = at(components.evaluate(**common, panel=panel, bundle=joined.outputs["bundle"]), image)
        at(
            components.register(
                **common,
                bundle=joined.outputs["bundle"],
                evaluation=evaluated.outputs["Output"],
                n_rows=extracted.outputs["Output"],
                select=select,
                force=force,
                job=job,
                git_revision=git_revision,
            ),
            image,
        )

    pipeline: Callable[..., Any] = train
    return pipeline
