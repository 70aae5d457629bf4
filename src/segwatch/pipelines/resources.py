"""What each step of a pipeline may use."""

from collections.abc import Callable
from typing import Any

from segwatch.settings import Settings


def at_work(settings: Settings) -> Callable[[Any, Any], Any]:
    """A function that gives a task its image, and the resources that the settings name for it."""

    def give(task: Any, image: Any) -> Any:
        step = settings.step(task.component_spec.name.replace("-", "_"))
        # Nothing is cached: the same arguments on another day find other rows, versions and aliases.
        task.set_container_image(image).set_caching_options(False)
        if step.cpu:
            task.set_cpu_limit(step.cpu)
        if step.memory:
            task.set_memory_limit(step.memory)
        if step.retries:
            task.set_retry(step.retries, backoff_duration="30s", backoff_factor=2.0)
        return task

    return give
