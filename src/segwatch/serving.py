"""The prediction server: what Vertex AI asks of a container, and what a laptop can ask as well.

    GET  health route     200 once the model is loaded and its digests are checked, 503 before
    POST predict route    {"instances": [...]} -> {"predictions": [...]}

An instance names its segment, by `segment_id` or by the metric's dimensions, a roll-up by `segment_id` alone, and holds
every feature. Its prediction is {"prediction": 1 or -1, "score", "p_value", "segment_id"}; where the segment has no
model these are null, and status and reason say why. Whatever is refused is answered with {"error": a sentence}.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segwatch.core.bundle import ModelBundle
from segwatch.core.features import FEATURES
from segwatch.core.panel import Floats
from segwatch.core.segment import NULL, segment_id
from segwatch.errors import DataError
from segwatch.listening import listening_on, server_of, url_of
from segwatch.settings import Google
from segwatch.storage import Storage

MAX_BODY = 3 * 2**19
"""Bytes of a request: Vertex AI sends none larger than 1.5 MB."""
MAX_INSTANCES = 5000
"""Instances of a request: their predictions stay under the 1.5 MB that Vertex AI takes back."""
MAX_OPEN = 256
"""Requests read or scored at once; with MAX_BODY this bounds the memory that clients can take."""
BODY_SECONDS = 30.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ServingObserver(Protocol):
    """Is told what the server does."""

    def listening(self, url: str) -> None:
        """The port is open; the model is still being loaded."""

    def ready(self, bundle: ModelBundle, seconds: float) -> None:
        """The model is loaded."""

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request was answered."""

    def failed(self, message: str) -> None:
        """A request met a bug in segwatch, described in one line."""


@dataclass(frozen=True)
class Reply:
    """An answer: its status and its JSON body. allow: the methods that the path knows, where it is a 405."""

    status: int
    body: bytes
    allow: str = ""


def refusal(status: int, sentence: str, allow: str = "") -> Reply:
    """The answer that refuses a request."""
    return Reply(status, json.dumps({"error": sentence}).encode(), allow)


def open_model(source: str, to: Path, google: Google) -> ModelBundle:
    """The bundle in a folder, or at a gs:// URI, which is then downloaded to `to`.

    Raises ModelError if it is missing or damaged, BackendError if Cloud Storage says no.
    """
    if not source.startswith("gs://"):
        return ModelBundle.open(Path(source))
    return ModelBundle.open(Storage(google).download(source, to))


def answer(bundle: ModelBundle, body: bytes) -> bytes:
    """The body that answers a request's body. Raises DataError naming the field that is wrong."""
    ids, X = read_instances(body, bundle.dimensions)
    return json.dumps({"predictions": predictions(bundle, ids, X)}, allow_nan=False).encode()


def predictions(bundle: ModelBundle, ids: Sequence[str], X: Floats) -> list[dict[str, Any]]:
    """One prediction for each row of X (n_rows, n_features), null where its segment has no model."""
    position = bundle.history.segments.position
    places = [position.get(id_) for id_ in ids]
    scorable = [row for row, place in enumerate(places) if place is not None and bundle.status[place] == "ok"]
    found = [_unscored(bundle, id_, place) for id_, place in zip(ids, places, strict=True)]
    scored = bundle.predict([ids[row] for row in scorable], X[scorable])
    for row, *values in zip(scorable, *(column.tolist() for column in scored), strict=True):
        found[row] = dict(zip(("prediction", "score", "p_value"), values, strict=True), segment_id=ids[row])
    return found


def _unscored(bundle: ModelBundle, id_: str, place: int | None) -> dict[str, Any]:
    if place is None:
        status, reason = "new_segment", f"no row in {bundle.window}, on which the model was trained"
    else:
        status, reason = bundle.status[place], bundle.reason[place] or bundle.status[place]
    return {
        "prediction": None,
        "score": None,
        "p_value": None,
        "segment_id": id_,
        "status": status,
        "reason": reason,
    }


