// segwatch/core/baseline.py and features.py, value by value: what is said there holds here, and tests hold the two
// equal. Python has the definition that is read; this is the one that is run.

#include <algorithm>
#include <cstring>

#include "baseline.h"

namespace segwatch {

namespace {

constexpr double SHORT_PERIODS = 3.0, WINDOW_CLIP = 3.0, TODAY_CLIP = 6.0, LARGEST = 12.0, DISAGREEING = 1.5;
constexpr double AGREES_FROM = 0.5, SHARED_WEIGHT = 0.5, USUAL_REPEATS = 0.5, LONGEST_RUN = 14.0;
constexpr double LEVEL_RATE = 0.05, NOISE_RATE = 0.02, PROFILE_RATE = 0.074, YOUNG_WEEKS = 12.0;
constexpr double YOUNG_NOISE_RATE = 0.05, FULL_WEIGHT = 2.5, NO_WEIGHT = 4.0, KNOWN_WEIGHT = 0.3, ECHO = 1.0;
constexpr double ANOMALOUS = 3.0, MISFIT_CLIP = 25.0, MISFIT = 4.0, REPEATS_BETTER = 0.25, REMEMBERED_WEEKS = 4.0;
constexpr double RETURNED_AFTER = 3.0, LEAST_STREAK = 0.4, SHIFTING = 2.0, RATE_OF_REPEATS = 0.01, MATERIAL = 1.0;
constexpr double LEAST_PROFILE = 0.05, MOST_PROFILE = 20.0, LEAST_LEVEL = 0.005, ABS_TO_SD = 1.2533;
constexpr double LEAST_NOISE = 1e-4, MOST_NOISE = 20.0;

double to_scale(double value, double unit, Kind kind) {
  return kind == Kind::value ? std::asinh(value / unit) : value * unit;
}

double surprise_of(double value, const double* c, Kind kind) {
  if (value != c[PREVIOUS]) return 0.0;
  if (!(c[REPEATS] < LONGEST_RUN)) return c[SURPRISE];
  double chance = c[REPEAT_RATE];
  if (kind != Kind::value)
    chance = larger(chance_of(to_scale(value, c[UNIT], kind), c[EXPECTED], c[NOISE]), chance);
  return c[SURPRISE] - std::log(chance);
}

double flat_of(double value, const double* c, Kind kind) {
  if (value != value) return NaN;
  if (c[REPEAT_RATE] >= USUAL_REPEATS || c[REPEATS] >= LONGEST_RUN) return 0.0;
  const double nats = surprise_of(value, c, kind);
  if (!(nats > 0.6931471805599453)) return 0.0;
  return smaller(-normal_quantile(std::exp(-smaller(nats, 600.0))), LARGEST);
}

double window_of(double z, double past, double count) {
  const double total = (clipped(z, -TODAY_CLIP, TODAY_CLIP) + past) / std::sqrt(count + 1.0);
  const bool agrees = std::abs(z) >= AGREES_FROM && sign(z) == sign(past);
  return agrees ? total : clipped(total, -DISAGREEING, DISAGREEING);
}

}  // namespace

Own own_of(double value, const double* c, Kind kind) {
  const double x = to_scale(value, c[UNIT], kind);
  const double z = standardised(x, c[EXPECTED], c[NOISE], kind);
  const double former = c[FORMER] == c[FORMER] ? standardised(x, c[FORMER], c[NOISE], kind) : NaN;
  const bool is_former = std::abs(former) < std::abs(z);
  return {is_former ? former : z, relative_sd(c[NOISE], is_former ? c[FORMER] : c[EXPECTED], kind), is_former};
}

void features_of(double value, const double* c, const Own& own, Kind kind, double* X) {
  const double z = own.z - SHARED_WEIGHT * c[COMMON] / own.sd;
  X[Z] = clipped(z, -LARGEST, LARGEST);
  X[SHORT] = window_of(z, c[SUM_SHORT], c[COUNT_SHORT]);
  X[LONG] = window_of(z, c[SUM_LONG], c[COUNT_LONG]);
  X[FLAT] = flat_of(value, c, kind);
  X[SHARED] = SHARED_WEIGHT * clipped(c[COMMON_Z], -LARGEST, LARGEST);
}

bool kind_of(const char* name, Kind* kind) {
  if (!std::strcmp(name, "count"))
    *kind = Kind::count;
  else if (!std::strcmp(name, "ratio"))
    *kind = Kind::ratio;
  else if (!std::strcmp(name, "value"))
    *kind = Kind::value;
  else {
    PyErr_Format(PyExc_ValueError, "no kind of metric is called %s", name);
    return false;
  }
  return true;
}

namespace {

// The arrays of a Baseline, in the order of its fields; each (n,) or (n, width).
struct Fields {
  double *scale, *n_seen, *level, *profile, *slot_seen, *noise, *last, *before_last, *misfit, *repeat_misfit, *streak,
      *peak, *settled_level, *trail, *former_level, *former_age, *former_votes, *window, *previous, *repeats,
      *surprise, *repeat_rate, *own_effect, *n_effects;
};
constexpr int N_FIELDS = 24;
enum class Width { one, week, season, before_season };
constexpr Width WIDTHS[N_FIELDS] = {
    Width::one, Width::one, Width::one, Width::week,   Width::week, Width::one, Width::week,          Width::week,
    Width::one, Width::one, Width::one, Width::one,    Width::one,  Width::season, Width::one,        Width::one,
    Width::one, Width::before_season,   Width::one,    Width::one,  Width::one, Width::one,           Width::one,
    Width::one};

// How a Recursion goes on. week, season: numbers of periods.
struct Rules {
  Kind kind;
  int64_t week, season, burn_in, adapt_after;
  double speed;

