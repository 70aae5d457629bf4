"""The page on a port, until it is stopped."""

from __future__ import annotations

import threading

from segwatch.core.window import Grain
from segwatch.errors import BackendError, SegwatchError
from segwatch.listening import listening_on, server_of, url_of
from segwatch.serving import ServingObserver
from segwatch.ui.app import application
from segwatch.ui.charts import warm
from segwatch.ui.guard import Access
from segwatch.ui.visit import Project


def serve(host: str, port: int, project: Project, access: Access, observer: ServingObserver) -> None:
    """The page was there until SIGTERM or SIGINT. port: 0 takes a free one.

    Raises BackendError if the port cannot be had, SettingsError if uvicorn is not installed.
    """
    server = server_of(application(project, access, observer), "ui")
    with listening_on(host, port) as listener:
        _warm(project)
        observer.listening(url_of(listener))
        server.run([listener])


def _warm(project: Project) -> None:
    """What the first request would wait for is loaded: the charts, the registry's and the warehouse's libraries."""
    grains: set[Grain] = {metric.grain for metric in project.settings.metrics.values()}

    def load() -> None:
        for grain in grains:
            warm(grain)
        try:
            project.registry().created()
            with project.reading() as warehouse:
                warehouse.created_tables()
        except (SegwatchError, BackendError):
            # A page that cannot read says so itself.
            return

    threading.Thread(target=load, name="warm", daemon=True).start()
