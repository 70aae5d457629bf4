// The One-Class SVMs of many segments in one call: scaling, fit and the quantiles of the training scores.
//
// The dual (Scholkopf et al. 2001), as libsvm scales it:
//
//     min 1/2 a'Ka   subject to   0 <= a_i <= 1,  sum a_i = nu n
//
// by sequential minimal optimisation with second-order working sets (Fan, Chen and Lin 2005). Kernel columns are made
// when they are asked for, in float; gradient and alphas are double. The gradient (Ka)_i is the training score of row
// i before its logarithm, so that scoring the training rows costs nothing more.

#include "common.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace {

using segwatch::Kernels;
using segwatch::Lent;
using segwatch::PAD;

#define WIDTH 16
namespace baseline {
#include "kernels.h"
}
#undef WIDTH

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define WIDTH 32
namespace avx2 {
#include "kernels.h"
}
#undef WIDTH
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define WIDTH 64
namespace avx512 {
#include "kernels.h"
}
#undef WIDTH
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
};

// Those that this processor has, the widest last.
std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets = {{"baseline", &baseline::kernels}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back({"avx2", &avx2::kernels});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    sets.push_back({"avx512", &avx512::kernels});
#endif
  return sets;
}

struct Freed {
  void operator()(void* p) const { std::free(p); }
};

template <class T>
std::unique_ptr<T[], Freed> aligned(int64_t n) {
  const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, std::max<size_t>(bytes, 64));
  if (!p) throw std::bad_alloc();
  return std::unique_ptr<T[], Freed>(static_cast<T*>(p));
}