  int64_t width(Width w) const {
    switch (w) {
      case Width::one: return 1;
      case Width::week: return week;
      case Width::season: return season;
      default: return season - 1;
    }
  }
};

double mean_of(const double* values, int64_t n) {
  double sum = 0.0;
  for (int64_t k = 0; k < n; ++k) sum += values[k];
  return sum / static_cast<double>(n);
}

// One segment's state.
class Segment {
 public:
  Segment(const Rules& rules, const Fields& f, int64_t i)
      : r_(rules),
        n_seen(f.n_seen[i]),
        level(f.level[i]),
        profile(f.profile + i * rules.week),
        slot_seen(f.slot_seen + i * rules.week),
        noise(f.noise[i]),
        last(f.last + i * rules.week),
        before_last(f.before_last + i * rules.week),
        misfit(f.misfit[i]),
        repeat_misfit(f.repeat_misfit[i]),
        streak(f.streak[i]),
        peak(f.peak[i]),
        settled_level(f.settled_level[i]),
        trail(f.trail + i * rules.season),
        former_level(f.former_level[i]),
        former_age(f.former_age[i]),
        former_votes(f.former_votes[i]),
        window(f.window + i * (rules.season - 1)),
        previous(f.previous[i]),
        repeats(f.repeats[i]),
        surprise(f.surprise[i]),
        repeat_rate(f.repeat_rate[i]) {}

  // What is expected of a period, without the contexts that groups share.
  void context(int64_t slot, double unit, double effect, double* c) const {
    const bool is_ready = n_seen >= static_cast<double>(r_.burn_in) && level == level;
    const double own_profile = profile_at(slot, unit);
    const bool has_former = former_level == former_level;
    c[UNIT] = unit;
    c[EXPECTED] = with(level, own_profile, unit, effect);
    c[NOISE] = is_ready ? noise : NaN;
    // A day of which something is known may turn out a day like others.
    c[FORMER] = has_former       ? with(former_level, own_profile, unit, effect)
                : effect != 0.0  ? with(level, own_profile, unit, 0.0)
                                 : NaN;
    c[COMMON] = c[COMMON_Z] = 0.0;
    double sum = 0.0, count = 0.0;
    for (int64_t k = 0; k < r_.season - 1; ++k) {
      if (window[k] == window[k]) sum += window[k], count += 1.0;
      if (k == static_cast<int64_t>(SHORT_PERIODS) - 2) c[SUM_SHORT] = sum, c[COUNT_SHORT] = count;
    }
    c[SUM_LONG] = sum, c[COUNT_LONG] = count;
    c[PREVIOUS] = previous, c[REPEATS] = repeats, c[SURPRISE] = surprise, c[REPEAT_RATE] = repeat_rate, c[PEAK] = peak;
  }

