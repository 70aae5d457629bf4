"""Who may ask the page, and what a browser may do with its answers.

A request passes if its Host is one that the page is known by (DNS rebinding brings others), if it shows the token where
one is needed, and, where it changes anything, if it comes from the page itself: by its Origin, and by a token that only
a page of the same session holds.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

COOKIE = "segwatch_session"
NAME_COOKIE = "segwatch_name"
DONE_COOKIE = "segwatch_done"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Refused(Exception):
    """A request that is not answered: its status, and why in a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Access:
    """Who may ask.

    token: what has to be shown; None lets everyone in who reaches the port. hosts: names by which the page is reached,
    beside localhost and addresses. name_header: header in which a proxy in front says who asks; default_name: who acts
    where nobody says so, empty if a name has to be given. secret: of this start of the page; sessions end with it.
    """

    token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()
    name_header: str = ""
    default_name: str = ""
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def check_host(self, request: Request) -> None:
        """Nothing happens if the page is known by the Host of the request."""
        host = _host_of(request.headers.get("host", ""))
        if host not in self.hosts and host != "localhost" and not _is_address(host):
            raise Refused(400, "The page is not known by this name: start it with --allow-host NAME.")

    def session_of(self, request: Request) -> str | None:
        """The id of the session that the request shows, None if it shows none of this page's."""
        id_, _, signature = request.cookies.get(COOKIE, "").partition(".")
        return id_ if id_ and _same(signature, self._sign("session", id_)) else None

    def is_admitted(self, request: Request) -> bool:
        """Whether the request may be answered: by its session, by its Authorization, or as no token is needed."""
        return self.token is None or self.session_of(request) is not None or self._shows_token(request)

    def is_token(self, text: str) -> bool:
        """Whether a text is the token."""
        return self.token is not None and _same(text, self.token)

    def new_session(self) -> str:
        """The id of a new session."""
        return secrets.token_urlsafe(16)

    def keep(self, response: Response, session: str) -> None:
        """The browser will show the session."""
        value = f"{session}.{self._sign('session', session)}"
        response.set_cookie(COOKIE, value, httponly=True, samesite="strict", path="/")

    def form_token(self, session: str) -> str:
        """What a form of the session holds, to show where it comes from."""
        return self._sign("form", session)

    def check_origin(self, request: Request) -> None:
        """Nothing happens if a browser would say that a page of this one's sent the request."""
        origin, fetched_by = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        if is_foreign or fetched_by not in ("same-origin", "none"):
            raise Refused(403, "This did not come from the page itself, so nothing was done.")

    def check_form(self, request: Request, form_token: str) -> None:
        """Nothing happens if the form is one of this session's. A request with the token needs no form."""
        if self._shows_token(request):
            return
        session = self.session_of(request)
        if session is None or not _same(form_token, self.form_token(session)):
            raise Refused(403, "The page was opened too long ago, so nothing was done: load it anew and try again.")

    def _shows_token(self, request: Request) -> bool:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self.is_token(token.strip())

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self.secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def protect(response: Response) -> Response:
    """The answer, with what keeps a browser from being turned against it."""
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback)


def _host_of(text: str) -> str:
    """The name in a Host header, without its port."""
    name = text.rpartition(":")[0] if text.rpartition(":")[2].isdigit() else text
    return name.lower().rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
