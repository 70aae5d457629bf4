import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Bools, Floats, Ints

_Rules = tuple[str, int, int, int, int, float]
_Detectors = tuple[npt.NDArray[np.float32], Floats, Ints, Floats, Floats, float, float, float, float]
_State = tuple[Floats, ...]

def instruction_sets() -> tuple[str, ...]: ...
def fit(
    instruction_set: str,
    X: Floats,
    is_complete: Bools,
    shape: tuple[int, int, int],
    most_rows: int,
    least_rows: int,
    nu: float,
    gamma: float,
    tolerance: float,
    least_spread: float,
    clip: float,
    levels: Floats,
    n_rows: Ints,
    center: Floats,
    spread: Floats,
    scaled: npt.NDArray[np.float32],
    alpha: Floats,
    quantiles: Floats,
    /,
) -> int: ...
def features(kind: str, values: Floats, contexts: Floats, k: int, X: Floats, /) -> None: ...
def own(kind: str, values: Floats, contexts: Floats, k: int, z: Floats, sd: Floats, is_former: Bools, /) -> None: ...
def context(rules: _Rules, state: _State, slot: int, units: Floats, effects: Floats, contexts: Floats, /) -> None: ...
def update(
    rules: _Rules, state: _State, slot: int, units: Floats, effects: Floats, values: Floats, contexts: Floats, /
) -> None: ...
def run(
    rules: _Rules,
    state: _State,
    slots: Ints,
    values: Floats,
    units: Floats,
    known: npt.NDArray[np.float32],
    members: Ints,
    effects: Floats,
    z: Floats,
    n_margins: int,
    n_groups: int,
    keep: int,
    X: Floats,
    contexts: Floats,
    /,
) -> None: ...
def score(detectors: _Detectors, segments: Ints, X: Floats, scores: Floats, /) -> None: ...
def bounds(
    kind: str,
    detectors: _Detectors,
    segments: Ints,
    values: Floats,
    contexts: Floats,
    thresholds: Floats,
    passes: Bools,
    lower: Floats,
    upper: Floats,
    /,
) -> None: ...
def share(members: Ints, n_margins: int, effects: Floats, z: Floats, contexts: Floats, /) -> None: ...
def effects(residuals: Floats, sd: Floats, members: Ints, n_margins: int, effects: Floats, /) -> None: ...