  // The state has seen a period's value; NaN: no observation.
  void update(double value, const double* given, int64_t slot, double unit, double effect) {
    const bool seen = value == value;
    const double x = to_scale(value, unit, r_.kind), bare = without(x, unit, effect);
    if (seen && level != level) level = is_count() ? larger(bare, LEAST_LEVEL) : bare;
    double c[N_CONTEXT], X[N_FEATURES];
    std::copy(given, given + N_CONTEXT, c);
    // The state's own noise where the context has none yet.
    c[NOISE] = noise;
    Own own{NaN, NaN, false};
    if (seen) {
      own = own_of(value, c, r_.kind);
      features_of(value, c, own, r_.kind, X);
      update_repeats(value, c);
      update_misfit(own, x, slot, unit, effect);
      update_noise(X, c);
    } else {
      std::fill(X, X + N_FEATURES, NaN);
    }
    update_level(own, X, bare, slot, unit, effect, seen);
    update_former(own, seen);
    update_window(X, x, c, seen);
    if (seen) before_last[slot] = last[slot], last[slot] = bare, n_seen += 1.0;
    relearn_level(slot);
    relearn_profile();
    if (slot == r_.week - 1) centre();
  }

 private:
  bool is_count() const { return r_.kind != Kind::value; }
  double weeks(double n) const { return n * static_cast<double>(r_.week); }

  double with(double l, double p, double unit, double effect) const {
    if (!is_count()) return l + p + effect;
    return effect == 0.0 ? l * p * unit : l * p * std::exp(effect) * unit;
  }
  double without(double x, double unit, double effect) const {
    if (!is_count()) return x - effect;
    return effect == 0.0 ? x / unit : x / (std::exp(effect) * unit);
  }
  double less(double bare, double part) const { return is_count() ? bare / part : bare - part; }
  bool is_grown() const { return n_seen >= weeks(2.0); }

  double profile_at(int64_t slot, double unit) const {
    const double mean = mean_of(profile, r_.week);
    double variance = noise * noise;
    if (is_count()) variance *= PHI + 1.0 / larger(zero_if_nan(level * mean * unit), 0.01);
    const double settled = PROFILE_RATE / 2.0;
    const double own_noise = larger(settled, 1.0 / larger(slot_seen[slot], 1.0)) * variance;
    double spread = 0.0;
    for (int64_t k = 0; k < r_.week; ++k) spread += (profile[k] - mean) * (profile[k] - mean);
    const double signal = larger(spread / static_cast<double>(r_.week) - settled * variance, 1e-4);
    const double own = mean + signal / (signal + own_noise) * (profile[slot] - mean);
    return is_count() ? larger(own, LEAST_PROFILE) : own;
  }

  void update_repeats(double value, const double* c) {
    const bool same = value == previous;
    // A long run would teach that repeats are usual.
    const bool counted = previous == previous && repeats < SHORT_PERIODS;
    surprise = surprise_of(value, c, r_.kind);
    if (counted) repeat_rate += RATE_OF_REPEATS * (static_cast<double>(same) - repeat_rate);
    repeats = same ? repeats + 1.0 : 0.0;
    previous = value;
  }

