"""Channels: where messages go, by Apprise, which knows more than a hundred services by their addresses."""

from __future__ import annotations

import logging
from typing import Any

from segwatch import google
from segwatch.alerts.plan import Message
from segwatch.errors import BackendError, SettingsError
from segwatch.settings import Settings, secret

_SECRET = "secret://"


class Channel:
    """One of the settings' channels, with its address, which stays out of every error."""

    def __init__(self, settings: Settings, name: str) -> None:
        """Raises SettingsError if there is no such channel, its address cannot be had or is none that Apprise knows,
        BackendError if Secret Manager does not give it."""
        if name not in settings.channels:
            known = ", ".join(settings.channels) or "none"
            raise SettingsError(f"the settings have no channel {name!r}; they have {known}")
        try:
            import apprise
        except ModuleNotFoundError as error:
            raise SettingsError("alerts need Apprise: pip install 'segwatch[alerts]'") from error
        self._name = name
        self._url = secret(settings.channels[name].url, f"channels.{name}.url")
        if self._url.startswith(_SECRET):
            self._url = google.read_secret(self._url.removeprefix(_SECRET), settings.target(None).google)
        self._apprise: Any = apprise.Apprise()
        with apprise.LogCapture(level=logging.WARNING):
            is_known = self._apprise.add(self._url)
        if not is_known:
            raise SettingsError(
                f"channels.{name}.url is no address that Apprise knows: write it as json://HOST/PATH, mailto://... or"
                " slack://..."
            )

    @property
    def service(self) -> str:
        """What Apprise calls the service behind the address."""
        return str(self._apprise[0].service_name or self._apprise[0].schemas())

    def send(self, message: Message) -> None:
        """The message is delivered. Raises BackendError if it was not."""
        import apprise

        kind = apprise.NotifyType.SUCCESS if message.is_good else apprise.NotifyType.WARNING
        with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
            delivered = self._apprise.notify(
                title=message.title, body=message.body, notify_type=kind, body_format=apprise.NotifyFormat.TEXT
            )
            reason = " ".join(said.getvalue().split()).replace(self._url, "its address")
        if not delivered:
            raise BackendError(
                f"the channel {self._name} did not take it: {reason or 'it does not say why'}", retryable=True
            )
