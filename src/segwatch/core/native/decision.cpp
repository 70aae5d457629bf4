// Scores of rows under the detectors of many segments (detector.py), and the interval of values that would not have
// been flagged in a row's place (`alert_bounds` of decision.py, step by step); tests hold them equal.

#include <algorithm>
#include <vector>

#include "baseline.h"

namespace segwatch {

namespace {

constexpr double STEPS[] = {0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0, 60.0};
constexpr int N_STEPS = 17, N_CANDIDATES = 2 * N_STEPS + 2, HALVINGS = 20;
constexpr double IN_ORDER = 3.0, TRUNCATED = 0.2, SAID = 4.0, TINY_P = 1e-300, FAR = 1e-12;

// The detectors of n segments: vectors (all, n_features) with weights (all,), offsets (n + 1,) of each segment's;
// scaling (n, 2, n_features), centers and spreads; tails (n, 3), location, scale and stretch.
struct Detectors {
  const float* vectors;
  const double *weights, *scaling, *tails;
  const int64_t* offsets;
  int64_t n, n_vectors;
  double gamma, clip, level, knee;
};

// One segment's detector, its vectors feature by feature for the kernels.
class Detector {
 public:
  Detector(const Kernels& kernels, const Detectors& all) : kernels_(kernels), all_(all) {}

  void take(int64_t segment) {
    if (segment == segment_) return;
    segment_ = segment;
    first_ = all_.offsets[segment], m_ = all_.offsets[segment + 1] - first_;
    padded_ = (m_ + PAD - 1) / PAD * PAD;
    columns_.assign(static_cast<size_t>(N_FEATURES * padded_), 0.0f);
    kernel_.resize(static_cast<size_t>(padded_));
    for (int64_t i = 0; i < m_; ++i)
      for (int k = 0; k < N_FEATURES; ++k) columns_[k * padded_ + i] = all_.vectors[(first_ + i) * N_FEATURES + k];
  }

  // -ln sum_i w_i K(x_i, x).
  double score(const double* X) {
    float x[N_FEATURES];
    scale(X, x);
    kernels_.column(columns_.data(), padded_, N_FEATURES, x, static_cast<float>(all_.gamma), kernel_.data());
    // In several sums, which the processor adds at once.
    constexpr int64_t WIDTH = 8;
    double parts[WIDTH] = {};
    const double* weights = all_.weights + first_;
    int64_t i = 0;
    for (; i + WIDTH <= m_; i += WIDTH)
      for (int64_t k = 0; k < WIDTH; ++k) parts[k] += weights[i + k] * static_cast<double>(kernel_[i + k]);
    for (; i < m_; ++i) parts[0] += weights[i] * static_cast<double>(kernel_[i]);
    double sum = 0.0;
    for (const double part : parts) sum += part;
    return sum > FAR ? -std::log(sum) : far_score(x);
  }

  double p_value(const double* X) { return p_of(score(X)); }

 private:
  // The score by log-sum-exp, for rows so far away that the kernels underflow.
  double far_score(const float* x) {
    exponents_.resize(static_cast<size_t>(m_));
    double peak = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (int64_t i = 0; i < m_; ++i) {
      double distance = 0.0;
      for (int k = 0; k < N_FEATURES; ++k) {
        const double t = static_cast<double>(columns_[k * padded_ + i]) - x[k];
        distance += t * t;
      }
      exponents_[i] = std::log(all_.weights[first_ + i]) - all_.gamma * distance;
      peak = std::max(peak, exponents_[i]);
    }
    for (int64_t i = 0; i < m_; ++i) sum += std::exp(exponents_[i] - peak);
    return -(peak + std::log(sum));
  }

  void scale(const double* X, float* x) const {
    const double* own = all_.scaling + segment_ * 2 * N_FEATURES;
    for (int k = 0; k < N_FEATURES; ++k)
      x[k] = static_cast<float>(clipped((X[k] - own[k]) / own[N_FEATURES + k], -all_.clip, all_.clip));
  }

  // See Calibration.p_value.
  double p_of(double score) const {
    const double* tail = all_.tails + segment_ * 3;
    const double beyond = (score - tail[0]) / tail[1];
    if (!(beyond > 0.0)) return 1.0 - all_.level * std::exp(beyond);
    const double stretched = beyond > all_.knee ? all_.knee + (beyond - all_.knee) / tail[2] : beyond;
    return larger((1.0 - all_.level) * std::exp(-stretched), TINY_P);
  }