int64_t padded_of(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

// The kernel columns that were asked for; beyond CACHE bytes the oldest one gives its place.
class Columns {
 public:
  explicit Columns(int64_t most_rows) : slot_of_(most_rows) {}

  void start(const Kernels& kernels, const float* features, int64_t n, int64_t n_features, float gamma) {
    kernels_ = &kernels, features_ = features, n_features_ = n_features, gamma_ = gamma;
    padded_ = padded_of(n);
    most_ = std::max<int64_t>(3, std::min(n, CACHE / (padded_ * int64_t{sizeof(float)})));
    per_block_ = std::max<int64_t>(1, BLOCK / (padded_ * int64_t{sizeof(float)}));
    std::fill(slot_of_.begin(), slot_of_.begin() + n, -1);
    row_of_.clear();
    next_ = 0;
  }

  // Column i, of n values and padding. It stays valid until the call after the next one.
  const float* get(int64_t i) {
    if (slot_of_[i] < 0) {
      int64_t slot = static_cast<int64_t>(row_of_.size());
      if (slot < most_) {
        row_of_.push_back(i);
      } else {
        slot = next_;
        if (slot == last_) slot = (slot + 1) % most_;
        next_ = (slot + 1) % most_;
        slot_of_[row_of_[slot]] = -1;
        row_of_[slot] = i;
      }
      slot_of_[i] = slot;
      float x[MOST_FEATURES];
      for (int64_t k = 0; k < n_features_; ++k) x[k] = features_[k * padded_ + i];
      kernels_->column(features_, padded_, n_features_, x, gamma_, place(slot));
    }
    last_ = slot_of_[i];
    return place(last_);
  }

  static constexpr int64_t MOST_FEATURES = 32;

 private:
  static constexpr int64_t CACHE = int64_t{64} << 20, BLOCK = int64_t{256} << 10;

  float* place(int64_t slot) {
    const size_t block = static_cast<size_t>(slot / per_block_);
    const int64_t floats = std::max(per_block_ * padded_, BLOCK / int64_t{sizeof(float)});
    while (blocks_.size() <= block) blocks_.push_back({nullptr, 0});
    Block& own = blocks_[block];
    if (own.floats < floats) own = {aligned<float>(floats), floats};
    return own.memory.get() + slot % per_block_ * padded_;
  }

  struct Block {
    std::unique_ptr<float[], Freed> memory;
    int64_t floats;
  };
  std::vector<Block> blocks_;
  std::vector<int64_t> slot_of_, row_of_;
  const Kernels* kernels_ = nullptr;
  const float* features_ = nullptr;
  int64_t n_features_ = 0, padded_ = 0, most_ = 0, per_block_ = 0, next_ = 0, last_ = -1;
  float gamma_ = 0;
};

// numpy.quantile's default, linear between the two nearest, of levels that rise; `values` are put in another order.
void quantiles_of(double* values, int64_t n, const double* levels, int64_t n_levels, double* found) {
  int64_t sorted = 0;  // None from here on is smaller than one before.
  for (int64_t q = 0; q < n_levels; ++q) {
    const double at = levels[q] * static_cast<double>(n - 1);
    const int64_t below = std::min(static_cast<int64_t>(at), n - 1);
    if (below < sorted) sorted = 0;
    std::nth_element(values + sorted, values + below, values + n);
    sorted = below;
    const double low = found[q] = values[below];
    if (below + 1 >= n) continue;
    const double high = *std::min_element(values + below + 1, values + n), part = at - static_cast<double>(below);
    found[q] = part >= 0.5 ? high - (high - low) * (1.0 - part) : low + (high - low) * part;
  }
}

struct Settings {
  int64_t n_periods, n_features, most_rows, least_rows;
  double nu, gamma, tolerance, least_spread, clip;
  const double* levels;
  int64_t n_levels;
};

// Fits one segment after the other, in memory that is kept between them.
class Solver {
 public:
  Solver(const Kernels& kernels, const Settings& s)
      : kernels_(kernels),
        s_(s),
        features_(aligned<float>(s.n_features * padded_of(s.most_rows))),
        alpha_(aligned<double>(padded_of(s.most_rows))),
        gradient_(aligned<double>(padded_of(s.most_rows))),
        work_(static_cast<size_t>(s.most_rows)),
        rows_(static_cast<size_t>(s.most_rows)),
        columns_(s.most_rows) {}

  // X: (n_periods, n_features). is_complete: (n_periods,). Returns how many rows there are, the last `most_rows` of
  // the complete ones; with fewer than `least_rows` nothing else is set.
  int64_t fit(const double* X, const uint8_t* is_complete, double* center, double* spread, float* scaled,
              double* alpha, double* quantiles) {
    const int64_t n = choose(is_complete), d = s_.n_features;
    if (n < s_.least_rows) return n;
    scale(X, n, center, spread);
    solve(n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < d; ++k) scaled[i * d + k] = features_[k * padded_of(n) + i];
    std::copy(alpha_.get(), alpha_.get() + n, alpha);
    score(n);
    quantiles_of(work_.data(), n, s_.levels, s_.n_levels, quantiles);
    return n;
  }

 private:
  int64_t choose(const uint8_t* is_complete) {
    int64_t n = 0;
    for (int64_t t = s_.n_periods - 1; t >= 0 && n < s_.most_rows; --t)
      if (is_complete[t]) rows_[n++] = t;
    std::reverse(rows_.begin(), rows_.begin() + n);
    return n;
  }

  // Median and spread of each feature, and the features in those units, each in a row of its own.
  void scale(const double* X, int64_t n, double* center, double* spread) {
    const int64_t d = s_.n_features, padded = padded_of(n);
    for (int64_t k = 0; k < d; ++k) {
      double mean = 0.0, squares = 0.0;
      for (int64_t i = 0; i < n; ++i) mean += work_[i] = X[rows_[i] * d + k];
      mean /= static_cast<double>(n);
      for (int64_t i = 0; i < n; ++i) squares += (work_[i] - mean) * (work_[i] - mean);
      const double levels[] = {0.25, 0.5, 0.75};
      double found[3];
      quantiles_of(work_.data(), n, levels, 3, found);
      const double low = found[0], middle = found[1], high = found[2];
      const double tiny = 1e-9 * std::max(1.0, std::abs(middle));
      double own = (high - low) / IQR_TO_SD;
      if (!(own > tiny)) own = std::sqrt(squares / static_cast<double>(n));
      own = std::max(own, s_.least_spread);
      if (!(own > tiny)) own = 1.0;
      center[k] = middle, spread[k] = own;
      float* feature = features_.get() + k * padded;
      for (int64_t i = 0; i < n; ++i) {
        const double z = (X[rows_[i] * d + k] - middle) / own;
        feature[i] = static_cast<float>(std::min(std::max(z, -s_.clip), s_.clip));
      }
      std::fill(feature + n, feature + padded, 0.0f);
    }
  }

  void solve(int64_t n) {
    const int64_t padded = padded_of(n);
    double *alpha = alpha_.get(), *gradient = gradient_.get();
    columns_.start(kernels_, features_.get(), n, s_.n_features, static_cast<float>(s_.gamma));
    start(n);
    std::fill(alpha + n, alpha + padded, std::numeric_limits<double>::quiet_NaN());
    std::fill(gradient, gradient + padded, 0.0);
    for (int64_t i = 0; i < n; ++i)
      if (alpha[i] > 0.0) kernels_.add(gradient, padded, alpha[i], columns_.get(i), nullptr);
    // As libsvm's limit.
    for (int64_t step = std::max<int64_t>(10'000'000, 100 * n); step > 0; --step) {
      const int64_t i = kernels_.growing(gradient, alpha, padded, 1.0);
      if (i < 0) return;
      const float* column_i = columns_.get(i);
      double largest;
      const int64_t j = kernels_.shrinking(gradient, alpha, column_i, gradient[i], padded, &largest);
      if (j < 0 || !(largest - gradient[i] > s_.tolerance)) return;
      const float* column_j = columns_.get(j);
      const double curvature = std::max(2.0 - 2.0 * static_cast<double>(column_i[j]), 1e-12);
      const double room = 1.0 - alpha[i], have = alpha[j];
      const double move = std::min((gradient[j] - gradient[i]) / curvature, std::min(room, have));
      alpha[i] = move == room ? 1.0 : alpha[i] + move;
      alpha[j] = move == have ? 0.0 : have - move;
      kernels_.add(gradient, padded, move, column_i, column_j);
    }
  }

  // The rows that lie farthest out begin as support vectors: most of them stay so.
  void start(int64_t n) {
    const int64_t padded = padded_of(n);
    std::fill(work_.begin(), work_.begin() + n, 0.0);
    for (int64_t k = 0; k < s_.n_features; ++k)
      for (int64_t i = 0; i < n; ++i) {
        const double x = features_[k * padded + i];
        work_[i] -= x * x;
      }
    const double total = s_.nu * static_cast<double>(n);
    const int64_t whole = std::min(static_cast<int64_t>(total), n);
    for (int64_t i = 0; i < n; ++i) rows_[i] = i;
    const int64_t chosen = std::min(whole + 1, n);
    std::nth_element(rows_.begin(), rows_.begin() + chosen - 1, rows_.begin() + n, [this](int64_t a, int64_t b) {
      return work_[a] < work_[b] || (work_[a] == work_[b] && a < b);
    });
    std::fill(alpha_.get(), alpha_.get() + n, 0.0);
    for (int64_t k = 0; k < whole; ++k) alpha_[rows_[k]] = 1.0;
    if (whole < n) alpha_[rows_[whole]] = total - static_cast<double>(whole);
  }

  // Scores of the training rows into work_: -ln (sum_i a_i K(x_i, x) / sum_i a_i).
  void score(int64_t n) {
    double total = 0.0;
    for (int64_t i = 0; i < n; ++i) total += alpha_[i];
    for (int64_t i = 0; i < n; ++i)
      work_[i] = gradient_[i] > 1e-12 ? std::log(total / gradient_[i]) : exact_score(i, n, total);
  }

  // By log-sum-exp: so far from all support vectors, float knows no kernel.
  double exact_score(int64_t row, int64_t n, double total) const {
    const int64_t padded = padded_of(n);
    double peak = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t i = 0; i < n; ++i) {
        if (!(alpha_[i] > 0.0)) continue;
        double distance = 0.0;
        for (int64_t k = 0; k < s_.n_features; ++k) {
          const double t = static_cast<double>(features_[k * padded + i]) - features_[k * padded + row];
          distance += t * t;
        }
        const double exponent = std::log(alpha_[i] / total) - s_.gamma * distance;
        if (pass == 0)
          peak = std::max(peak, exponent);
        else
          sum += std::exp(exponent - peak);
      }
    return -(peak + std::log(sum));
  }

  static constexpr double IQR_TO_SD = 1.349;
  const Kernels& kernels_;
  const Settings& s_;
  std::unique_ptr<float[], Freed> features_;
  std::unique_ptr<double[], Freed> alpha_, gradient_;
  std::vector<double> work_;
  std::vector<int64_t> rows_;
  Columns columns_;
};

