"""The command that shows the page."""

from __future__ import annotations

import datetime as dt
import getpass
import secrets
from typing import Annotated

import typer

from segwatch.cli.session import LogFormat, Session
from segwatch.errors import SettingsError


def ui(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but a loopback one asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8090,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which browsers reach the page; several add up.", show_default=False),
    ] = None,
    name_header: Annotated[
        str, typer.Option(help="Header in which a proxy in front says who asks, as X-Forwarded-User.")
    ] = "",
) -> None:
    """Show the live page until it is stopped; its token is SEGWATCH_UI_TOKEN, or one made now and printed once."""
    session: Session = context.obj
    settings = session.settings().for_target(session.target)
    try:
        from segwatch.ui.guard import Access, is_loopback
        from segwatch.ui.server import serve
        from segwatch.ui.visit import Project
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"segwatch ui needs {str(error.name).partition('.')[0]}: pip install 'segwatch[ui]'"
        ) from error
    from segwatch.console import JsonServingObserver, TextServingObserver
    from segwatch.settings import load_page

    given = load_page().token
    token = given.get_secret_value() if given else None
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
        typer.echo(f"token {token}", err=True)
    access = Access(
        token,
        frozenset(name.lower() for name in allow_host or ()),
        name_header,
        _user() if is_loopback(host) and not name_header else "",
    )
    observer = (JsonServingObserver if session.log_format is LogFormat.json else TextServingObserver)(
        lambda _, **rows: session.say("ui", **rows)
    )
    serve(host, port, Project(settings, lambda: dt.datetime.now(dt.UTC)), access, observer)


def _user() -> str:
    """Who started the page; empty where the system does not say."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
