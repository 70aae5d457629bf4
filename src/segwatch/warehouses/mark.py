"""The mark that segwatch leaves on each table it makes, kept as JSON in the table's comment."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

from segwatch.core.schema import to_metadata

_VERSION = 1


@dataclass(frozen=True)
class Mark:
    """What segwatch made along with a table, and when a temporary one expires (UTC).

    created_file, created_schema: whether segwatch made the database file and the schema that hold it.
    """

    created_file: bool = False
    created_schema: bool = False
    expires_at: dt.datetime | None = None

    def to_comment(self) -> str:
        """The text of the table's comment; `from_comment` reads it back."""
        document: dict[str, Any] = {"segwatch": _VERSION, "created_file": self.created_file}
        if self.created_schema:
            document["created_schema"] = True
        if self.expires_at is not None:
            document["expires_at"] = as_utc(self.expires_at).isoformat()
        return to_metadata(document)

    @classmethod
    def from_comment(cls, comment: str | None) -> Mark | None:
        """The mark in a table's comment; None if the comment is anyone else's."""
        try:
            document = json.loads(comment or "")
            if not isinstance(document, dict) or "segwatch" not in document:
                return None
            expiry = document.get("expires_at")
            expires_at = None if expiry is None else as_utc(dt.datetime.fromisoformat(expiry))
        except (ValueError, TypeError):
            return None
        return cls(bool(document.get("created_file")), bool(document.get("created_schema")), expires_at)


def as_utc(moment: dt.datetime) -> dt.datetime:
    """The moment with the zone UTC; a moment without a zone is UTC already."""
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
