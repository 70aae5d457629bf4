"""Channels: where messages go, by Apprise, which knows more than a hundred services by their addresses."""

from __future__ import annotations

import logging
from collections.abc import Callable

from segwatch.alerts.plan import Message
from segwatch.errors import BackendError, SettingsError

Send = Callable[[Message], None]
"""The message is delivered. Raises BackendError if it was not, SettingsError if the channel is none."""


def send(name: str, url: str, message: Message) -> None:
    """The message is delivered to the channel of that name, at an address that stays out of every error.

    Raises as `Send`.
    """
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise SettingsError("alerts need Apprise: pip install 'segwatch[alerts]'") from error
    channel = apprise.Apprise()
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
        if not channel.add(url):
            raise SettingsError(
                f"channels.{name}.url is no address that Apprise knows: write it as json://HOST/PATH, mailto://... or"
                " slack://..."
            )
        kind = apprise.NotifyType.SUCCESS if message.is_good else apprise.NotifyType.WARNING
        delivered = channel.notify(
            title=message.title, body=message.body, notify_type=kind, body_format=apprise.NotifyFormat.TEXT
        )
        reason = " ".join(said.getvalue().split()).replace(url, "its address")
    if not delivered:
        raise BackendError(f"the channel {name} did not take it: {reason or 'it does not say why'}", retryable=True)
