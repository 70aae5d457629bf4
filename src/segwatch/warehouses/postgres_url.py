"""PostgreSQL's URLs: checked before libpq sees them, and shown without their password."""

from __future__ import annotations

import re

from segwatch.errors import SettingsError

FORM = "postgresql://USER@HOST:PORT/DATABASE"

_HOST = r"(?:\[[^\]/@?#]*\]|[^:/@?#,\[\]]*)(?::\d*)?"
_URL = re.compile(rf"postgres(?:ql)?://(?:[^:/@?#]*(?::[^:/@?#]*)?@)?{_HOST}(?:,{_HOST})*(?:/[^/?#]*)?(?:\?[^#]*)?")
_WRONG_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DEFAULTS = {
    "fallback_application_name": "segwatch",
    "connect_timeout": "10",
    # A server that vanished is noticed within a minute, where the system's own default is two hours.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


def masked(url: str) -> str:
    """The URL with stars for its password. What only resembles a URL is masked too."""
    return re.sub(r"(\bpassword=)[^&]*", r"\1***", re.sub(r"(://[^/@:]*:).*@", r"\1***@", url))


def complete(url: str) -> str:
    """The URL with segwatch's defaults where it does not say otherwise.

    Raises SettingsError if it is not one of PostgreSQL's. libpq's own message would repeat parts of the password.
    """
    if not _URL.fullmatch(url) or _WRONG_ESCAPE.search(url):
        raise SettingsError(
            f"the warehouse {masked(url)!r} is not a URL of PostgreSQL's: write it as {FORM}, signs such as @ : / %"
            " in a name as %40 %3A %2F %25, and keep the password in PGPASSWORD or ~/.pgpass"
        )
    added = "&".join(f"{key}={value}" for key, value in _DEFAULTS.items() if f"{key}=" not in url)
    return f"{url}{'&' if '?' in url else '?'}{added}"