PyObject* fit(PyObject*, PyObject* args) {
  const char* name;
  Lent X, complete, levels, n_rows, center, spread, scaled, alpha, quantiles;
  long long n_segments, n_periods, n_features, most_rows, least_rows;
  Settings s{};
  if (!PyArg_ParseTuple(args, "sy*y*(LLL)LLdddddy*w*w*w*w*w*w*", &name, &X.view, &complete.view, &n_segments,
                        &n_periods, &n_features, &most_rows, &least_rows, &s.nu, &s.gamma, &s.tolerance,
                        &s.least_spread, &s.clip, &levels.view, &n_rows.view, &center.view, &spread.view, &scaled.view,
                        &alpha.view, &quantiles.view))
    return nullptr;
  if (n_segments < 0 || n_periods < 1 || n_features < 1 || n_features > Columns::MOST_FEATURES || most_rows < 2 ||
      most_rows > n_periods || least_rows < 2 || !(s.nu > 0.0 && s.nu <= 1.0) || !(s.gamma > 0.0 && s.gamma < 1e6) ||
      !(s.tolerance > 0.0) || !(s.clip > 0.0 && s.clip < 1e6) || n_periods > (int64_t{1} << 31) || n_segments > (int64_t{1} << 31)) {
    PyErr_SetString(PyExc_ValueError, "a size or a parameter is out of range");
    return nullptr;
  }
  s.n_periods = n_periods, s.n_features = n_features, s.most_rows = most_rows, s.least_rows = least_rows;
  s.levels = levels.as<double>(), s.n_levels = levels.view.len / static_cast<Py_ssize_t>(sizeof(double));
  if (!X.holds(n_segments * n_periods * n_features, sizeof(double), "X") ||
      !complete.holds(n_segments * n_periods, 1, "is_complete") ||
      !n_rows.holds(n_segments, sizeof(int64_t), "n_rows") ||
      !center.holds(n_segments * n_features, sizeof(double), "center") ||
      !spread.holds(n_segments * n_features, sizeof(double), "spread") ||
      !scaled.holds(n_segments * most_rows * n_features, sizeof(float), "scaled") ||
      !alpha.holds(n_segments * most_rows, sizeof(double), "alpha") ||
      !quantiles.holds(n_segments * s.n_levels, sizeof(double), "quantiles"))
    return nullptr;
  for (int64_t q = 0; q < s.n_levels; ++q)
    if (!(s.levels[q] >= 0.0 && s.levels[q] <= 1.0)) {
      PyErr_SetString(PyExc_ValueError, "a level is not between 0 and 1");
      return nullptr;
    }
  const Kernels* kernels = nullptr;
  for (const InstructionSet& set : instruction_sets())
    if (std::strcmp(set.name, name) == 0) kernels = set.kernels;
  if (!kernels) {
    PyErr_Format(PyExc_ValueError, "this processor has no %s", name);
    return nullptr;
  }
  int64_t broken = -1;
  PyObject* done = segwatch::unlocked([&] {
    Solver solver(*kernels, s);
    for (int64_t k = 0; k < n_segments && broken < 0; ++k) {
      const double* own = X.as<double>() + k * n_periods * n_features;
      const uint8_t* is_complete = complete.as<uint8_t>() + k * n_periods;
      for (int64_t t = 0; t < n_periods; ++t)
        for (int64_t f = 0; is_complete[t] && f < n_features; ++f)
          if (!std::isfinite(own[t * n_features + f])) broken = k;
      if (broken < 0)
        n_rows.as<int64_t>()[k] =
            solver.fit(own, is_complete, center.as<double>() + k * n_features, spread.as<double>() + k * n_features,
                       scaled.as<float>() + k * most_rows * n_features, alpha.as<double>() + k * most_rows,
                       quantiles.as<double>() + k * s.n_levels);
    }
  });
  if (!done) return nullptr;
  Py_DECREF(done);
  return PyLong_FromLongLong(broken);
}