  void update_misfit(const Own& own, double x, int64_t slot, double unit, double effect) {
    const double rate = 2.0 / (weeks(1.0) + 1.0);
    const double week_before = with(last[slot], is_count() ? 1.0 : 0.0, unit, effect);
    const double other = standardised(x, week_before, noise, r_.kind);
    const double repeat = other != other ? MISFIT_CLIP : smaller(other * other / 2.0, MISFIT_CLIP);
    const double z = zero_if_nan(own.z);
    misfit += rate * (smaller(z * z, MISFIT_CLIP) - misfit);
    repeat_misfit += rate * (repeat - repeat_misfit);
  }

  void update_noise(const double* X, const double* c) {
    if (r_.kind == Kind::value && n_seen == weeks(2.0)) start_noise();
    double size = std::abs(X[Z]) * floored(noise, c[EXPECTED], r_.kind);
    size = smaller(size, FULL_WEIGHT * noise) * ABS_TO_SD;
    const double rate = (n_seen < weeks(YOUNG_WEEKS) ? YOUNG_NOISE_RATE : NOISE_RATE) * r_.speed;
    // What happens amid a shift says nothing of the noise.
    if (is_grown() && size == size && std::abs(streak) < SHIFTING) noise += rate * (size - noise);
    noise = clipped(noise, LEAST_NOISE, MOST_NOISE);
  }

  // The noise of values that are two weeks old is that of one week against the other.
  void start_noise() {
    double sum = 0.0, count = 0.0;
    for (int64_t k = 0; k < r_.week; ++k) {
      const double difference = std::abs(last[k] - before_last[k]);
      if (difference == difference) sum += difference, count += 1.0;
    }
    noise = count > 0.0 ? sum / count * ABS_TO_SD / std::sqrt(2.0) : NaN;
  }

  void update_level(const Own& own, const double* X, double bare, int64_t slot, double unit, double effect,
                    bool seen) {
    if (!seen) {
      update_settled();
      return;
    }
    const double z = std::abs(own.z), flat = X[FLAT];
    const double strength = zero_if_nan(larger(larger(z, std::abs(X[LONG])), flat));
    const bool grown = is_grown();
    double side = sign(zero_if_nan(z >= std::abs(X[LONG]) ? own.z : X[LONG]));
    // A run of equal values has no side of its own.
    if (flat >= strength && streak != 0.0) side = sign(streak);
    if (!(strength > ANOMALOUS && grown)) side = 0.0;
    // A day off, as a holiday amid a shift, does not begin the count anew.
    const double kept = (side * streak >= 0.0 ? 1.0 : 0.5) * (side == 0.0 ? 0.5 : 1.0);
    const double next = kept * streak + side;
    streak = std::abs(next) < LEAST_STREAK ? 0.0 : next;
    peak = std::abs(streak) >= 1.0 ? larger(peak, strength) : 0.0;
    const double single = zero_if_nan(larger(z, flat));
    double weight = 1.0;
    if (grown) weight = single > NO_WEIGHT ? 0.0 : smaller(1.0, FULL_WEIGHT / larger(single, 1e-9));
    weight *= (effect != 0.0 ? KNOWN_WEIGHT : 1.0) * (own.is_former ? 0.0 : 1.0);
    update_settled();
    const double own_profile = profile_at(slot, unit);
    double rate = larger(LEVEL_RATE * r_.speed, 1.0 / (n_seen + 1.0)) * weight;
    // A slot of half the mean counts half: its relative noise is the larger.
    const double step = is_count() ? bare - level * own_profile : bare - own_profile - level;
    if (rate > 0.0) level += rate * step;
    if (is_count()) level = larger(level, LEAST_LEVEL);
    rate = larger(PROFILE_RATE, 1.0 / (slot_seen[slot] + 1.0)) * weight;
    if (rate > 0.0) profile[slot] += rate * (less(bare, level) - profile[slot]);
    if (is_count()) profile[slot] = clipped(profile[slot], 0.0, MOST_PROFILE);
    slot_seen[slot] += 1.0;
  }

  // What shows only by and by has moved the level before it is found: the settled one is a season old.
  void update_settled() {
    if (std::abs(streak) < 1.0) settled_level = trail[r_.season - 1];
    std::copy_backward(trail, trail + r_.season - 1, trail + r_.season);
    trail[0] = level;
  }

