"""A server on 127.0.0.1 that speaks the REST form of Vertex AI's model service, for the real client library.

Every body is parsed into the real message type and every answer is made from one, so a field that does not exist is
refused; names, labels, aliases and filters are held to the documented forms. What is documented nowhere is invented
here, and proves nothing about Vertex AI: the words of errors, which code a refusal has, when an operation is done, in
which order lists come, what an etag covers, and that a version's number is never used again.

Other services add their routes: `fake.route("POST", pattern, handler)`.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from google.cloud.aiplatform_v1 import types
from google.longrunning.operations_pb2 import Operation
from google.protobuf import any_pb2, empty_pb2, json_format

PROJECT_NUMBER = "123456789012"
_PLACE = r"/v1/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)"
_MODEL = rf"{_PLACE}/models/(?P<model>[^/:@]+)(?:@(?P<version>[^/:]+))?"
_ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class Refusal(Exception):
    """Becomes one of Google's JSON errors."""

    def __init__(self, code: int, message: str, status: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.status = status or _STATUS[code]


@dataclass(frozen=True)
class Request:
    """One call. arguments: the named groups of the route's pattern."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    arguments: Mapping[str, str | None]

    def message(self, kind: Any) -> Any:
        """The body as a message of that type; what the type does not have is refused."""
        try:
            return kind.wrap(json_format.Parse(self.body or b"{}", kind.pb()()))
        except json_format.ParseError as error:
            raise Refusal(400, f"Invalid JSON payload received. {error}") from error


Handler = Callable[[Request], Any]


@dataclass
class _Plan:
    pattern: str
    n: int
    code: int
    message: str
    after: bool


@dataclass
class _Model:
    """A model, its own labels, its versions and which of them each alias names."""

    display_name: str
    labels: dict[str, str]
    versions: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    last: int = 0
    etag: str = field(default_factory=lambda: secrets.token_hex(8))


class VertexFake:
    """The server and its state. `url` is its address, `calls` the method and path of every request."""

    def __init__(self, page_size: int = 1000) -> None:
        self.calls: list[str] = []
        self.models: dict[str, _Model] = {}
        self.bodies: list[bytes] = []
        # Operations are done at once, unless this says after how many looks.
        self.looks_until_done = 0
        self._page_size = page_size
        self._operations: dict[str, tuple[Operation, int]] = {}
        self._plans: list[_Plan] = []
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []
        self._lock = threading.RLock()
        self._add_routes()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def route(self, method: str, pattern: str, handler: Handler) -> None:
        """Requests whose path matches the whole pattern go to the handler, which returns a message."""
        self._routes.append((method, re.compile(pattern), handler))

    def fail(self, pattern: str, n: int, code: int, message: str, *, after: bool = False) -> None:
        """The n-th call whose `METHOD path` the pattern matches is refused; with `after`, once it is carried out."""
        self._plans.append(_Plan(pattern, n, code, message, after))

    def _add_routes(self) -> None:
        self.route("POST", rf"{_PLACE}/models:upload", self._upload)
        self.route("GET", rf"{_PLACE}/models", self._list)
        self.route("GET", _MODEL, self._get)
        self.route("PATCH", _MODEL, self._update)
        self.route("DELETE", _MODEL, self._delete)
        self.route("GET", rf"{_MODEL}:listVersions", self._list_versions)
        self.route("POST", rf"{_MODEL}:mergeVersionAliases", self._merge_aliases)
        self.route("DELETE", rf"{_MODEL}:deleteVersion", self._delete_version)
        # The library looks for operations below /ui.
        operations = _PLACE.replace("/v1/", "/(?:v1|ui)/") + r"(?:/[a-zA-Z]+/[^/]+)?/operations/(?P<operation>[^/]+)"
        self.route("GET", operations, self._operation)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        url = urlsplit(target)
        path = unquote(url.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        with self._lock:
            self.calls.append(f"{method} {path}")
            self.bodies.append(body)
            try:
                plan = self._planned(f"{method} {path}")
                if plan is not None and not plan.after:
                    raise Refusal(plan.code, plan.message)
                said = self._carry_out(method, path, query, body)
                if plan is not None:
                    raise Refusal(plan.code, plan.message)
                return 200, said
            except Refusal as refusal:
                error = {"code": refusal.code, "message": str(refusal), "status": refusal.status}
                return refusal.code, json.dumps({"error": error}).encode()

    def _planned(self, line: str) -> _Plan | None:
        for plan in self._plans:
            if re.match(plan.pattern, line):
                plan.n -= 1
                if plan.n == 0:
                    return plan
        return None

    def _carry_out(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> bytes:
        for verb, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if verb == method and match:
                said = handler(Request(method, path, query, body, match.groupdict()))
                message = said if isinstance(said, (Operation, empty_pb2.Empty)) else type(said).pb(said)
                return json_format.MessageToJson(message).encode()
        raise Refusal(404, f"The fake has no route for {method} {path}")

    # Operations

    def done(self, parent: str, response: Any, metadata: Any = None) -> Operation:
        """The operation that made the response, as the service returns it."""
        operation = Operation(name=f"{parent}/operations/{secrets.randbelow(10**18)}", done=True)
        operation.response.Pack(response if isinstance(response, empty_pb2.Empty) else type(response).pb(response))
        if metadata is not None:
            packed = any_pb2.Any()
            packed.Pack(type(metadata).pb(metadata))
            operation.metadata.CopyFrom(packed)
        if not self.looks_until_done:
            return operation
        self._operations[operation.name.rpartition("/")[2]] = (operation, self.looks_until_done)
        return Operation(name=operation.name, metadata=operation.metadata)

    def _operation(self, request: Request) -> Operation:
        key = str(request.arguments["operation"])
        if key not in self._operations:
            raise Refusal(404, f"Operation {key} not found.")
        operation, looks = self._operations[key]
        self._operations[key] = (operation, looks - 1)
        return operation if looks <= 1 else Operation(name=operation.name, metadata=operation.metadata)

    # Models

    def _upload(self, request: Request) -> Operation:
        asked = request.message(types.UploadModelRequest)
        self._require_valid(asked.model)
        if asked.parent_model and asked.model_id:
            raise Refusal(400, "Only one of parent_model and model_id can be set.")
        if asked.parent_model:
            key = asked.parent_model.rpartition("/")[2]
            if key not in self.models:
                raise Refusal(404, f"The Model {asked.parent_model} does not exist.")
        else:
            key = asked.model_id or str(secrets.randbelow(10**18))
            if asked.model_id and not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}", asked.model_id):
                raise Refusal(400, f"Invalid model_id: {asked.model_id}")
            if key in self.models:
                raise Refusal(409, f"Model {key} already exists.")
            self.models[key] = _Model(asked.model.display_name, {})
        number = self._add_version(key, asked.model)
        name = f"projects/{PROJECT_NUMBER}/locations/{request.arguments['location']}/models/{key}"
        return self.done(
            name,
            types.UploadModelResponse(model=name, model_version_id=number),
            types.UploadModelOperationMetadata(),
        )

    def _add_version(self, key: str, asked: Any) -> str:
        model = self.models[key]
        model.last += 1
        number = str(model.last)
        kept = types.Model(asked)
        kept.version_id = number
        kept.version_create_time = datetime.now(UTC)
        # The specification is input only.
        kept.container_spec = None
        model.versions[number] = kept
        for alias in [*asked.version_aliases, *(["default"] if model.last == 1 else [])]:
            model.aliases[alias] = number
        return number

    @staticmethod
    def _require_valid(model: Any) -> None:
        if not model.display_name or len(model.display_name) > 128:
            raise Refusal(400, "display_name must have 1 to 128 characters.")
        if not re.fullmatch(r"gs://[^/]+/.+", model.artifact_uri):
            raise Refusal(400, f"artifact_uri is not a Cloud Storage directory: {model.artifact_uri!r}")
        if not model.container_spec.image_uri:
            raise Refusal(400, "container_spec.image_uri is required.")
        for route in (model.container_spec.predict_route, model.container_spec.health_route):
            if route and not route.startswith("/"):
                raise Refusal(400, f"A route must begin with /: {route}")
        _require_labels(model.labels)
        for alias in model.version_aliases:
            _require_alias(alias)

    def _found(self, request: Request) -> tuple[str, _Model]:
        key = str(request.arguments["model"])
        if key not in self.models:
            raise Refusal(404, f"The Model does not exist: {request.path.removeprefix('/v1/')}")
        return key, self.models[key]

    def _version(self, request: Request, *, required: bool = False) -> tuple[str, _Model, str]:
        key, model = self._found(request)
        reference = request.arguments["version"]
        if reference is None and required:
            raise Refusal(400, "The version must be in the name.")
        number = model.aliases.get(reference or "default", reference)
        if number not in model.versions:
            raise Refusal(404, f"Model version {key}@{reference} does not exist.")
        return key, model, str(number)

    def _shown(self, request: Request, key: str, number: str, *, versioned: bool = False) -> Any:
        model = self.models[key]
        shown = types.Model(model.versions[number])
        suffix = f"@{number}" if versioned else ""
        shown.name = f"projects/{PROJECT_NUMBER}/locations/{request.arguments['location']}/models/{key}{suffix}"
        shown.display_name = model.display_name
        shown.version_aliases = [alias for alias, at in model.aliases.items() if at == number]
        shown.labels = {**model.labels, **dict(model.versions[number].labels)}
        shown.etag = model.etag
        return shown

    def _get(self, request: Request) -> Any:
        key, _, number = self._version(request)
        return self._shown(request, key, number)

    def _list(self, request: Request) -> Any:
        wanted = _filter(request.query.get("filter", ""))
        shown = [self._shown(request, key, model.aliases["default"]) for key, model in sorted(self.models.items())]
        page, token = self._page(request, [model for model in shown if wanted(model)])
        return types.ListModelsResponse(models=page, next_page_token=token)

    def _list_versions(self, request: Request) -> Any:
        key, model = self._found(request)
        shown = [self._shown(request, key, number, versioned=True) for number in model.versions]
        page, token = self._page(request, shown)
        return types.ListModelVersionsResponse(models=page, next_page_token=token)

    def _page(self, request: Request, items: list[Any]) -> tuple[list[Any], str]:
        size = min(int(request.query.get("pageSize", self._page_size)), self._page_size)
        start = int(request.query.get("pageToken", "0") or 0)
        end = start + size
        return items[start:end], str(end) if end < len(items) else ""

    def _merge_aliases(self, request: Request) -> Any:
        key, model, number = self._version(request, required=True)
        asked = request.message(types.MergeVersionAliasesRequest)
        for alias in asked.version_aliases:
            _require_alias(alias.removeprefix("-"))
            if alias == "-default":
                raise Refusal(400, "A model must have a default version.", "FAILED_PRECONDITION")
            if not alias.startswith("-"):
                model.aliases[alias] = number
            elif model.aliases.get(alias[1:]) == number:
                del model.aliases[alias[1:]]
        return self._shown(request, key, number)

    def _update(self, request: Request) -> Any:
        key, model, number = self._version(request)
        asked = request.message(types.Model)
        paths = set(request.query.get("updateMask", "").split(","))
        if asked.etag and asked.etag != model.etag:
            raise Refusal(409, "The etag does not match.", "ABORTED")
        allowed = {"labels", "versionDescription"} if request.arguments["version"] else {
            "labels", "displayName", "description"
        }  # fmt: skip
        if not paths <= allowed:
            raise Refusal(400, f"Cannot update {', '.join(sorted(paths - allowed))} here.", "FAILED_PRECONDITION")
        _require_labels(asked.labels)
        if "labels" in paths:
            if request.arguments["version"]:
                model.versions[number].labels = dict(asked.labels)
            else:
                model.labels = dict(asked.labels)
        if "displayName" in paths:
            model.display_name = asked.display_name
        model.etag = secrets.token_hex(8)
        return self._shown(request, key, number)

    def _delete(self, request: Request) -> Operation:
        key, _ = self._found(request)
        if request.arguments["version"]:
            raise Refusal(400, "A model is deleted without a version in its name.")
        del self.models[key]
        return self._deleted(request)

    def _delete_version(self, request: Request) -> Operation:
        _, model, number = self._version(request, required=True)
        if model.aliases["default"] == number:
            raise Refusal(400, "The default version cannot be deleted.", "FAILED_PRECONDITION")
        del model.versions[number]
        model.aliases = {alias: at for alias, at in model.aliases.items() if at != number}
        return self._deleted(request)

    def _deleted(self, request: Request) -> Operation:
        parent = f"projects/{PROJECT_NUMBER}/locations/{request.arguments['location']}"
        return self.done(parent, empty_pb2.Empty(), types.DeleteOperationMetadata())


def _require_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise Refusal(400, f"Invalid version alias: {alias}")


def _require_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > 64:
        raise Refusal(400, "A resource can have at most 64 labels.")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise Refusal(400, f"Invalid label {key}={value}")


def _filter(text: str) -> Callable[[Any], bool]:
    """The documented forms that segwatch uses, and no other."""
    if not text:
        return lambda _: True
    if match := re.fullmatch(r"labels\.([a-z0-9_-]+)=\"?([a-z0-9_-]*)\"?", text):
        return lambda model: model.labels.get(match[1]) == match[2]
    if match := re.fullmatch(r"display_?[nN]ame=\"([^\"]*)\"", text):
        return lambda model: model.display_name == match[1]
    raise Refusal(400, f"Invalid filter: {text}")


class _Handler(BaseHTTPRequestHandler):
    fake: VertexFake
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: in two, each answer waits 40 ms for an acknowledgement.
    wbufsize = 65536

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, said = self.fake.answer(self.command, self.path, body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve


def running() -> Iterator[VertexFake]:
    fake = VertexFake()
    try:
        yield fake
    finally:
        fake.close()