PyObject* names(PyObject*, PyObject*) {
  const std::vector<InstructionSet> sets = instruction_sets();
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(sets.size()));
  for (size_t k = 0; tuple && k < sets.size(); ++k) {
    PyObject* name = PyUnicode_FromString(sets[k].name);
    if (!name || PyTuple_SetItem(tuple, static_cast<Py_ssize_t>(k), name) < 0) {
      Py_DECREF(tuple);
      return nullptr;
    }
  }
  return tuple;
}

PyMethodDef methods[] = {
    {"fit", fit, METH_VARARGS, "Fits the segments of X, see segwatch.core.solver. Returns the first one with NaN or infinite values, or -1."},
    {"features", segwatch::features, METH_VARARGS, "See FeatureSet.features."},
    {"own", segwatch::own, METH_VARARGS, "See FeatureSet.own."},
    {"context", segwatch::context, METH_VARARGS, "See Recursion.context."},
    {"update", segwatch::update, METH_VARARGS, "See Recursion.update."},
    {"run", segwatch::run, METH_VARARGS, "See replay.rows_of."},
    {"score", segwatch::score, METH_VARARGS, "See ModelBundle.score."},
    {"bounds", segwatch::bounds, METH_VARARGS, "See decision.alert_bounds."},
    {"effects", segwatch::effects, METH_VARARGS, "See Groups.effects."},
    {"share", segwatch::share, METH_VARARGS, "See Shared.fill."},
    {"instruction_sets", names, METH_NOARGS, "Names of those that this processor has, the widest last."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef_Slot slots[] = {{0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace

const Kernels& segwatch::best_kernels() {
  static const Kernels& best = *instruction_sets().back().kernels;
  return best;
}

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&module); }
