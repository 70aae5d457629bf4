"""The compiled code of native/, where it was built; without it numpy and scikit-learn do the same, slowly."""

from __future__ import annotations

__all__ = ["native", "notice"]

try:
    from segwatch.core import _native as native
except ImportError:
    native = None  # type: ignore[assignment]


def notice() -> str | None:
    """A sentence where the compiled code is missing; None where it is there."""
    if native is not None:
        return None
    return (
        "segwatch was installed without its compiled code, so that training takes tens of times as long: install a C++"
        " compiler and the headers of Python, then segwatch again"
    )
