"""What the compiled code takes: any call either succeeds or is refused, and no size is believed."""

import subprocess
import sys

import numpy as np
import pytest

from segwatch.core import _native

ODD = (None, -1, 0, 1 << 40, b"", b"x" * 7, np.zeros(3), np.zeros((2, 2))[:, ::-1], "avx9", np.nan, np.inf, (1, 2),
       (-1, 5, 2), (1, 1 << 50, 2), (1 << 50, 1 << 50, 30), (1, 5, 33))  # fmt: skip


def call(rng):
    """Arguments that fit each other, of any sizes and values."""
    n, n_periods, d = int(rng.integers(0, 4)), int(rng.integers(2, 300)), int(rng.integers(1, 33))
    most, n_levels = int(rng.integers(2, n_periods + 1)), int(rng.integers(0, 4))
    X = rng.standard_t(2, size=(n, n_periods, d)) * 10.0 ** rng.integers(-200, 200)
    if rng.random() < 0.3:
        X = np.round(X)
    if rng.random() < 0.1 and X.size:
        X.flat[rng.integers(X.size)] = rng.choice([np.nan, np.inf, 1e308, -0.0])
    complete = rng.random((n, n_periods)) < rng.random()
    sizes = (rng.uniform(0.01, 1), 10.0 ** rng.uniform(-6, 3), 10.0 ** rng.uniform(-7, -1), rng.uniform(0, 2), 30.0)
    out = [np.zeros(n, np.int64), np.zeros((n, d)), np.zeros((n, d)), np.zeros((n, most, d), np.float32)]
    out += [np.zeros((n, most)), np.zeros((n, n_levels))]
    name = rng.choice(_native.instruction_sets())
    return [
        str(name),
        X,
        complete,
        (n, n_periods, d),
        most,
        int(rng.integers(2, 60)),
        *sizes,
        rng.random(n_levels),
        *out,
    ]


@pytest.mark.parametrize("seed", range(4))
def test_arguments_that_fit_are_taken_and_what_comes_out_is_a_solution(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        arguments = call(rng)
        X, complete, nu, alpha, n_rows = (arguments[k] for k in (1, 2, 6, 16, 12))
        broken = _native.fit(*arguments)
        finite = np.isfinite(np.where(complete[..., None], X, 0.0)).all(axis=(1, 2))
        assert broken == (-1 if finite.all() else int(np.flatnonzero(~finite)[0]))
        if broken == -1:
            assert (n_rows == np.minimum(complete.sum(axis=1), alpha.shape[1])).all()
            trained = n_rows >= arguments[5]
            np.testing.assert_allclose(alpha.sum(axis=1), np.where(trained, nu * n_rows, 0.0), rtol=1e-6)
            assert ((alpha >= 0) & (alpha <= 1)).all()


def test_an_odd_argument_in_any_place_is_refused_or_harmless():
    rng = np.random.default_rng(9)
    refused = 0
    for odd in ODD:
        for place in range(18):
            arguments = call(rng)
            arguments[place] = odd
            try:
                _native.fit(*arguments)
            except (ValueError, TypeError, OverflowError, BufferError):
                refused += 1
    assert refused > 200


def test_it_keeps_to_the_stable_interface_of_python():
    assert ".abi3." in _native.__file__


def test_the_package_works_where_the_compiled_code_is_not_there():
    """As an installation without a compiler leaves it."""
    program = """
import sys
sys.modules["segwatch.core._native"] = None
import numpy as np
from segwatch.core.detector import Detector
from segwatch.core import compiled
assert compiled.native is None
print(Detector.fit(np.random.default_rng(0).normal(size=(60, 3))).score(np.zeros((1, 3)))[0] > 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr
