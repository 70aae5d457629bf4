"""Segments: one combination of dimension values each, with a stable id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from segwatch.errors import UsageError

Selection = Mapping[str, frozenset[str]]
"""Wanted values by dimension; empty selects every segment."""

TOTAL = "total"
"""Level and label of the sum of all segments."""

ALL = "*"
"""Text that stands in a label for a dimension that is summed out."""

NULL = "<null>"
"""Text that stands for a NULL dimension value."""


_CANONICAL = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode

Values = tuple[str | None, ...]
"""A segment's values by dimension; None where the dimension is summed out."""


def segment_id(dimensions: Sequence[str], values: Sequence[str | None]) -> str:
    """Stable id of a segment: 20 hex digits of BLAKE2b over its dimension names and values.

    Dimensions that are summed out have no part in it. The pairs are hashed as canonical JSON, so a value with a slash,
    a quote or any letter cannot collide with another split of the same characters.
    """
    pairs = [pair for pair in zip(dimensions, values, strict=True) if pair[1] is not None]
    return digest(pairs)


def digest(document: object) -> str:
    """20 hex digits of BLAKE2b over a document as canonical JSON."""
    return hashlib.blake2b(_CANONICAL(document).encode(), digest_size=10).hexdigest()


def holds(larger: Sequence[str | None], smaller: Sequence[str | None]) -> bool:
    """Whether the smaller one's values lie in the larger one's, where None is any value."""
    return all(mine is None or mine == theirs for mine, theirs in zip(larger, smaller, strict=True))


def shard(segment_id: str, shards: int) -> int:
    """Which of so many parts a segment falls into: even, and the same on every machine."""
    return int(segment_id[:8], 16) % shards


def label(values: Iterable[str | None]) -> str:
    """Name of a segment for people: `it/ios/paid`, of a roll-up `it/*/*`, of all `total`.

    Ambiguous where a value holds a slash or is a star; the id is not.
    """
    texts = list(values)
    return "/".join(ALL if value is None else value for value in texts) if any(v is not None for v in texts) else TOTAL


def signed(impact: float) -> str:
    """An impact as text: `-1,240`; small ones, as those of ratios, to three digits."""
    return f"{impact:+,.0f}" if abs(impact) >= 10 else f"{impact:+.3g}"


def counted(n_segments: int, n_rollups: int) -> str:
    """So many as text: `27 segments and 10 roll-ups`."""
    segments = f"{n_segments:,} segment{'s' * (n_segments != 1)}"
    return f"{segments} and {n_rollups:,} roll-up{'s' * (n_rollups != 1)}" if n_rollups else segments


def level(dimensions: Sequence[str], values: Sequence[str | None]) -> str:
    """Dimensions that tell the segments apart from those of its kind: `country_code/platform`; `total` for none."""
    return "/".join(name for name, value in zip(dimensions, values, strict=True) if value is not None) or TOTAL


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


def is_selected(dimensions: Sequence[str], values: Sequence[str | None], selection: Selection) -> bool:
    """Whether a segment's values match every selected dimension."""
    named = dict(zip(dimensions, values, strict=True))
    return all(named[name] in wanted for name, wanted in selection.items())


def describe(selection: Selection) -> str:
    """The selection as text: `country_code=it, platform=ios`."""
    return ", ".join(f"{name}={value}" for name, values in selection.items() for value in sorted(values))