  // The former level is the present one again after some periods in a row that it fits better.
  void update_former(const Own& own, bool seen) {
    if (seen) former_votes = own.is_former && former_level == former_level ? former_votes + 1.0 : 0.0;
    former_age += 1.0;
    const bool is_back = former_votes >= RETURNED_AFTER;
    if (is_back) level = former_level;
    if (is_back || former_age > weeks(REMEMBERED_WEEKS)) former_level = NaN, former_votes = 0.0;
  }

  void update_window(const double* X, double x, const double* c, bool seen) {
    const bool counted = seen && n_seen >= static_cast<double>(r_.burn_in);
    std::copy_backward(window, window + r_.season - 2, window + r_.season - 1);
    window[0] = NaN;
    if (!counted) return;
    double most = std::abs(X[Z]) > NO_WEIGHT ? ECHO : WINDOW_CLIP;
    // What lies within a step or so of a count's expectation says nothing, however often it is said.
    if (r_.kind == Kind::count) most = smaller(most, std::abs(x - c[EXPECTED]) / MATERIAL);
    window[0] = clipped(X[Z], -most, most);
  }

  void relearn_level(int64_t slot) {
    if (!(std::abs(streak) >= static_cast<double>(r_.adapt_after))) return;
    const int64_t n = std::min(r_.adapt_after, r_.week);
    double sum = 0.0, parts = 0.0, differences = 0.0, count = 0.0;
    for (int64_t k = 0; k < n; ++k) {
      const int64_t at = ((slot - k) % r_.week + r_.week) % r_.week;
      if (last[at] != last[at]) continue;
      sum += last[at], parts += profile[at], differences += last[at] - profile[at], count += 1.0;
    }
    if (former_level != former_level) former_level = settled_level;
    former_age = former_votes = 0.0;
    level = is_count() ? larger(sum / larger(parts, LEAST_PROFILE), LEAST_LEVEL)
                       : (count > 0.0 ? differences / count : NaN);
    restart();
  }

  void relearn_profile() {
    if (!(misfit > MISFIT && repeat_misfit < REPEATS_BETTER * misfit && n_seen >= weeks(4.0))) return;
    for (int64_t k = 0; k < r_.week; ++k)
      if (before_last[k] != before_last[k]) return;
    double mean = 0.0;
    for (int64_t k = 0; k < r_.week; ++k) mean += (last[k] + before_last[k]) / 2.0;
    mean /= weeks(1.0);
    level = is_count() ? larger(mean, LEAST_LEVEL) : mean;
    for (int64_t k = 0; k < r_.week; ++k) {
      const double own = less((last[k] + before_last[k]) / 2.0, level);
      profile[k] = is_count() ? clipped(own, 0.0, MOST_PROFILE) : own;
      slot_seen[k] = 2.0;
    }
    misfit = 1.0;
    former_level = NaN;
    restart();
  }

  // What the periods before said of an anomaly is forgotten: it is over.
  void restart() {
    streak = peak = surprise = 0.0;
    std::fill(window, window + r_.season - 1, NaN);
  }

  // The level is that of the week's mean.
  void centre() {
    double mean = mean_of(profile, r_.week);
    if (is_count()) mean = larger(mean, 1e-3);
    for (int64_t k = 0; k < r_.week; ++k) profile[k] = less(profile[k], mean);
    const auto move = [this, mean](double& l) { l = is_count() ? l * mean : l + mean; };
    move(level), move(settled_level), move(former_level);
    for (int64_t k = 0; k < r_.season; ++k) move(trail[k]);
  }