  const Kernels& kernels_;
  const Detectors& all_;
  int64_t segment_ = -1, first_ = 0, m_ = 0, padded_ = 0;
  std::vector<float> columns_, kernel_;
  std::vector<double> exponents_;
};

double restored(double stabilised_count) {
  const double half = std::sinh(larger(stabilised_count, 0.0) / 20.0);
  return larger(half * half / PHI - 0.375, 0.0);
}

// The value, in the metric's unit, that lies z standard deviations from the expected one.
double value_at(double z, const double* c, Kind kind) {
  const double sd = floored(c[NOISE], c[EXPECTED], kind);
  if (kind == Kind::value) return c[UNIT] * std::sinh(c[EXPECTED] + z * sd);
  return restored(stabilised(larger(c[EXPECTED], LEAST_COUNT)) + z * sd) / c[UNIT];
}

struct Interval {
  double lower, upper;
};

struct Row {
  Detector& detector;
  const double* context;
  Kind kind;
  double log_threshold;

  // By how much a value's p-value is above the threshold, as a difference of logarithms: above 0 it is not flagged.
  double margin(double value) const {
    const Own own = own_of(value, context, kind);
    if (std::abs(own.z) < IN_ORDER && context[PEAK] >= SAID) return 1.0;
    double X[N_FEATURES];
    features_of(value, context, own, kind, X);
    return std::log(detector.p_value(X)) - log_threshold;
  }

  // The last unflagged value from `inside` on, where `outside` is flagged; f and g are their margins (ITP).
  double edge(double inside, double f, double outside, double g) const {
    const double least = std::ldexp(1.0, -HALVINGS - 1);
    double a = 0.0, b = 1.0, most = std::ldexp(least, HALVINGS + 1);
    for (; b - a > 2.0 * least; most /= 2.0) {
      const double half = (a + b) / 2.0, line = (g * a - f * b) / (g - f), away = sign(half - line);
      const double step = TRUNCATED * (b - a) * (b - a), reach = most - (b - a) / 2.0;
      double t = step <= std::abs(half - line) ? line + away * step : half;
      if (std::abs(t - half) > reach) t = half - away * reach;
      const double here = margin(inside + t * (outside - inside));
      if (here > 0.0)
        a = t, f = here;
      else
        b = t, g = here;
    }
    return inside + a * (outside - inside);
  }

  Interval bounds(double value, bool passes) const {
    double grid[N_CANDIDATES];
    for (int k = 0; k < N_STEPS; ++k) {
      grid[N_STEPS - 1 - k] = value_at(-STEPS[k], context, kind);
      grid[N_STEPS + 1 + k] = value_at(STEPS[k], context, kind);
    }
    grid[N_STEPS] = value_at(0.0, context, kind);
    grid[N_CANDIDATES - 1] = value;
    std::sort(grid, grid + N_CANDIDATES);
    const double expected = kind == Kind::value ? context[UNIT] * std::sinh(context[EXPECTED])
                                                : context[EXPECTED] / context[UNIT];
    double margins[N_CANDIDATES];
    bool is_known[N_CANDIDATES] = {};
    const auto margin_of = [&](int k) {
      if (!is_known[k]) margins[k] = grid[k] == value ? (passes ? 1.0 : -1.0) : margin(grid[k]);
      is_known[k] = true;
      return margins[k];
    };
    int anchor = -1;
    for (int k = 0; k < N_CANDIDATES; ++k) {
      // Where the value passes, the interval is about it, and no other needs to be asked yet.
      if (passes && grid[k] == value) {
        anchor = k;
        break;
      }
      if (!passes && margin_of(k) > 0.0 &&
          (anchor < 0 || std::abs(grid[k] - expected) < std::abs(grid[anchor] - expected)))
        anchor = k;
    }
    if (anchor < 0) return {NaN, NaN};
    Interval found{NaN, NaN};
    for (int k = anchor + 1; k < N_CANDIDATES && found.upper != found.upper; ++k)
      if (!(margin_of(k) > 0.0)) found.upper = edge(grid[k - 1], margin_of(k - 1), grid[k], margin_of(k));
    for (int k = anchor - 1; k >= 0 && found.lower != found.lower; --k)
      if (!(margin_of(k) > 0.0)) found.lower = edge(grid[k + 1], margin_of(k + 1), grid[k], margin_of(k));
    // Nothing lies under zero, so an interval open to that side ends there.
    if (kind != Kind::value && found.lower != found.lower) found.lower = 0.0;
    return found;
  }
};

// Reads (vectors, weights, offsets, scaling, tails, gamma, clip, level, knee).
struct Lenders {
  Lent vectors, weights, offsets, scaling, tails;
  Detectors all{};

