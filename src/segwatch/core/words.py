"""An explanation in words that need no statistics: each function says one thing of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segwatch.core.explanation import Explanation, Part, Row, Siblings, SimilarPeriod
from segwatch.core.incidents import sentence
from segwatch.core.segment import TOTAL, holds, label, signed
from segwatch.core.window import Grain

FEATURE_WORDS = {
    "z": ("the value itself, lower than expected", "the value itself, higher than expected"),
    "short": (
        "the last 3 {periods} together, lower than expected",
        "the last 3 {periods} together, higher than expected",
    ),
    "long": (
        "the last {season} {periods} together, lower than expected",
        "the last {season} {periods} together, higher than expected",
    ),
    "flat": ("the same value again and again", "the same value again and again"),
    "shared": ("a fall that the segments like it have in common", "a rise that the segments like it have in common"),
}
"""What a feature stands for: where it is below zero, and where it is above."""

_SEASON: dict[Grain, int] = {"day": 7, "hour": 24}
# What has less of a part is not told.
_TOLD = 0.05
# In the kernel; what is less alike is not alike.
_ALIKE = 0.5
_RAREST = 1e6
_VERDICTS = {
    "flagged": "It was flagged: {rare}.",
    "ordinary": "It was not flagged, as it is not rare enough: {rare}.",
    "chance": "It was not flagged: {rare}, but among the {n_rows:,} rows of this {period} some are as rare by chance.",
    "budget": "It was not flagged: {rare}, and the alert budget has room for rarer ones only.",
    "small": "It was not flagged, as the difference is smaller than the settings ask for (min_impact,"
    " min_impact_share): {rare}.",
    "labelled": "It was not flagged, since a label says of alerts like it that they are none: {rare}.",
    "ongoing": "It was not flagged: the value is in order again, while the change that was told of before is still in"
    " its last {periods}.",
    "ended": "It was not flagged, as the segment has ended: {reason}.",
}


def sentences(one: Explanation) -> list[str]:
    """The explanation, a sentence or a few in each text: what happened first, then why, then what was around it."""
    texts = [say(one) for say in (_what, _verdict, _bounds, _parts, _similar, _parents, _inside)]
    texts += _siblings(one)
    texts += [say(one) for say in (_suspect, _incident, _detectable)]
    texts += [f"Note: {note}." for note in one.notes]
    return [text for text in texts if text]


def number(value: float) -> str:
    """Whole from ten on, three digits below: `1,240`, `3.25`."""
    return f"{value + 0.0:,.0f}" if abs(value) >= 9.995 or value == round(value) else f"{value:.3g}"


def when(ts: np.datetime64, grain: Grain) -> str:
    """`2026-11-20`, `2026-11-20 14:00` of an hour."""
    return str(ts).replace("T", " ") + (":00" if grain == "hour" else "")


def rarity(p_value: float, grain: Grain) -> str:
    """A p-value as how often it comes: `as rare as one day in 1,200`."""
    often = 1.0 / p_value
    if often < 2.5:
        return f"a {grain} like most others"
    if often > _RAREST:
        return f"rarer than one {grain} in a million"
    return f"as rare as one {grain} in {float(f'{often:.2g}'):,.0f}"


def feature_words(part: Part, grain: Grain) -> str:
    """What a feature stands for in a row: `the last 3 days together, lower than expected`."""
    # A table may hold features that another version of segwatch had.
    words = FEATURE_WORDS.get(part.feature, (part.feature, part.feature))[part.value > 0]
    return words.format(periods=f"{grain}s", season=_SEASON[grain])


def changed(one: Row, is_count: bool) -> str:
    """value against expected: `96 % fewer`; empty against nothing, and where it is as good as the same."""
    if not np.isfinite(one.change) or not round(100 * one.change):
        return ""
    words = ("fewer", "more") if is_count else ("lower", "higher")
    return f"{abs(100 * one.change):,.0f} % {words[one.change > 0]}"


def _name(row: Row) -> str:
    """`it/ios/paid`, and of all segments `the total`."""
    name = label(row.values)
    return "the total" if name == TOTAL else name


def _noun(one: Explanation) -> str:
    return one.metric.replace("_", " ")


def _at(one: Explanation) -> str:
    return f"{'on' if one.grain == 'day' else 'at'} {when(one.ts, one.grain)}"


def _what(one: Explanation) -> str:
    row, at, is_count = one.row, _at(one), one.kind == "count"
    name = _name(row)
    if np.isnan(row.value):
        return f"{_capital(name)} has no value of {_noun(one)} {at}: {one.reason or one.status}."
    had = f"{name} had {number(row.value)} {_noun(one)} {at}"
    if not is_count:
        had = f"{_noun(one)} of {name} was {number(row.value)} {at}"
    if np.isnan(row.expected):
        return f"{_capital(had)}. Nothing was expected of it: {one.reason or one.status}."
    change = changed(row, is_count)
    said = f"{had} where {number(row.expected)} {'were' if is_count else 'was'} expected"
    return _capital(said + (f" ({change})." if change else "."))


def _capital(text: str) -> str:
    """The text with a capital where it begins with a word of ours; names of segments stay as they are."""
    return text[0].upper() + text[1:] if text.startswith("the ") else text


def _verdict(one: Explanation) -> str:
    if one.verdict == "unscored":
        return ""
    rare = rarity(one.row.p_value, one.grain)
    facts = {"period": one.grain, "periods": f"{one.grain}s", "n_rows": one.n_rows, "reason": one.reason}
    return _VERDICTS[one.verdict].format(rare=rare, **facts)


def _bounds(one: Explanation) -> str:
    if one.verdict == "unscored":
        return ""
    low, high = one.lower, one.upper
    if one.kind != "value" and low <= 0:
        low = np.nan
    if np.isnan(one.lower) and np.isnan(one.upper):
        if one.verdict == "flagged":
            return (
                f"No value would have passed: what alerts is what it shares with others or the {one.grain}s before it,"
                " not the value alone."
            )
        return "No value would have alerted here."
    if np.isnan(low):
        return f"Values up to {number(high)} would not have alerted." if high == high else ""
    if np.isnan(high):
        return f"Values from {number(low)} on would not have alerted."
    return f"Values from {number(low)} to {number(high)} would not have alerted."


@dataclass(frozen=True)
class Share:
    """A part that is worth telling. share: of all that sets the row apart from a typical one."""

    part: Part
    share: float


def shares(parts: Sequence[Part]) -> list[Share]:
    """The parts that are worth telling, in their order; none where the row scores no more than a typical one."""
    total = sum(one.part for one in parts)
    return [Share(one, one.part / total) for one in parts if total > 0 and one.part >= _TOLD * total]


def _parts(one: Explanation) -> str:
    if not one.parts:
        return ""
    told = [f"{feature_words(s.part, one.grain)} ({100 * s.share:.0f} %)" for s in shares(one.parts)]
    if not told:
        return f"Nothing sets it apart from a typical {one.grain}."
    return f"What sets it apart from a typical {one.grain}: {'; '.join(told)}."


def _similar(one: Explanation) -> str:
    if not one.similar:
        return ""
    days = "; ".join(_period(day, one.grain) for day in one.similar)
    unlike = "" if one.similar[0].similarity >= _ALIKE else " Even the nearest of them is unlike it."
    return f"The most similar normal {one.grain}s: {days}.{unlike}"


def _period(day: SimilarPeriod, grain: Grain) -> str:
    return f"{when(day.ts, grain)} ({number(day.value)}, expected {number(day.expected)})"


def _parents(one: Explanation) -> str:
    """What the roll-ups that hold it did."""
    did = [f"{_name(row)} {_did(row)}" for row in one.parents if np.isfinite(row.value)]
    return f"What it is part of: {'; '.join(did)}." if did else ""


def _did(row: Row) -> str:
    if not np.isfinite(row.expected):
        return f"{number(row.value)}, which has no model"
    notes = [_percent(row.change)] if np.isfinite(row.change) else []
    notes += ["flagged"] if row.is_anomaly else []
    return f"{number(row.value)} of {number(row.expected)} expected" + (f" ({', '.join(notes)})" if notes else "")


def _percent(share: float) -> str:
    return f"{round(100 * share):+d} %" if round(100 * share) else "0 %"


def _inside(one: Explanation) -> str:
    """What of a roll-up changed most."""
    return f"Inside it, the largest: {_impacts(one.inside)}." if one.inside else ""


def _impacts(rows: Sequence[Row]) -> str:
    return ", ".join(f"{label(row.values)} {signed(row.impact)}" for row in rows)


def _siblings(one: Explanation) -> Iterator[str]:
    for siblings in one.siblings:
        if siblings.n:
            yield _siblings_of(siblings)


def _siblings_of(one: Siblings) -> str:
    """What the others of a group did, those of the largest impact by name."""
    counts = [(one.n_fell, "fell"), (one.n_rose, "rose"), (one.n_alerts, "alerted")]
    did = [f"{n:,} {verb}" for n, verb in counts if n] or ["none stood out"]
    group = "all segments of its kind" if all(value is None for value in one.values) else label(one.values)
    others = f"1 other of {group}" if one.n == 1 else f"{one.n:,} others of {group}"
    return f"By {one.dimension}, of the {others}: {', '.join(did)} (the largest: {_impacts(one.largest)})."


def _suspect(one: Explanation) -> str:
    if one.suspect is None:
        return ""
    own, suspect = _name(one.row), label(one.suspect)
    if one.suspect == one.row.values:
        return f"This looks like a matter of {own} alone."
    if not holds(one.suspect, one.row.values):
        return f"This looks like a matter of {suspect}, which is in {own}."
    where = "everything" if suspect == TOTAL else suspect
    return f"This looks like a matter of {where} rather than of {own} alone."


def _incident(one: Explanation) -> str:
    if one.incident is None:
        return ""
    is_part = holds(one.incident.values, one.row.values)
    return f"{'It belongs to' if is_part else 'In it is'} the incident {one.incident.id}: {sentence(one.incident)}."


def _detectable(one: Explanation) -> str:
    if one.detectable is None:
        # What has no model has no smallest change either.
        if one.verdict == "unscored":
            return ""
        return "What is the smallest change that would be noticed here is not known: run `segwatch evaluate`."
    known = one.detectable
    until = f" (evaluated on the {one.grain}s before {when(known.as_of, one.grain)})"
    drop, rise = known.smallest_drop, known.smallest_rise
    if np.isnan(drop) and np.isnan(rise):
        return f"No change of a single {one.grain} would usually be noticed here{until}."
    told = [
        f"{'a drop' if kind == 'drop' else 'a rise'} of {100 * share:.0f} %" if np.isfinite(share) else f"no {kind}"
        for kind, share in (("drop", drop), ("rise", rise))
    ]
    return f"The smallest change of a single {one.grain} that is usually noticed here: {' and '.join(told)}{until}."
