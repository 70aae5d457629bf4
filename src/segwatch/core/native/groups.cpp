// The robust backfitting of segwatch/core/groups.py, group by group as it is said there; tests hold the two equal.

#include <algorithm>
#include <vector>

#include "baseline.h"

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

void fit(const double* residuals, const double* sd, const int64_t* members, int64_t n, int64_t n_margins,
         int64_t n_groups, double* effects) {
  std::fill(effects, effects + n_groups, 0.0);
  // Rows are the segments that have a residual. A row counts less where it is further from its groups than `limit`.
  std::vector<int64_t> segments;
  std::vector<double> residual, limit, precision, scratch;
  for (int64_t i = 0; i < n; ++i)
    if (residuals[i] == residuals[i] && members[i] >= 0) {
      segments.push_back(i);
      residual.push_back(residuals[i]), limit.push_back(HUBER * sd[i]), precision.push_back(1.0 / (sd[i] * sd[i]));
    }
  const int64_t n_rows = static_cast<int64_t>(segments.size());
  if (n_rows < LEAST_MEMBERS) return;
  scratch = precision;
  const double most = MOST_WEIGHT * median(scratch);
  for (double& p : precision) p = smaller(p, most);
  std::vector<int64_t> groups(n_margins * n_rows);
  std::vector<double> precisions(n_groups), weights(n_groups), sums(n_groups), change(n_groups, 0.0);
  for (int64_t margin = 0; margin < n_margins; ++margin)
    for (int64_t i = 0; i < n_rows; ++i) {
      const int64_t group = members[margin * n + segments[i]];
      groups[margin * n_rows + i] = group;
      if (group >= 0) precisions[group] += precision[i];
    }
  const int64_t* before = nullptr;  // the groups of the margin that was fitted last, whose effects have changed
  for (int sweep = 0; sweep < SWEEPS; ++sweep)
    for (int64_t margin = 0; margin < n_margins; ++margin) {
      const int64_t* of_rows = groups.data() + margin * n_rows;
      std::fill(weights.begin(), weights.end(), 0.0);
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t i = 0; i < n_rows; ++i) {
        // What is left of the residual when all groups have had their part.
        if (before && before[i] >= 0) residual[i] -= change[before[i]];
        const int64_t group = of_rows[i];
        if (group < 0) continue;
        const double distance = std::abs(residual[i]);
        const double weight = distance > limit[i] ? precision[i] * limit[i] / distance : precision[i];
        weights[group] += weight, sums[group] += weight * (residual[i] + effects[group]);
      }
      scratch.clear();
      for (int64_t group = 0; group < n_groups; ++group) {
        change[group] = 0.0;
        if (!(weights[group] > 0.0)) continue;
        double effect = sums[group] / weights[group];
        effect *= larger(0.0, 1.0 - CHANCE / precisions[group] / (effect * effect));
        change[group] = -effects[group];
        effects[group] = zero_if_nan(effect);
        scratch.push_back(effects[group]);
      }
      // The shock of one value must not show with the opposite sign in the others.
      const double middle = margin > 0 && !scratch.empty() ? median(scratch) : 0.0;
      for (int64_t group = 0; group < n_groups; ++group)
        if (weights[group] > 0.0) effects[group] -= middle, change[group] += effects[group];
      before = of_rows;
    }
}

}  // namespace

bool are_members(const Lent& members, int64_t count, int64_t n_groups) {
  if (!members.holds(count, sizeof(int64_t), "members")) return false;
  for (int64_t k = 0; k < count; ++k)
    if (members.as<int64_t>()[k] < -1 || members.as<int64_t>()[k] >= n_groups) {
      PyErr_SetString(PyExc_ValueError, "a member is of no group");
      return false;
    }
  return true;
}

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
      !found.holds(n_groups, sizeof(double), "effects") || !are_members(members, n_margins * n, n_groups))
    return nullptr;
  return unlocked([&] {
    fit(residuals.as<double>(), sd.as<double>(), members.as<int64_t>(), n, n_margins, n_groups, found.as<double>());
  });
}

// (members (n_margins, n), n_margins, effects (n_groups,), z (n_groups,), contexts (n, N_CONTEXT)); what a segment's
// groups shared in a period stands, in place, in its context.
PyObject* share(PyObject*, PyObject* args) {
  Lent members, effects, z, contexts;
  long long n_margins;
  if (!PyArg_ParseTuple(args, "y*Ly*y*w*", &members.view, &n_margins, &effects.view, &z.view, &contexts.view))
    return nullptr;
  const int64_t n = contexts.view.len / static_cast<int64_t>(N_CONTEXT * sizeof(double));
  const int64_t n_groups = effects.view.len / static_cast<int64_t>(sizeof(double));
  if (n_margins < 1 || n_margins > 100) return PyErr_Format(PyExc_ValueError, "there cannot be %lld margins", n_margins);
  if (!contexts.holds(n * N_CONTEXT, sizeof(double), "contexts") || !z.holds(n_groups, sizeof(double), "z") ||
      !effects.holds(n_groups, sizeof(double), "effects") || !are_members(members, n_margins * n, n_groups))
    return nullptr;
  return unlocked([&] {
    for (int64_t i = 0; i < n; ++i) {
      double* c = contexts.as<double>() + i * N_CONTEXT;
      c[COMMON] = c[COMMON_Z] = 0.0;
      for (int64_t m = 0; m < n_margins; ++m) {
        const int64_t group = members.as<int64_t>()[m * n + i];
        if (group < 0) continue;
        c[COMMON] += effects.as<double>()[group];
        if (std::abs(z.as<double>()[group]) > std::abs(c[COMMON_Z])) c[COMMON_Z] = z.as<double>()[group];
      }
    }
  });
}

}  // namespace segwatch
