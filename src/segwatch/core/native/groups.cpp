// The robust backfitting of segwatch/core/groups.py, group by group as it is said there; tests hold the two equal.

#include <algorithm>
#include <vector>

#include "common.h"

namespace segwatch {

namespace {

constexpr int64_t LEAST_MEMBERS = 4;
constexpr int SWEEPS = 4;
constexpr double HUBER = 1.5, MOST_WEIGHT = 10.0, CHANCE = 4.0;

// numpy.median of values that it may put in another order; NaN of none.
double median(std::vector<double>& values) {
  if (values.empty()) return NaN;
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + middle, values.end());
  const double high = values[middle];
  if (values.size() % 2) return high;
  return (*std::max_element(values.begin(), values.begin() + middle) + high) / 2.0;
}

struct Row {
  int64_t segment;
  double residual, sd, precision, fitted;
};

void fit(const double* residuals, const double* sd, const int64_t* members, int64_t n, int64_t n_margins,
         int64_t n_groups, double* effects) {
  std::fill(effects, effects + n_groups, 0.0);
  std::vector<Row> rows;
  std::vector<double> scratch;
  for (int64_t i = 0; i < n; ++i)
    if (residuals[i] == residuals[i] && members[i] >= 0) {
      rows.push_back({i, residuals[i], sd[i], 1.0 / (sd[i] * sd[i]), 0.0});
      scratch.push_back(rows.back().precision);
    }
  if (static_cast<int64_t>(rows.size()) < LEAST_MEMBERS) return;
  const double most = MOST_WEIGHT * median(scratch);
  for (Row& row : rows) row.precision = smaller(row.precision, most);
  std::vector<double> weights(n_groups), sums(n_groups), precisions(n_groups), before(n_groups);
  for (int sweep = 0; sweep < SWEEPS; ++sweep)
    for (int64_t margin = 0; margin < n_margins; ++margin) {
      const int64_t* group_of = members + margin * n;
      std::fill(weights.begin(), weights.end(), 0.0);
      std::fill(sums.begin(), sums.end(), 0.0);
      std::fill(precisions.begin(), precisions.end(), 0.0);
      for (const Row& row : rows) {
        const int64_t group = group_of[row.segment];
        if (group < 0) continue;
        // In the first sweep this margin is fitted nowhere yet, and its effects are 0.
        const double own = effects[group], rest = row.residual - row.fitted + own;
        const double distance = std::abs((rest - own) / row.sd);
        const double weight = row.precision * smaller(1.0, HUBER / larger(distance, 1e-9));
        weights[group] += weight, sums[group] += weight * rest, precisions[group] += row.precision;
      }
      scratch.clear();
      std::copy(effects, effects + n_groups, before.begin());
      for (int64_t group = 0; group < n_groups; ++group) {
        if (!(weights[group] > 0.0)) continue;
        double effect = sums[group] / weights[group];
        effect *= larger(0.0, 1.0 - CHANCE / precisions[group] / (effect * effect));
        effects[group] = zero_if_nan(effect);
        scratch.push_back(effects[group]);
      }
      // The shock of one value must not show with the opposite sign in the others.
      const double middle = margin > 0 && !scratch.empty() ? median(scratch) : 0.0;
      for (int64_t group = 0; group < n_groups; ++group)
        if (weights[group] > 0.0) effects[group] -= middle;
      for (Row& row : rows) {
        const int64_t group = group_of[row.segment];
        if (group >= 0) row.fitted += effects[group] - before[group];
      }
    }
}

}  // namespace

// (residuals (n,), sd (n,), members (n_margins, n), n_margins, out effects (n_groups,))
PyObject* effects(PyObject*, PyObject* args) {
  Lent residuals, sd, members, found;
  long long n_margins;
  if (!PyArg_ParseTuple(args, "y*y*y*Lw*", &residuals.view, &sd.view, &members.view, &n_margins, &found.view))
    return nullptr;
  const int64_t n = residuals.view.len / static_cast<int64_t>(sizeof(double));
  const int64_t n_groups = found.view.len / static_cast<int64_t>(sizeof(double));
  if (n_margins < 1 || n_margins > 100) return PyErr_Format(PyExc_ValueError, "there cannot be %lld margins", n_margins);
  if (!residuals.holds(n, sizeof(double), "residuals") || !sd.holds(n, sizeof(double), "sd") ||
      !members.holds(n_margins * n, sizeof(int64_t), "members") || !found.holds(n_groups, sizeof(double), "effects"))
    return nullptr;
  for (int64_t k = 0; k < n_margins * n; ++k)
    if (members.as<int64_t>()[k] < -1 || members.as<int64_t>()[k] >= n_groups) {
      PyErr_SetString(PyExc_ValueError, "a member is of no group");
      return nullptr;
    }
  return unlocked([&] {
    fit(residuals.as<double>(), sd.as<double>(), members.as<int64_t>(), n, n_margins, n_groups, found.as<double>());
  });
}

}  // namespace segwatch
