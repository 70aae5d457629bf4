"""Which part of the segments a change comes from.

`localise` ranks the sets of dimension values ("cells", such as {platform: tv} or {country: se, platform: tv}) that best
account for the difference between what was measured and what was expected. Every cell of every group-by of up to four
dimensions gets the score

    share - EXPOSED * exposure - SURE * standard error of the share

share: the part of the whole change that lies in the cell, the explanatory power of Adtributor (Bhagwan et al. 2014).
exposure: the part of the weight in the cell, which is the share it would have if the change were spread evenly. Their
difference is the weighted relative accuracy of subgroup discovery (Kloesgen 1996; Lavrac et al. 2004), with the price
of exposure as in its cost-sensitive form; it makes the score a linear spatial scan statistic (Kulldorff 1997; Neill
2012). So a parent beats its child as long as what it adds has changed too (children that are alike are their parent:
the ripple effect of Squeeze, Li et al. 2019), and the child wins where that is idle.

Cells of one group-by do not overlap, so that their scores add: several that broke together are one candidate where each
pays for its mention (SPLIT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import comb, log, sqrt

import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Floats, Ints

# What has changed at least half as much as the average belongs to the cause.
EXPOSED = 0.5
# Of the change that each further cell of a candidate must bring.
SPLIT = 0.15
# Standard errors off the share: of two cells that explain about the same, that which drags less noise along (the rule
# of one standard error, Breiman et al. 1984).
SURE = 1.0
# Dimensions of a cell; nobody reads deeper ones.
DEPTH = 4
# Leaves that say how large the noise is.
_SAMPLE = 10_000
# Lower quartile of the absolute value of a standard normal variable.
_QUARTILE = 0.3186


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of dimension values that may be the cause.

    dimensions: code of the value by position of the dimension. score: see the module; 1 at most or a little above.
    share: part of the change that lies in it; above 1 where other leaves changed the other way. exposure: part of the
    weight. also: further sets of the same dimensions that broke together with the first; all numbers are of them all.
    """

    dimensions: Mapping[int, int]
    score: float
    share: float
    n_leaves: int
    exposure: float = 0.0
    also: tuple[Mapping[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Cuboid:
    """The cells of one group-by, in dense order, with a leaf of each."""

    dims: tuple[int, ...]
    ids: Ints
    first: Ints


def _dense(keys: Ints, bound: int) -> tuple[Ints, Ints]:
    """Dense numbers for keys in [0, bound), and a position of each number."""
    n = len(keys)
    if bound <= 4 * n + 1024:  # a table is cheaper than a sort
        where = np.full(bound, -1, dtype=np.int64)
        where[keys[::-1]] = np.arange(n - 1, -1, -1, dtype=np.int64)
        used = np.flatnonzero(where >= 0)
        number = np.empty(bound, dtype=np.int64)
        number[used] = np.arange(len(used), dtype=np.int64)
        return number[keys], where[used]
    _, first, ids = np.unique(keys, return_index=True, return_inverse=True)
    return ids.reshape(-1).astype(np.int64), first.astype(np.int64)


def _cuboids(codes: Ints, depth: int) -> Iterator[_Cuboid]:
    """All group-bys of 1 to `depth` dimensions, depth first by prefix."""
    single = []
    for row in codes:
        low = int(row.min())
        single.append(_dense(row - low, int(row.max()) - low + 1))
    stack = [_Cuboid((d,), ids, first) for d, (ids, first) in enumerate(single)]
    while stack:
        cuboid = stack.pop()
        yield cuboid
        if len(cuboid.dims) >= depth:
            continue
        for d in range(cuboid.dims[-1] + 1, len(single)):
            ids, first = single[d]
            keys = cuboid.ids * len(first) + ids
            stack.append(_Cuboid((*cuboid.dims, d), *_dense(keys, len(cuboid.first) * len(first))))


def _sums(ids: Ints, values: Floats, n: int) -> Floats:
    return np.bincount(ids, values, n).astype(np.float64)


def localise(
    codes: npt.ArrayLike,
    actual: npt.ArrayLike,
    expected: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    most: int = 5,
    *,
    direction: int = 0,
) -> list[Candidate]:
    """The sets of dimension values that best account for a change, best first; none where nothing stands out.

    codes: (n_dimensions, n_leaves), the value of each dimension. actual, expected: (n_leaves,) of what can be added up;
    of a ratio the numerators, expected being the usual ratio times the denominator. weight: (n_leaves,), of which only
    the proportions count: how much of a change a leaf would take if all were hit alike, and how its variance grows;
    the denominator of a ratio, by default |expected|. most: candidates at most. direction: 1 for a rise, -1 for a fall,
    0 for that of the whole or, where rises and falls cancel, of the most deviating value.
    Leaves with NaN or infinite numbers are left out.
    """
    table = np.asarray(codes, dtype=np.int64)
    now = np.asarray(actual, dtype=np.float64).reshape(-1)
    usual = np.asarray(expected, dtype=np.float64).reshape(-1)
    w = np.abs(usual) if weight is None else np.asarray(weight, dtype=np.float64).reshape(-1)
    if table.ndim != 2 or not (table.shape[1] == len(now) == len(usual) == len(w)):
        raise ValueError("codes must be (n_dimensions, n_leaves), the rest (n_leaves,)")
    good = np.isfinite(now) & np.isfinite(usual) & np.isfinite(w) & (w >= 0)
    table, change, w = table[:, good], (now - usual)[good], w[good]
    if table.size == 0 or most < 1 or not w.sum() > 0:
        return []
    w = w / w.sum()
    noise = _noise(change, w)
    cuboids = list(_cuboids(table, 1))
    by_value = [(_sums(c.ids, change, len(c.first)), _sums(c.ids, w, len(c.first))) for c in cuboids]
    sign = _direction(change, by_value, noise) if direction == 0 else float(np.sign(direction))
    change = sign * change
    net = float(change.sum())
    group_bys = sum(comb(len(table), k) for k in range(1, DEPTH + 1))
    # The whole change: the net one or, where rises and falls cancel, all of the
    # rise (fall) that stands out of the noise in the dimension that shows most.
    total = net
    for d, q in by_value:
        clear = sign * d > _limit(len(d) * group_bys) * np.sqrt(noise * q)
        total = max(total, float((sign * d[clear]).sum()))
    if not total > 0:
        return []

    found: list[tuple[int, tuple[int, ...], Candidate]] = []
    for cuboid in _cuboids(table, DEPTH):
        n = len(cuboid.first)
        d, q = _sums(cuboid.ids, change, n), _sums(cuboid.ids, w, n)
        spread = np.sqrt(noise * q * np.maximum(1 - q, 0))
        score = (d - SURE * spread) / total - EXPOSED * q
        clear = d - q * max(net, 0.0) > _limit(n * group_bys) * spread
        keep = np.flatnonzero((score > 0) & clear)
        keep = keep[np.argsort(-score[keep], kind="stable")[: most + 1]]
        if not len(keep):
            continue
        size = np.bincount(cuboid.ids, minlength=n)
        choices = [(keep[i : i + 1], float(score[keep[i]])) for i in range(len(keep))]
        joint = keep[score[keep] > SPLIT]
        if len(joint) > 1:
            value = float(score[joint].sum()) - SPLIT * (len(joint) - 1)
            if value > _parent_score(table, cuboid, joint, change, w, total, noise):
                choices.append((joint, value))
        for cells, value in choices:
            named = [{k: int(table[k, cuboid.first[i]]) for k in cuboid.dims} for i in cells]
            one = Candidate(
                dimensions=named[0],
                score=value,
                share=float(d[cells].sum() / total),
                n_leaves=int(size[cells].sum()),
                exposure=float(q[cells].sum()),
                also=tuple(named[1:]),
            )
            found.append((len(cuboid.dims), cuboid.dims, one))
    found.sort(key=lambda f: (-round(f[2].score, 9), len(f[2].also), f[0], f[1]))
    return _distinct([f[2] for f in found])[:most]


def _limit(cells: int) -> float:
    """What the largest of so many standard normals hardly passes (the universal
    threshold of Donoho and Johnstone 1994)."""
    return sqrt(2 * log(1 + cells))


def _distinct(ranked: list[Candidate]) -> list[Candidate]:
    """Candidates with at most two descriptions of the same traffic.

    Where several sets of values select the same traffic, data cannot tell them
    apart. The shortest and the fullest are kept (minimal generator and closed
    set: Pasquier et al. 1999), the shortest first; those between say nothing new.
    """
    same: dict[tuple[float, float, int], list[int]] = {}
    for i, c in enumerate(ranked):
        same.setdefault((round(c.share, 9), round(c.exposure, 9), len(c.also)), []).append(i)
    keep: set[int] = set()
    for group in same.values():
        sizes = [len(ranked[i].dimensions) for i in group]
        keep.add(group[0])  # ranked: the shortest is first
        fullest = [i for i, size in zip(group, sizes, strict=True) if size == max(sizes)]
        if len(fullest) == 1:
            keep.add(fullest[0])
    return [c for i, c in enumerate(ranked) if i in keep]


def _noise(change: Floats, w: Floats) -> float:
    """Variance of the change per unit of weight (quasi-Poisson dispersion).

    From the lower quartile of the leaves' deviations from no change or from
    their common shift, whichever is less: it holds as long as a quarter of the
    traffic is outside the cause. Quartiles by weight, as near-empty leaves do
    not show the noise of full ones.
    """
    # Of more leaves every so many-th tells as much.
    some = np.flatnonzero(w > 0)[:: max(1, len(w) // _SAMPLE)]
    d, u = change[some], w[some]
    shift = _quantile(d / u, u, 0.5)
    quarters = [_quantile(np.abs(d - s * u) / np.sqrt(u), u, 0.25) for s in (0.0, shift)]
    return (min(quarters) / _QUARTILE) ** 2


def _quantile(values: Floats, w: Floats, part: float) -> float:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(w[order])
    at = int(np.searchsorted(cumulative, part * cumulative[-1]))
    return float(values[order[min(at, len(order) - 1)]])


def _direction(change: Floats, by_value: list[tuple[Floats, Floats]], noise: float) -> float:
    net = float(change.sum())
    if abs(net) > 2 * sqrt(noise):  # the weights sum to one; twice its standard error
        return float(np.sign(net))
    d = np.concatenate([d for d, _ in by_value])
    q = np.concatenate([q for _, q in by_value])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(q > 0, d / np.sqrt(q), 0.0)
    extreme = float(z[int(np.argmax(np.abs(z)))])
    return 1.0 if extreme >= 0 else -1.0


def _parent_score(
    table: Ints, cuboid: _Cuboid, cells: Ints, change: Floats, w: Floats, total: float, noise: float
) -> float:
    """Score of what the cells have in common (of everything, if nothing)."""
    values = table[list(cuboid.dims)][:, cuboid.first[cells]]
    inside = np.ones(table.shape[1], dtype=bool)
    for dim, row in zip(cuboid.dims, values, strict=True):
        if (row == row[0]).all():
            inside &= table[dim] == row[0]
    q = min(float(w[inside].sum()), 1.0)
    return (float(change[inside].sum()) - SURE * sqrt(noise * q * (1 - q))) / total - EXPOSED * q
