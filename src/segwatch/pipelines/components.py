"""The components: each calls one function of `segwatch.pipelines.tasks`, which holds what there is to it.

No `from __future__ import annotations` here: KFP reads the annotations themselves.
"""

from kfp import dsl

# Stands in the compiled pipeline until it is told its image.
IMAGE = "segwatch"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_training(settings: str, metric: str, as_of: str, start: str, scheduled: str) -> str:
    from segwatch.pipelines import tasks

    return tasks.plan_training(settings, metric, as_of, start, scheduled)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_scoring(settings: str, metric: str, as_of: str, start: str, end: str, scheduled: str) -> str:
    from segwatch.pipelines import tasks

    return tasks.plan_scoring(settings, metric, as_of, start, end, scheduled)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def extract(settings: str, metric: str, window: str, observations: dsl.Output[dsl.Dataset]) -> int:
    from segwatch.pipelines import tasks

    return tasks.extract(settings, metric, window, observations.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preprocess(
    settings: str,
    metric: str,
    window: str,
    select: list[str],
    observations: dsl.Input[dsl.Dataset],
    panel: dsl.Output[dsl.Dataset],
) -> None:
    from segwatch.pipelines import tasks

    tasks.preprocess(settings, metric, window, select, observations.path, panel.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    settings: str,
    metric: str,
    panel: dsl.Input[dsl.Dataset],
    shard: int,
    shards: list[int],
    part: dsl.Output[dsl.Model],
) -> None:
    from segwatch.pipelines import tasks

    tasks.train(settings, metric, panel.path, shard, len(shards), part.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def join(
    settings: str,
    metric: str,
    panel: dsl.Input[dsl.Dataset],
    parts: dsl.Input[list[dsl.Model]],
    bundle: dsl.Output[dsl.Model],
) -> None:
    from segwatch.pipelines import tasks

    tasks.join(settings, metric, panel.path, [part.path for part in parts], bundle.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    settings: str,
    metric: str,
    panel: dsl.Input[dsl.Dataset],
    bundle: dsl.Input[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    import dataclasses
    import json

    from segwatch.pipelines import tasks

    found = tasks.evaluate(settings, metric, panel.path, bundle.path)
    for name, value in found.metrics.items():
        metrics.log_metric(name, value)
    return json.dumps(dataclasses.asdict(found))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    settings: str,
    metric: str,
    bundle: dsl.Input[dsl.Model],
    evaluation: str,
    n_rows: int,
    select: list[str],
    force: bool,
    job: str,
    git_revision: str,
    summary: dsl.Output[dsl.Artifact],
) -> str:
    from segwatch.pipelines import tasks

    run = (job, git_revision, summary.path)
    return tasks.register(settings, metric, bundle.path, evaluation, n_rows, select, force, *run)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def resolve(settings: str, metric: str, bundle: dsl.Output[dsl.Model]) -> str:
    from segwatch.pipelines import tasks

    return tasks.resolve(settings, metric, bundle.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def featurize(settings: str, metric: str, window: str, bundle: dsl.Input[dsl.Model], job: str) -> str:
    from segwatch.pipelines import tasks

    return tasks.featurize(settings, metric, window, bundle.path, job)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def predict(
    settings: str,
    metric: str,
    features: str,
    version: str,
    bundle: dsl.Input[dsl.Model],
    job: str,
    predictions: dsl.Output[dsl.Dataset],
) -> None:
    from segwatch.pipelines import tasks

    tasks.predict(settings, metric, features, version, bundle.path, job, predictions.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(
    settings: str,
    metric: str,
    window: str,
    select: list[str],
    predictions: dsl.Input[dsl.Dataset],
    version: str,
    summary: dsl.Output[dsl.Artifact],
) -> int:
    from segwatch.pipelines import tasks

    return tasks.publish(settings, metric, window, select, predictions.path, version, summary.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(settings: str, metric: str, page: dsl.Output[dsl.HTML]) -> None:
    from segwatch.pipelines import tasks

    tasks.report(settings, metric, page.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tidy(settings: str, metric: str, job: str) -> None:
    from segwatch.pipelines import tasks

    tasks.tidy(settings, metric, job)
