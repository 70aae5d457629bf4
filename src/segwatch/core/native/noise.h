// segwatch/core/noise.py, value by value: tests hold the two equal.
#pragma once

#include "common.h"

namespace segwatch {

enum class Kind { count, ratio, value };

constexpr double PHI = 0.01, EXACT_BELOW = 40.0, LEAST_COUNT = 0.02, LEAST_STEP = 0.7, BY_CHANCE = 1.0;
constexpr double LEAST_OWN_NOISE = 1e-4;

double normal_quantile(double p);
double exact(double count, double mu, double noise);

inline double stabilised(double count) { return 20.0 * std::asinh(std::sqrt(PHI * (larger(count, 0.0) + 0.375))); }

inline double floored(double noise, double expected, Kind kind) {
  if (kind == Kind::value) return larger(noise, LEAST_OWN_NOISE);
  const double mu = larger(expected, LEAST_COUNT);
  return larger(noise, smaller(LEAST_STEP / std::sqrt(mu + PHI * mu * mu), BY_CHANCE));
}

inline double relative_sd(double noise, double expected, Kind kind) {
  const double least = floored(noise, expected, kind);
  return kind == Kind::value ? least : least * std::sqrt(PHI + 1.0 / (larger(expected, 0.0) + 1.0));
}

inline double standardised(double value, double expected, double noise, Kind kind) {
  const double sd = floored(noise, expected, kind);
  if (kind == Kind::value) return (value - expected) / sd;
  const double mu = larger(expected, LEAST_COUNT);
  if (value != value || mu != mu || sd != sd) return NaN;
  if (!(mu < EXACT_BELOW)) return (stabilised(value) - stabilised(mu)) / sd;
  const double above = larger(noise, 1.0);
  return exact(value, mu, above) * above / sd;
}

inline double chance_of(double count, double expected, double noise) {
  const double mu = larger(expected, LEAST_COUNT), least = floored(noise, mu, Kind::count);
  const double sd = std::sqrt(larger(least * least * (PHI * mu * mu + mu), 0.05)), off = (count - mu) / sd;
  double chance = 0.4 / sd * std::exp(-0.5 * smaller(off * off, 50.0));
  if (count == 0.0 && mu < 10.0) chance = larger(chance, std::exp(-mu));
  return clipped(chance, 1e-6, 1.0);
}

}  // namespace segwatch
