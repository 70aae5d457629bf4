"""Past events of a user's own, from a CSV file: outages, campaigns, shifts."""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from segwatch.core.labels import Label
from segwatch.core.segment import Values, digest
from segwatch.core.window import Grain, parse_last, parse_time
from segwatch.errors import DataError, UsageError, disk_error
from segwatch.settings import Metric

# What else events are called in files of others.
_SYNONYMS = {"outage": "true", "campaign": "expected", "holiday": "expected", "promotion": "expected"}
_OF_EVENTS = ("true", "expected", "new-normal")
_COLUMNS = ("first_day", "last_day", "label", "note")


def read_events(path: Path, metric: Metric, author: str, now: dt.datetime) -> list[Label]:
    """The labels in a CSV file of past events: first_day, label, and where there are such last_day, note, dimensions.

    Raises UsageError if there is no such file, DataError naming the row (counted from 1, a header apart) and the mend
    if one is no event.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_header(path, reader.fieldnames or (), metric)
            labels = [_event(path, number, row, metric, author, now) for number, row in enumerate(reader, 1)]
    except OSError as error:
        raise disk_error(error, str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file: {error}") from error
    if not labels:
        raise DataError(f"{path} holds no rows")
    return labels


def _check_header(path: Path, names: Sequence[str], metric: Metric) -> None:
    known = (*_COLUMNS, *metric.dimensions)
    both = [name for name in metric.dimensions if name in _COLUMNS]
    if both:
        raise DataError(f"the dimension {both[0]!r} has the name of a column of events: make a view that renames it")
    missing = [name for name in ("first_day", "label") if name not in names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: it holds {', '.join(names) or 'nothing'}")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"{path} has the column {unknown[0]!r}, which is none of {', '.join(known)}")


def _event(
    path: Path, number: int, row: Mapping[str, str | None], metric: Metric, author: str, now: dt.datetime
) -> Label:
    place = f"{path}, row {number}"
    if None in row or None in row.values():
        raise DataError(f"{place} has not as many fields as the header: quote those with a comma")
    given = str(row["label"]).strip()
    said = _SYNONYMS.get(given, given)
    if said not in _OF_EVENTS:
        wanted = ", ".join((*_OF_EVENTS, *_SYNONYMS))
        raise DataError(f"{place}: the label {given!r} is none of {wanted}; a false alarm is said of an incident")
    first_day, last_day = str(row["first_day"]).strip(), str(row.get("last_day") or "").strip()
    first = _period(place, "first_day", first_day, metric.grain, parse_time)
    last = _period(place, "last_day" if last_day else "first_day", last_day or first_day, metric.grain, parse_last)
    if last < first:
        raise DataError(f"{place}: last_day {last_day} is before first_day {first_day}: swap them")
    values: Values = tuple(row.get(name) or None for name in metric.dimensions)
    id_ = digest([str(first), str(last), said, list(values)])
    return Label(id_, said, now, author, values, first, last, note=str(row.get("note") or "").strip())  # type: ignore[arg-type]


def _period(
    place: str, column: str, text: str, grain: Grain, parse: Callable[[str, Grain, str], np.datetime64]
) -> np.datetime64:
    try:
        return parse(text, grain, f"{place}: {column}")
    except UsageError as error:
        raise DataError(str(error)) from error
