"""The compiled code of native/, where it was built; without it numpy and scikit-learn do the same, slowly."""

from __future__ import annotations

__all__ = ["native"]

try:
    from segwatch.core import _native as native
except ImportError:
    native = None  # type: ignore[assignment]
