"""The compiled solver; all else is in pyproject.toml. Where it cannot be built, scikit-learn does its work."""

from setuptools import Extension, setup

native = Extension(
    "segwatch.core._native",
    [f"src/segwatch/core/native/{name}.cpp" for name in ("native", "noise", "baseline", "groups", "decision")],
    depends=[f"src/segwatch/core/native/{name}.h" for name in ("baseline", "common", "kernels", "noise")],
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    # -Wno-psabi: vectors are handed over inside the one file alone.
    extra_compile_args=["-O3", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[native], options={"bdist_wheel": {"py_limited_api": "cp311"}})
