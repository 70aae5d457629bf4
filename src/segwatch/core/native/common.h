// What the parts of the extension share: numpy's treatment of NaN, and buffers that Python lends.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <new>

namespace segwatch {

constexpr double NaN = std::numeric_limits<double>::quiet_NaN();

// numpy.maximum and minimum: NaN if one is.
inline double larger(double a, double b) { return a >= b || a != a ? a : b; }
inline double smaller(double a, double b) { return a <= b || a != a ? a : b; }
inline double clipped(double x, double low, double high) { return smaller(larger(x, low), high); }
inline double zero_if_nan(double x) { return x != x ? 0.0 : x; }
inline double sign(double x) { return (x > 0.0) - (x < 0.0); }

// A buffer that Python lent; given back at the end.
struct Lent {
  Py_buffer view{};
  Lent() = default;
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() {
    if (view.obj) PyBuffer_Release(&view);
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(view.buf);
  }
  // Whether it has so many items of a size; sets a Python error where it has not.
  bool holds(int64_t count, size_t size, const char* name) const {
    if (count >= 0 && view.len == static_cast<Py_ssize_t>(static_cast<size_t>(count) * size)) return true;
    PyErr_Format(PyExc_ValueError, "%s has %zd bytes, expected %lld items of %zu", name, view.len,
                 static_cast<long long>(count), size);
    return false;
  }
};

// Rows are padded to whole blocks of this many for the kernels.
constexpr int64_t PAD = 16;

// The inner loops, see kernels.h.
struct Kernels {
  void (*column)(const float*, int64_t, int64_t, const float*, float, float*);
  void (*add)(double*, int64_t, double, const float*, const float*);
  int64_t (*growing)(const double*, const double*, int64_t, double);
  int64_t (*shrinking)(const double*, const double*, const float*, double, int64_t, double*);
};

// Those of the widest instruction set that this processor has.
const Kernels& best_kernels();

// Does the work without the interpreter lock; None, or a MemoryError.
template <class Work>
PyObject* unlocked(const Work& work) {
  bool has_memory = true;
  Py_BEGIN_ALLOW_THREADS;
  try {
    work();
  } catch (const std::bad_alloc&) {
    has_memory = false;
  }
  Py_END_ALLOW_THREADS;
  if (!has_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

// Whether so many members, of -1 or one of the groups each; sets a Python error where they are not.
bool are_members(const Lent& members, int64_t count, int64_t n_groups);

PyObject* score(PyObject*, PyObject*);
PyObject* bounds(PyObject*, PyObject*);
PyObject* features(PyObject*, PyObject*);
PyObject* own(PyObject*, PyObject*);
PyObject* context(PyObject*, PyObject*);
PyObject* update(PyObject*, PyObject*);
PyObject* run(PyObject*, PyObject*);
PyObject* effects(PyObject*, PyObject*);
PyObject* share(PyObject*, PyObject*);

}  // namespace segwatch
