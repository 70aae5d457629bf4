"""Segments: one combination of dimension values each, with a stable id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from segwatch.errors import UsageError

Selection = Mapping[str, frozenset[str]]
"""Wanted values by dimension; empty selects every segment."""

NULL = "<null>"
"""Text that stands for a NULL dimension value."""


def segment_id(dimensions: Sequence[str], values: Sequence[str]) -> str:
    """Stable id of a segment: 20 hex digits of BLAKE2b over its dimension names and values.

    The pairs are hashed as canonical JSON, so a value with a slash, a quote or any letter cannot collide with
    another split of the same characters.
    """
    document = json.dumps(list(zip(dimensions, values, strict=True)), ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(document.encode(), digest_size=10).hexdigest()


def shard(segment_id: str, shards: int) -> int:
    """Which of so many parts a segment falls into: even, and the same on every machine."""
    return int(segment_id[:8], 16) % shards


def label(values: Iterable[str]) -> str:
    """Name of a segment for people: `it/ios/paid`. Ambiguous where a value holds a slash; the id is not."""
    return "/".join(values)


def parse_selection(texts: Iterable[str], dimensions: Sequence[str]) -> dict[str, frozenset[str]]:
    """Selected values by dimension from `name=value` texts; the same name twice selects both values.

    Raises UsageError if a text is no pair or names no dimension of the metric.
    """
    selection: dict[str, set[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--select {text!r} is not of the form dimension=value")
        if name not in dimensions:
            raise UsageError(f"--select names the dimension {name!r}; the metric has {', '.join(dimensions)}")
        selection.setdefault(name, set()).add(value)
    return {name: frozenset(values) for name, values in selection.items()}


def is_selected(dimensions: Sequence[str], values: Sequence[str], selection: Selection) -> bool:
    """Whether a segment's values match every selected dimension."""
    named = dict(zip(dimensions, values, strict=True))
    return all(named[name] in wanted for name, wanted in selection.items())


def describe(selection: Selection) -> str:
    """The selection as text: `country_code=it, platform=ios`."""
    return ", ".join(f"{name}={value}" for name, values in selection.items() for value in sorted(values))
