"""What the servers share: a port that is had or refused in one sentence, and a stop that finishes what is open."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segwatch.errors import BackendError, SettingsError

STOP_SECONDS = 25


def server_of(application: Any, extra: str) -> Any:
    """A uvicorn server of an ASGI application, to be run on a listener; SIGTERM and SIGINT stop it.

    Open requests are answered to their end. Raises SettingsError naming the extra if uvicorn is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise SettingsError(f"segwatch {extra} needs uvicorn: pip install 'segwatch[{extra}]'") from error
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            interface="asgi3",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            # Longer than the pause between two requests of a client that keeps its connection.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
    # uvicorn raises the signal that stopped it once more; without a handler that would be the exit code.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    return server


@contextmanager
def listening_on(host: str, port: int) -> Iterator[socket.socket]:
    """The port is open; 0 takes a free one. Raises BackendError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once only on sockets that say they are TCP; others wait 40 ms for the client.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        # A restart does not wait for the old server's connections to be forgotten.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            reason = error.strerror or str(error)
            raise BackendError(
                f"cannot listen on {host} port {port} ({reason}): stop what holds it, or choose others by --host and"
                " --port"
            ) from error
        yield listener


def url_of(listener: socket.socket) -> str:
    """Where the listener is found."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
