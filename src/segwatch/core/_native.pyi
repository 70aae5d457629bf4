import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Bools, Floats, Ints

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