def read_instances(body: bytes, dimensions: Sequence[str]) -> tuple[list[str], Floats]:
    """Segment ids and features (n_rows, n_features) of the instances in a request's body.

    Raises DataError naming the field that is wrong.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {_short(str(error))}") from error
    if not isinstance(document, dict):
        raise DataError(f'the body must be {{"instances": [...]}}, not {_kind(document)}')
    _refuse_unknown(document, ("instances", "parameters"), "")
    _check_parameters(document.get("parameters"))
    instances = document.get("instances")
    if not isinstance(instances, list) or not instances:
        raise DataError("instances: must be a list of at least one instance")
    if len(instances) > MAX_INSTANCES:
        raise DataError(f"instances: {len(instances)} are too many, at most {MAX_INSTANCES} are answered at once")
    rows = [_read_instance(f"instances[{i}]", instance, dimensions) for i, instance in enumerate(instances)]
    return [id_ for id_, _ in rows], np.array([values for _, values in rows])


def _check_parameters(parameters: Any) -> None:
    """Vertex AI may send parameters; the model knows none, and one that had no effect would mislead."""
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise DataError(f"parameters: must be an object, not {_kind(parameters)}")
    _refuse_unknown(parameters, (), "parameters.")


def _read_instance(place: str, instance: Any, dimensions: Sequence[str]) -> tuple[str, list[float]]:
    if not isinstance(instance, dict):
        raise DataError(f"{place}: must be an object, not {_kind(instance)}")
    # A dimension with the name of a feature leaves only the id to name a segment.
    keys = ("segment_id",) if set(dimensions) & set(FEATURES) else ("segment_id", *dimensions)
    _refuse_unknown(instance, (*keys, *FEATURES), f"{place}.")
    values = [_number(f"{place}.{name}", instance, name) for name in FEATURES]
    return _segment(place, instance, keys[1:]), values


def _segment(place: str, instance: dict[str, Any], dimensions: Sequence[str]) -> str:
    given = [name for name in dimensions if name in instance]
    if "segment_id" in instance:
        if given:
            raise DataError(f"{place}.{given[0]}: the segment is named by segment_id already, give one of the two")
        return _text(f"{place}.segment_id", instance["segment_id"])
    if not given:
        either = f", or name the segment by {', '.join(dimensions)}" if dimensions else ""
        raise DataError(f"{place}.segment_id: is missing{either}")
    absent = [name for name in dimensions if name not in instance]
    if absent:
        raise DataError(
            f"{place}.{absent[0]}: is missing; a segment is named by {', '.join(dimensions)}, a roll-up by its"
            " segment_id alone"
        )
    values = [instance[name] for name in dimensions]
    texts = (NULL if v is None else _text(f"{place}.{n}", v) for n, v in zip(dimensions, values, strict=True))
    return segment_id(dimensions, list(texts))


def _text(place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: must be text, not {_kind(value)}")
    return value


def _number(place: str, instance: dict[str, Any], name: str) -> float:
    if name not in instance:
        raise DataError(f"{place}: is missing; an instance holds {', '.join(FEATURES)}")
    value = instance[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{place}: must be a number, not {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{place}: must be a finite number, not {number}")
    return number


def _refuse_unknown(document: dict[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in document:
        if key not in known:
            raise DataError(f"{prefix}{_short(key)}: is unknown; known here: {', '.join(known) or 'nothing'}")


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass
class Application:
    """The two routes, as an ASGI application. It answers 503 until `bundle` is there."""

    health_route: str
    predict_route: str
    observer: ServingObserver
    pool: ThreadPoolExecutor
    bundle: ModelBundle | None = None
    _open: int = field(default=0, init=False)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        reply = await self._reply(scope, receive)
        if reply is None:
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply.body)).encode())]
        if reply.allow:
            headers.append((b"allow", reply.allow.encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        self.observer.answered(scope["method"], scope["path"], reply.status, time.perf_counter() - start)

    async def _reply(self, scope: Message, receive: Receive) -> Reply | None:
        """The answer to a request; None if the client has left."""
        routes = {self.health_route: ("GET", "HEAD"), self.predict_route: ("POST",)}
        path, method = scope["path"], scope["method"]
        if path not in routes:
            return refusal(404, f"there is nothing at {_short(path)}: see {' and '.join(routes)}")
        if method not in routes[path]:
            allowed = ", ".join(routes[path])
            return refusal(405, f"{path} answers {allowed}, not {_short(method)}", allowed)
        if self.bundle is None:
            return refusal(503, "the model is still being loaded: try again")
        if path == self.health_route:
            return Reply(200, b'{"status": "ready"}')
        if self._open >= MAX_OPEN:
            return refusal(503, f"{MAX_OPEN} requests are open already: try again")
        self._open += 1
        try:
            return await self._predict(self.bundle, scope, receive)
        finally:
            self._open -= 1

    async def _predict(self, bundle: ModelBundle, scope: Message, receive: Receive) -> Reply | None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read_body(scope, receive)
            if body is None or isinstance(body, Reply):
                return body
            # Parsed and scored in a thread, so that a health check never waits for a large request.
            return Reply(200, await asyncio.get_running_loop().run_in_executor(self.pool, answer, bundle, body))
        except DataError as error:
            return refusal(400, str(error))
        except TimeoutError:
            return refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds")
        except Exception as error:  # noqa: BLE001 - one request that meets a bug must not end the others
            self.observer.failed(one_line(error))
            return refusal(500, "segwatch met a bug in itself: its log has a line about it")


async def _read_body(scope: Message, receive: Receive) -> bytes | Reply | None:
    """The whole body; a refusal where it is too large, None where the client has left."""
    too_large = refusal(413, f"the body is over {MAX_BODY / 2**20} MB: send fewer instances at once")
    # Refused before it is read where its length is said, so that a client that asks first does not send it.
    if int(dict(scope["headers"]).get(b"content-length", 0)) > MAX_BODY:
        return too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return too_large
        if not message.get("more_body", False):
            return bytes(body)


def one_line(error: Exception) -> str:
    """What went wrong, and the innermost line of code that it went wrong at."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return " ".join(f"a request failed at {place}: {type(error).__name__}: {error}".split())


