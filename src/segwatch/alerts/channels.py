"""Channels: where messages go, by Apprise, which knows more than a hundred services by their addresses."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any
from urllib.parse import unquote, urlsplit

from segwatch import google
from segwatch.alerts.plan import Message
from segwatch.errors import BackendError, SettingsError
from segwatch.settings import Settings, secret

_SECRET = "secret://"
# Shorter parts of an address are no secrets, and words of any sentence.
_SHORTEST_SECRET = 6


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
        with _said_by_apprise():
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
        with _said_by_apprise() as said:
            delivered = self._apprise.notify(
                title=message.title, body=message.body, notify_type=kind, body_format=apprise.NotifyFormat.TEXT
            )
            reason = _without(self._url, " ".join(said.getvalue().split()))
        if not delivered:
            raise BackendError(
                f"the channel {self._name} did not take it: {reason or 'it does not say why'}", retryable=True
            )


@contextmanager
def _said_by_apprise() -> Iterator[StringIO]:
    """What Apprise warns of in what runs inside; nobody else's log has it, as it may hold addresses."""
    import apprise

    logger = logging.getLogger("apprise")
    before, logger.propagate = logger.propagate, False
    try:
        with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
            yield said
    finally:
        logger.propagate = before


def _without(url: str, text: str) -> str:
    """The text without the address and the parts of it that may be secrets: all but a host with dots."""
    text = text.replace(url, "its address")
    parts = {part for form in (url, unquote(url)) for part in re.split(r"[/:@?&=,;#+\s]+", form)}
    for part in sorted(parts - {urlsplit(url).scheme}, key=len, reverse=True):
        is_host = "." in part and part.lower() == urlsplit(url).hostname
        if len(part) >= _SHORTEST_SECRET and not is_host:
            text = text.replace(part, "***")
    return text
