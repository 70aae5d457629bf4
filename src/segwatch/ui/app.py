"""The page as an ASGI application: which view answers what, who is let in, and how what goes wrong is told."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from segwatch.errors import BackendError, SegwatchError, SettingsError, UsageError
from segwatch.serving import ServingObserver, one_line
from segwatch.ui import words
from segwatch.ui.drill import drill
from segwatch.ui.guard import DONE_COOKIE, NAME_COOKIE, Access, Refused, protect
from segwatch.ui.health import health
from segwatch.ui.incidents import incident, incidents
from segwatch.ui.labels import audit, label, snooze
from segwatch.ui.models import models, promote, rollback
from segwatch.ui.runs import backtests, runs
from segwatch.ui.segments import segment, segments
from segwatch.ui.visit import DIMENSION, Done, Moved, Project, Visit

View = Callable[[Visit], tuple[str, dict[str, Any]]]
"""What a page shows: its template, and what that is filled with."""
Action = Callable[[Visit, str, Mapping[str, str]], Done]
"""Something done by a person with the fields of a form."""

PAGES = {"/": "Incidents", "/segments": "Segments", "/drill": "Drill down", "/models": "Models", "/runs": "Runs",
         "/backtest": "Backtests", "/health": "Health", "/audit": "Audit"}  # fmt: skip
VIEWS: Mapping[str, View] = {
    "/": incidents,
    "/incidents/{id}": incident,
    "/segments": segments,
    "/segments/{id}": segment,
    "/drill": drill,
    "/models": models,
    "/runs": runs,
    "/backtest": backtests,
    "/health": health,
    "/audit": audit,
}
ACTIONS: Mapping[str, Action] = {
    "promote": lambda visit, by, form: promote(visit, by, form.get("version", "")),
    "rollback": lambda visit, by, form: rollback(visit, by),  # noqa: ARG005
    "label": label,
    "snooze": snooze,
}
"""What is done by a POST to /actions/NAME, once it is known who asks and from where."""

_MAX_FORM = 65_536
_RETRY_SECONDS = 2
_LONGEST_NAME = 80


def application(project: Project, access: Access, observer: ServingObserver) -> Starlette:
    """The page of a project."""
    site = _Site(project, access, observer)
    pages = [Route(path, site.endpoint(partial(site.view, view))) for path, view in VIEWS.items()]
    return Starlette(
        routes=[
            *pages,
            Route("/actions/{name}", site.endpoint(site.action), methods=["POST"]),
            Route("/name", site.endpoint(site.give_name), methods=["POST"]),
            Route("/login", site.endpoint(site.login), methods=["GET", "POST"]),
            Route("/static/{name}", site.endpoint(site.static)),
        ],
        exception_handlers={HTTPException: site.unrouted},
    )


class _Site:
    def __init__(self, project: Project, access: Access, observer: ServingObserver) -> None:
        self._project, self._access, self._observer = project, access, observer
        self._templates = Environment(
            loader=PackageLoader("segwatch.ui"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals.update(
            {"pages": PAGES, "style": f"/static/{_style_name()}", "words": words, "D": DIMENSION}
        )

    def endpoint(self, answer: Callable[[Request, Mapping[str, str]], Response]) -> Callable[[Request], Any]:
        """An endpoint that gives every answer its protection, and every error its page."""

        async def answered(request: Request) -> Response:
            start = time.perf_counter()
            try:
                form = await _form_of(request)
            except Refused as refused:
                response = self._refusal(request, refused)
            else:
                response = await run_in_threadpool(self._guarded, answer, request, form)
            self._observer.answered(request.method, request.url.path, response.status_code, time.perf_counter() - start)
            return protect(response)

        return answered

    def _guarded(
        self, answer: Callable[[Request, Mapping[str, str]], Response], request: Request, form: Mapping[str, str]
    ) -> Response:
        try:
            self._access.check_host(request)
            if request.method == "POST":
                self._access.check_origin(request)
            return answer(request, form)
        except Refused as refused:
            return self._refusal(request, refused)
        except SegwatchError as error:
            return self._failure(request, error)
        except Exception as error:  # noqa: BLE001 - one request that meets a bug must not end the others
            self._observer.failed(one_line(error))
            return self._message(request, 500, "segwatch met a bug in itself: its log has a line about it.")

    def view(self, view: View, request: Request, _: Mapping[str, str]) -> Response:
        """A page, to those who may see it."""
        if not self._access.is_admitted(request):
            return self._ask_token(request)
        with self._project.reading() as warehouse:
            visit = self._visit(request, warehouse)
            try:
                template, facts = view(visit)
            except Moved as moved:
                return RedirectResponse(moved.address, 302)
            return self._page(request, template, 200, visit=visit, **facts)

    def action(self, request: Request, form: Mapping[str, str]) -> Response:
        """What a form asks for has been done."""
        if not self._access.is_admitted(request):
            raise Refused(401, "Nothing was done: log in first.")
        self._access.check_form(request, form.get("form_token", ""))
        act = ACTIONS.get(request.path_params["name"])
        if act is None:
            raise Refused(404, "There is no such action.")
        by = self._name_of(request)
        if not by:
            raise Refused(400, "Nothing was done: say who you are at the foot of the page first.")
        with self._project.writing() as warehouse:
            done = act(self._visit(request, warehouse), by, form)
        response = RedirectResponse(done.address, 303)
        # Not in the address, by which anyone could make the page say anything.
        response.set_cookie(DONE_COOKIE, quote(done.said), max_age=60, httponly=True, samesite="strict", path="/")
        return response

    def give_name(self, request: Request, form: Mapping[str, str]) -> Response:
        """The browser keeps the name of whoever acts."""
        self._access.check_form(request, form.get("form_token", ""))
        response = RedirectResponse(_local(form.get("next", "/")), 303)
        name = " ".join(form.get("name", "").split())[:_LONGEST_NAME]
        response.set_cookie(
            NAME_COOKIE, quote(name), max_age=365 * 24 * 3600, httponly=True, samesite="strict", path="/"
        )
        return response

    def login(self, request: Request, form: Mapping[str, str]) -> Response:
        """The form that asks for the token, and what it is answered with."""
        asked_for = _local(form.get("next") or request.query_params.get("next", "/"))
        if request.method == "POST":
            if not self._access.is_token(form.get("token", "")):
                return self._page(request, "login.html", 401, next=asked_for, is_wrong=True, title="Log in")
            response = RedirectResponse(asked_for, 303)
            self._access.keep(response, self._access.new_session())
            return response
        return self._page(request, "login.html", 200, next=asked_for, is_wrong=False, title="Log in")

    def static(self, request: Request, _: Mapping[str, str]) -> Response:
        """A file of the package; its name changes with what it holds."""
        name = request.path_params["name"]
        files = {_style_name(): ("text/css", _style()), "icon.svg": ("image/svg+xml", _resource("icon.svg"))}
        if name not in files:
            raise Refused(404, "There is no such file.")
        kind, text = files[name]
        return Response(text, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})

    async def unrouted(self, request: Request, error: Exception) -> Response:
        """What no route answers."""
        status = error.status_code if isinstance(error, HTTPException) else 404
        sentence = "There is no such page." if status == 404 else "This page is not asked in this way."
        return protect(self._message(request, status, sentence))

    def _visit(self, request: Request, warehouse: Any) -> Visit:
        settings = self._project.settings
        name = request.query_params.get("metric") or next(iter(settings.metrics))
        try:
            metric = settings.metric(name)
        except SettingsError as error:
            raise Refused(404, f"There is no metric {words.shown(name[:40])}.") from error
        return Visit(self._project, request, name, metric, warehouse, self._project.clock())

    def _name_of(self, request: Request) -> str:
        """Who acts: whoever a proxy in front says, the name that the browser keeps, or the default."""
        if self._access.name_header:
            return request.headers.get(self._access.name_header, "")[:_LONGEST_NAME].strip()
        return unquote(request.cookies.get(NAME_COOKIE, "")) or self._access.default_name

    def _ask_token(self, request: Request) -> Response:
        asked_for = str(request.url.path) + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A browser keeps the session back where a link of another site led here; asked again by us it shows it.
            return self._page(request, "again.html", 200, title="One moment", next=asked_for)
        return RedirectResponse(f"/login?next={quote(asked_for, safe='')}", 303)

    def _refusal(self, request: Request, refused: Refused) -> Response:
        return self._message(request, refused.status, str(refused))

    def _failure(self, request: Request, error: SegwatchError) -> Response:
        if isinstance(error, BackendError) and error.retryable:
            sentence = (
                "The warehouse is in use by another process, perhaps a training. This page tries again by itself."
            )
            response = self._message(request, 503, sentence, str(error), retry=_RETRY_SECONDS)
            response.headers["Retry-After"] = str(_RETRY_SECONDS)
            return response
        status = 400 if isinstance(error, UsageError) else 503 if isinstance(error, BackendError) else 409
        return self._message(request, status, str(error))

    def _message(self, request: Request, status: int, sentence: str, detail: str = "", retry: int = 0) -> Response:
        title = {404: "Not found", 409: "Nothing to show yet", 503: "In use"}.get(status, "Refused")
        is_get = request.method == "GET"
        facts = {"title": title, "sentence": words.shown(sentence), "detail": words.shown(detail)}
        return self._page(request, "message.html", status, retry=retry if is_get else 0, **facts)

    def _page(self, request: Request, template: str, status: int, /, **facts: Any) -> HTMLResponse:
        session = self._access.session_of(request)
        is_new = session is None and self._access.token is None
        session = self._access.new_session() if is_new else session
        known = {
            "visit": None,
            "retry": 0,
            "request": request,
            "who": words.shown(self._name_of(request)),
            "asks_name": not self._access.name_header,
            "done": words.shown(unquote(request.cookies.get(DONE_COOKIE, ""))),
            "form_token": self._access.form_token(session) if session else "",
            "is_admitted": self._access.is_admitted(request),
            "metrics": list(self._project.settings.metrics),
        }
        response = HTMLResponse(self._templates.get_template(template).render({**known, **facts}), status)
        if is_new and session:
            self._access.keep(response, session)
        if DONE_COOKIE in request.cookies:
            response.delete_cookie(DONE_COOKIE, path="/")
        return response


async def _form_of(request: Request) -> dict[str, str]:
    """The fields of a form; none but the last of a name."""
    if request.method != "POST":
        return {}
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM:
            raise Refused(413, "The form is too large.")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=None))


def _local(address: str) -> str:
    """The address if it is one of the page, else its start: nobody is sent elsewhere."""
    is_local = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if is_local and address.isprintable() else "/"


@cache
def _style() -> str:
    palette = resources.files("segwatch.report").joinpath("palette.css").read_text(encoding="utf-8")
    return palette + _resource("page.css")


@cache
def _style_name() -> str:
    return f"page-{hashlib.sha256(_style().encode()).hexdigest()[:12]}.css"


@cache
def _resource(name: str) -> str:
    return resources.files("segwatch.ui").joinpath("static", name).read_text(encoding="utf-8")