def serve(
    host: str,
    port: int,
    health_route: str,
    predict_route: str,
    load: Callable[[Path], ModelBundle],
    observer: ServingObserver,
) -> None:
    """Requests were answered until SIGTERM or SIGINT, the open ones to their end.

    port: 0 takes a free one. load: opens the model, given a path under which it may put files until the server ends;
    it runs while health checks are answered already, as Vertex AI restarts a container that does not listen.
    Raises what `load` raised, BackendError if the port cannot be had, SettingsError if uvicorn is not installed.
    """
    failures: list[BaseException] = []
    with (
        listening_on(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="segwatch-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(os.cpu_count(), "score") as pool,
    ):
        application = Application(health_route, predict_route, observer, pool)
        server = server_of(application, "serve")

        def loads() -> None:
            start = time.perf_counter()
            try:
                application.bundle = bundle = _warmed(load(Path(folder) / "model"))
            except BaseException as error:  # noqa: BLE001 - raised again where the server has stopped
                failures.append(error)
                server.should_exit = True
            else:
                observer.ready(bundle, time.perf_counter() - start)

        observer.listening(url_of(listener))
        # A daemon, so that a stop during a long download does not wait for it.
        threading.Thread(target=loads, name="load", daemon=True).start()
        server.run([listener])
    if failures:
        raise failures[0]


def _warmed(bundle: ModelBundle) -> ModelBundle:
    """The bundle with all read that every request needs. Raises ModelError if it was trained on other features."""
    _ = bundle.feature_set, bundle.status, bundle.reason, bundle.history.segments.position
    return bundle
