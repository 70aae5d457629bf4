"""Cloud Storage for tests: the package gcp-storage-emulator in a process of its own, and a door in front of it.

The emulator ignores preconditions and knows no permissions. The door holds `ifGenerationMatch=0`, records every
request, and can be told to answer one itself, to lose an answer, or to let one hang. It proves what segwatch asks
and how it takes an answer; what Cloud Storage answers, and when, only a real bucket can show.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

UPLOADS = r"POST /upload/storage/v1/b/[^/]+/o\?"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def emulator() -> Iterator[str]:
    """The address of an emulator that keeps everything in memory."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "-q", "-H", "127.0.0.1"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_answers(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(200):
        assert process.poll() is None, "the storage emulator ended at once: is gcp-storage-emulator installed?"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the storage emulator did not start in 10 s")


@dataclass
class _Plan:
    """What happens to the n-th request that a pattern matches."""

    pattern: str
    n: int
    status: int = 0
    message: str = ""
    loses_answer: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event | None = None


class Door:
    """A server on 127.0.0.1 that passes requests on to an emulator. `url` is its address."""

    def __init__(self, emulator_url: str) -> None:
        self.emulator_url = emulator_url
        self.requests: list[str] = []
        self._plans: list[_Plan] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"door": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        for plan in self._plans:
            if plan.released is not None:
                plan.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def refuse(self, pattern: str, n: int, status: int, message: str) -> None:
        """The n-th matching request from now on gets this error."""
        self._plans.append(_Plan(pattern, n, status, message))

    def lose_answer(self, pattern: str, n: int) -> None:
        """The n-th matching request is carried out, but the connection breaks before the answer."""
        self._plans.append(_Plan(pattern, n, loses_answer=True))

    def hang(self, pattern: str, n: int) -> threading.Event:
        """The n-th matching request is never answered; the event is set when it has come."""
        plan = _Plan(pattern, n, released=threading.Event())
        self._plans.append(plan)
        return plan.reached

    def make_bucket(self, name: str) -> str:
        self._ask("POST", "/storage/v1/b", json.dumps({"name": name}).encode())
        return f"gs://{name}"

    def names(self, bucket: str) -> list[str]:
        """Names of all objects of a bucket; none where there is no such bucket."""
        try:
            said = json.loads(self._ask("GET", f"/storage/v1/b/{bucket.removeprefix('gs://')}/o"))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []
        return sorted(item["name"] for item in said.get("items", []))

    def put(self, uri: str, content: bytes) -> None:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}", content)

    def get(self, uri: str) -> bytes:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        return self._ask("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")

    def remove(self, uri: str) -> None:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        self._ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        kind = {"Content-Type": "application/json" if path == "/storage/v1/b" else "application/octet-stream"}
        request = urllib.request.Request(self.emulator_url + path, body, kind, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def _planned(self, line: str) -> _Plan | None:
        self.requests.append(line)
        for plan in self._plans:
            if re.match(plan.pattern, line):
                plan.n -= 1
                if plan.n == 0:
                    return plan
        return None


class _Handler(BaseHTTPRequestHandler):
    door: Door
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: in two, each answer waits 40 ms for an acknowledgement.
    wbufsize = 65536

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        plan = self.door._planned(f"{self.command} {self.path}")
        if plan is not None and plan.released is not None:
            plan.reached.set()
            plan.released.wait(60)
            self.close_connection = True
            return
        if plan is not None and plan.status:
            self._refuse(plan.status, plan.message)
        elif self._breaks_a_precondition(body):
            self._refuse(412, "At least one of the pre-conditions you specified did not hold.")
        else:
            self._pass_on(body, plan is not None and plan.loses_answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": {"code": status, "message": message, "errors": [{"message": message}]}}).encode()
        self._answer(status, [("Content-Type", "application/json")], body)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _breaks_a_precondition(self, body: bytes) -> bool:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        # A chunk of a resumable upload that began when the name was free carries the precondition on.
        if query.get("ifGenerationMatch") != ["0"] or "upload_id" in query:
            return False
        found = query.get("name") or re.findall(r'"name": ?"([^"]+)"', body[:5000].decode(errors="replace"))
        bucket = unquote(url.path.split("/b/")[1].split("/")[0])
        return found[0] in self.door.names(bucket)

    def _pass_on(self, body: bytes, loses_answer: bool) -> None:
        inner = http.client.HTTPConnection(urlsplit(self.door.emulator_url).netloc, timeout=30)
        try:
            inner.request(self.command, self.path, body, dict(self.headers.items()))
            answer = inner.getresponse()
            content = answer.read()
        finally:
            inner.close()
        if loses_answer:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(answer.status, answer.getheaders(), content)
