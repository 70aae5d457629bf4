"""The batch prediction pipeline: plan, resolve -> featurize -> predict -> publish -> report, and tidy in any case."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from segwatch.pipelines import components
from segwatch.pipelines.resources import at_work
from segwatch.settings import Settings

NAME = "segwatch-infer"


def inference_pipeline(settings: Settings, scheduled: str) -> Callable[..., Any]:
    """The pipeline, its steps given the settings' resources; scheduled: as in `training_pipeline`."""
    at = at_work(settings)

    @dsl.pipeline(name=NAME, description="Scores every segment and publishes the predictions.")
    def infer(
        settings: str, metric: str, image: str, select: list[str], as_of: str = "", start: str = "", end: str = ""
    ) -> None:
        """Parameters: settings as JSON; select: dimension=value texts; as_of, or start and end."""
        job = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
        common = {"settings": settings, "metric": metric}
        # The temporary table goes whatever happens; should even this step die, the table expires.
        with dsl.ExitHandler(at(components.tidy(**common, job=job), image)):
            window = at(
                components.plan_scoring(**common, as_of=as_of, start=start, end=end, scheduled=scheduled), image
            ).output
            resolved = at(components.resolve(**common), image)
            bundle, version = resolved.outputs["bundle"], resolved.outputs["Output"]
            features = at(components.featurize(**common, window=window, bundle=bundle, job=job), image).output
            predicted = at(
                components.predict(**common, features=features, version=version, bundle=bundle, job=job), image
            )
            published = at(
                components.publish(
                    **common,
                    window=window,
                    select=select,
                    predictions=predicted.outputs["predictions"],
                    version=version,
                ),
                image,
            )
            at(components.report(**common), image).after(published)

    pipeline: Callable[..., Any] = infer
    return pipeline
