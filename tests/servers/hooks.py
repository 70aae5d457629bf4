"""A web hook and a mail server on loopback, which keep what they are sent."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.controller import Controller


@dataclass
class Hook:
    """A web hook. status: what it answers from now on. is_held: whether it takes a request and does not answer."""

    port: int = 0
    status: int = 200
    got: list[dict] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    is_held: bool = False

    @property
    def url(self):
        return f"json://127.0.0.1:{self.port}/hook"

    @property
    def titles(self):
        return [one["title"] for one in self.got]


@contextlib.contextmanager
def hook() -> Iterator[Hook]:
    state = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if state.status == 200:
                state.got.append(body)
            if state.is_held:
                state.released.wait(60)
            with contextlib.suppress(OSError):
                self.send_response(state.status)
                self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()


@dataclass
class Mailbox:
    port: int
    got: list[email.message.EmailMessage] = field(default_factory=list)

    @property
    def url(self):
        return f"mailto://127.0.0.1:{self.port}?from=segwatch@example.com&to=ops@example.com&mode=insecure"

    async def handle_DATA(self, server, session, envelope):  # noqa: ARG002
        self.got.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


@contextlib.contextmanager
def mailbox(port: int) -> Iterator[Mailbox]:
    box = Mailbox(port)
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield box
    finally:
        controller.stop()