  const Rules& r_;
  double &n_seen, &level;
  double *profile, *slot_seen;
  double& noise;
  double *last, *before_last;
  double &misfit, &repeat_misfit, &streak, &peak, &settled_level;
  double* trail;
  double &former_level, &former_age, &former_votes;
  double* window;
  double &previous, &repeats, &surprise, &repeat_rate;
};

// The arrays of a Baseline of n segments.
class State {
 public:
  bool take(PyObject* tuple, const Rules& rules, int64_t n) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != N_FIELDS) {
      PyErr_SetString(PyExc_ValueError, "a state has another number of arrays");
      return false;
    }
    double** const pointers[N_FIELDS] = {
        &fields.scale,         &fields.n_seen,        &fields.level,        &fields.profile,   &fields.slot_seen,
        &fields.noise,         &fields.last,          &fields.before_last,  &fields.misfit,    &fields.repeat_misfit,
        &fields.streak,        &fields.peak,          &fields.settled_level, &fields.trail,    &fields.former_level,
        &fields.former_age,    &fields.former_votes,  &fields.window,       &fields.previous,  &fields.repeats,
        &fields.surprise,      &fields.repeat_rate,   &fields.own_effect,   &fields.n_effects};
    for (int k = 0; k < N_FIELDS; ++k) {
      if (PyObject_GetBuffer(PyTuple_GetItem(tuple, k), &arrays_[k].view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        return false;
      if (!arrays_[k].holds(n * rules.width(WIDTHS[k]), sizeof(double), "an array of the state")) return false;
      *pointers[k] = arrays_[k].as<double>();
    }
    return true;
  }

  Fields fields{};

 private:
  Lent arrays_[N_FIELDS];
};

// (kind, week, season, burn_in, adapt_after, speed) of the Python side.
bool rules_of(const char* kind, long long week, long long season, long long burn_in, long long adapt_after,
              double speed, Rules* rules) {
  if (!kind_of(kind, &rules->kind)) return false;
  if (season < 3 || week < season || week > 100'000 || burn_in < 0 || adapt_after < 1 || !(speed > 0.0)) {
    PyErr_SetString(PyExc_ValueError, "a rule is out of range");
    return false;
  }
  rules->week = week, rules->season = season, rules->burn_in = burn_in, rules->adapt_after = adapt_after;
  rules->speed = speed;
  return true;
}

constexpr int64_t MOST = int64_t{1} << 31;

}  // namespace

// (kind, values (m, k), contexts (m, N_CONTEXT), k, out X (m, k, N_FEATURES))
PyObject* features(PyObject*, PyObject* args) {
  const char* name;
  Lent values, contexts, X;
  long long k;
  Kind kind;
  if (!PyArg_ParseTuple(args, "sy*y*Lw*", &name, &values.view, &contexts.view, &k, &X.view) || !kind_of(name, &kind))
    return nullptr;
  const int64_t m = contexts.view.len / static_cast<int64_t>(N_CONTEXT * sizeof(double));
  if (k < 0 || k > MOST || m > MOST || !contexts.holds(m * N_CONTEXT, sizeof(double), "contexts") ||
      !values.holds(m * k, sizeof(double), "values") || !X.holds(m * k * N_FEATURES, sizeof(double), "X"))
    return nullptr;
  return unlocked([&] {
    for (int64_t i = 0; i < m; ++i) {
      const double* c = contexts.as<double>() + i * N_CONTEXT;
      for (int64_t j = i * k; j < (i + 1) * k; ++j)
        features_of(values.as<double>()[j], c, own_of(values.as<double>()[j], c, kind), kind,
                    X.as<double>() + j * N_FEATURES);
    }
  });
}

// (kind, values (m, k), contexts (m, N_CONTEXT), k, out z (m, k), out sd (m, k), out is_former (m, k))
PyObject* own(PyObject*, PyObject* args) {
  const char* name;
  Lent values, contexts, z, sd, is_former;
  long long k;
  Kind kind;
  if (!PyArg_ParseTuple(args, "sy*y*Lw*w*w*", &name, &values.view, &contexts.view, &k, &z.view, &sd.view,
                        &is_former.view) ||
      !kind_of(name, &kind))
    return nullptr;
  const int64_t m = contexts.view.len / static_cast<int64_t>(N_CONTEXT * sizeof(double));
  if (k < 0 || k > MOST || m > MOST || !contexts.holds(m * N_CONTEXT, sizeof(double), "contexts") ||
      !values.holds(m * k, sizeof(double), "values") || !z.holds(m * k, sizeof(double), "z") ||
      !sd.holds(m * k, sizeof(double), "sd") || !is_former.holds(m * k, 1, "is_former"))
    return nullptr;
  return unlocked([&] {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = i * k; j < (i + 1) * k; ++j) {
        const Own found = own_of(values.as<double>()[j], contexts.as<double>() + i * N_CONTEXT, kind);
        z.as<double>()[j] = found.z, sd.as<double>()[j] = found.sd, is_former.as<uint8_t>()[j] = found.is_former;
      }
  });
}