  bool take(PyObject* tuple) {
    if (!PyArg_ParseTuple(tuple, "y*y*y*y*y*dddd", &vectors.view, &weights.view, &offsets.view, &scaling.view,
                          &tails.view, &all.gamma, &all.clip, &all.level, &all.knee))
      return false;
    const int64_t n = offsets.view.len / static_cast<int64_t>(sizeof(int64_t)) - 1;
    const int64_t n_vectors = weights.view.len / static_cast<int64_t>(sizeof(double));
    if (n < 0 || !offsets.holds(n + 1, sizeof(int64_t), "offsets") ||
        !weights.holds(n_vectors, sizeof(double), "weights") ||
        !vectors.holds(n_vectors * N_FEATURES, sizeof(float), "vectors") ||
        !scaling.holds(n * 2 * N_FEATURES, sizeof(double), "scaling") || !tails.holds(n * 3, sizeof(double), "tails")) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "there are no offsets");
      return false;
    }
    const int64_t* at = offsets.as<int64_t>();
    bool is_rising = at[0] >= 0;
    for (int64_t k = 0; k < n; ++k) is_rising = is_rising && at[k] <= at[k + 1];
    if (!is_rising) {
      PyErr_SetString(PyExc_ValueError, "the offsets do not rise");
      return false;
    }
    all.n_vectors = n_vectors;
    all.vectors = vectors.as<float>(), all.weights = weights.as<double>(), all.offsets = at, all.n = n;
    all.scaling = scaling.as<double>(), all.tails = tails.as<double>();
    return true;
  }

  bool knows(const Lent& segments, int64_t n_rows) const {
    if (!segments.holds(n_rows, sizeof(int64_t), "segments")) return false;
    for (int64_t i = 0; i < n_rows; ++i) {
      const int64_t k = segments.as<int64_t>()[i];
      // A file that is wrong about one segment is no reason to refuse the others.
      if (k < 0 || k >= all.n || all.offsets[k] == all.offsets[k + 1] || all.offsets[k + 1] > all.n_vectors) {
        PyErr_SetString(PyExc_ValueError, "a row is of a segment that has no detector, or not all of it");
        return false;
      }
    }
    return true;
  }
};

// Does the work for each row, with the detector of its segment.
template <class Work>
PyObject* on_rows(const Lenders& lenders, const Lent& segments, int64_t n, const Work& work) {
  return unlocked([&] {
    Detector detector(best_kernels(), lenders.all);
    for (int64_t i = 0; i < n; ++i) {
      detector.take(segments.as<int64_t>()[i]);
      work(detector, i);
    }
  });
}

}  // namespace

// (detectors, segments (n,), X (n, N_FEATURES), out scores (n,))
PyObject* score(PyObject*, PyObject* args) {
  PyObject* tuple;
  Lent segments, X, scores;
  Lenders lenders;
  if (!PyArg_ParseTuple(args, "O!y*y*w*", &PyTuple_Type, &tuple, &segments.view, &X.view, &scores.view) ||
      !lenders.take(tuple))
    return nullptr;
  const int64_t n = scores.view.len / static_cast<int64_t>(sizeof(double));
  if (!scores.holds(n, sizeof(double), "scores") || !X.holds(n * N_FEATURES, sizeof(double), "X") ||
      !lenders.knows(segments, n))
    return nullptr;
  return on_rows(lenders, segments, n, [&](Detector& detector, int64_t i) {
    scores.as<double>()[i] = detector.score(X.as<double>() + i * N_FEATURES);
  });
}

// (kind, detectors, segments (n,), values (n,), contexts (n, N_CONTEXT), thresholds (n,), passes (n,),
//  out lower (n,), out upper (n,))
PyObject* bounds(PyObject*, PyObject* args) {
  const char* name;
  PyObject* tuple;
  Lent segments, values, contexts, thresholds, passes, lower, upper;
  Lenders lenders;
  Kind kind;
  if (!PyArg_ParseTuple(args, "sO!y*y*y*y*y*w*w*", &name, &PyTuple_Type, &tuple, &segments.view, &values.view,
                        &contexts.view, &thresholds.view, &passes.view, &lower.view, &upper.view) ||
      !kind_of(name, &kind) || !lenders.take(tuple))
    return nullptr;
  const int64_t n = values.view.len / static_cast<int64_t>(sizeof(double));
  if (!values.holds(n, sizeof(double), "values") || !contexts.holds(n * N_CONTEXT, sizeof(double), "contexts") ||
      !thresholds.holds(n, sizeof(double), "thresholds") || !passes.holds(n, 1, "passes") ||
      !lower.holds(n, sizeof(double), "lower") || !upper.holds(n, sizeof(double), "upper") ||
      !lenders.knows(segments, n))
    return nullptr;
  return on_rows(lenders, segments, n, [&](Detector& detector, int64_t i) {
    const Row row{detector, contexts.as<double>() + i * N_CONTEXT, kind, std::log(thresholds.as<double>()[i])};
    const Interval found = row.bounds(values.as<double>()[i], passes.as<uint8_t>()[i]);
    lower.as<double>()[i] = found.lower, upper.as<double>()[i] = found.upper;
  });
}

}  // namespace segwatch