// (rules, state, slot, units (n,), effects (n,), out contexts (n, N_CONTEXT))
PyObject* context(PyObject*, PyObject* args) {
  const char* name;
  PyObject* tuple;
  Lent units, known, contexts;
  long long week, season, burn_in, adapt_after, slot;
  double speed;
  Rules rules;
  State state;
  if (!PyArg_ParseTuple(args, "(sLLLLd)OLy*y*w*", &name, &week, &season, &burn_in, &adapt_after, &speed, &tuple, &slot,
                        &units.view, &known.view, &contexts.view) ||
      !rules_of(name, week, season, burn_in, adapt_after, speed, &rules))
    return nullptr;
  const int64_t n = units.view.len / static_cast<int64_t>(sizeof(double));
  if (slot < 0 || slot >= rules.week) return PyErr_Format(PyExc_ValueError, "slot %lld is in no week", slot);
  if (n > MOST || !units.holds(n, sizeof(double), "units") || !known.holds(n, sizeof(double), "effects") ||
      !contexts.holds(n * N_CONTEXT, sizeof(double), "contexts") || !state.take(tuple, rules, n))
    return nullptr;
  return unlocked([&] {
    for (int64_t i = 0; i < n; ++i)
      Segment(rules, state.fields, i)
          .context(slot, units.as<double>()[i], known.as<double>()[i], contexts.as<double>() + i * N_CONTEXT);
  });
}

// (rules, state, slot, units (n,), effects (n,), values (n,), contexts (n, N_CONTEXT)); the state changes in place
PyObject* update(PyObject*, PyObject* args) {
  const char* name;
  PyObject* tuple;
  Lent units, known, values, contexts;
  long long week, season, burn_in, adapt_after, slot;
  double speed;
  Rules rules;
  State state;
  if (!PyArg_ParseTuple(args, "(sLLLLd)OLy*y*y*y*", &name, &week, &season, &burn_in, &adapt_after, &speed, &tuple,
                        &slot, &units.view, &known.view, &values.view, &contexts.view) ||
      !rules_of(name, week, season, burn_in, adapt_after, speed, &rules))
    return nullptr;
  const int64_t n = units.view.len / static_cast<int64_t>(sizeof(double));
  if (slot < 0 || slot >= rules.week) return PyErr_Format(PyExc_ValueError, "slot %lld is in no week", slot);
  if (n > MOST || !units.holds(n, sizeof(double), "units") || !known.holds(n, sizeof(double), "effects") ||
      !values.holds(n, sizeof(double), "values") || !contexts.holds(n * N_CONTEXT, sizeof(double), "contexts") ||
      !state.take(tuple, rules, n))
    return nullptr;
  return unlocked([&] {
    for (int64_t i = 0; i < n; ++i)
      Segment(rules, state.fields, i)
          .update(values.as<double>()[i], contexts.as<double>() + i * N_CONTEXT, slot, units.as<double>()[i],
                  known.as<double>()[i]);
  });
}

// (rules, state, slots (n_times,), values (n, n_times), units (n, n_times or 1), known (n, n_times) float,
//  members (n_margins, n), effects (n_groups, n_times), z (n_groups, n_times), n_margins, n_groups, keep,
//  out X (n, keep, N_FEATURES), out contexts (n, keep, N_CONTEXT) or empty); the state changes in place
PyObject* run(PyObject*, PyObject* args) {
  const char* name;
  PyObject* tuple;
  Lent slots, values, units, known, members, effects, z, X, contexts;
  long long week, season, burn_in, adapt_after, n_margins, n_groups, keep;
  double speed;
  Rules rules;
  State state;
  if (!PyArg_ParseTuple(args, "(sLLLLd)Oy*y*y*y*y*y*y*LLLw*w*", &name, &week, &season, &burn_in, &adapt_after, &speed,
                        &tuple, &slots.view, &values.view, &units.view, &known.view, &members.view, &effects.view,
                        &z.view, &n_margins, &n_groups, &keep, &X.view, &contexts.view) ||
      !rules_of(name, week, season, burn_in, adapt_after, speed, &rules))
    return nullptr;
  const int64_t n_times = slots.view.len / static_cast<int64_t>(sizeof(int64_t));
  if (n_times < 1 || n_times > MOST || n_margins < 1 || n_margins > 100 || n_groups < 0 || n_groups > MOST || keep < 0 ||
      keep > n_times) {
    PyErr_SetString(PyExc_ValueError, "a size is out of range");
    return nullptr;
  }
  const int64_t n = values.view.len / (n_times * static_cast<int64_t>(sizeof(double)));
  const bool is_constant = units.view.len == n * static_cast<int64_t>(sizeof(double));
  const bool has_contexts = contexts.view.len > 0;
  if (!slots.holds(n_times, sizeof(int64_t), "slots") || n > MOST || !values.holds(n * n_times, sizeof(double), "values") ||
      !units.holds(is_constant ? n : n * n_times, sizeof(double), "units") ||
      !known.holds(n * n_times, sizeof(float), "known") || !are_members(members, n_margins * n, n_groups) ||
      !effects.holds(n_groups * n_times, sizeof(double), "effects") || !z.holds(n_groups * n_times, sizeof(double), "z") ||
      !X.holds(n * keep * N_FEATURES, sizeof(double), "X") ||
      (has_contexts && !contexts.holds(n * keep * N_CONTEXT, sizeof(double), "contexts")) ||
      !state.take(tuple, rules, n))
    return nullptr;
  for (int64_t t = 0; t < n_times; ++t)
    if (slots.as<int64_t>()[t] < 0 || slots.as<int64_t>()[t] >= rules.week) {
      PyErr_SetString(PyExc_ValueError, "a slot is in no week");
      return nullptr;
    }
  return unlocked([&] {
    for (int64_t i = 0; i < n; ++i) {
      Segment segment(rules, state.fields, i);
      for (int64_t t = 0; t < n_times; ++t) {
        double c[N_CONTEXT];
        const int64_t cell = i * n_times + t, slot = slots.as<int64_t>()[t];
        const double value = values.as<double>()[cell], unit = units.as<double>()[is_constant ? i : cell];
        const double effect = known.as<float>()[cell];
        segment.context(slot, unit, effect, c);
        for (int64_t m = 0; m < n_margins; ++m) {
          const int64_t group = members.as<int64_t>()[m * n + i];
          if (group < 0) continue;
          const double own_z = z.as<double>()[group * n_times + t];
          c[COMMON] += effects.as<double>()[group * n_times + t];
          if (std::abs(own_z) > std::abs(c[COMMON_Z])) c[COMMON_Z] = own_z;
        }
        if (t >= n_times - keep) {
          const int64_t place = i * keep + t - (n_times - keep);
          features_of(value, c, own_of(value, c, rules.kind), rules.kind, X.as<double>() + place * N_FEATURES);
          if (has_contexts) std::copy(c, c + N_CONTEXT, contexts.as<double>() + place * N_CONTEXT);
        }
        segment.update(value, c, slot, unit, effect);
      }
    }
  });
}

}  // namespace segwatch
