#include "noise.h"

#include <initializer_list>

namespace segwatch {

namespace {

double polynomial(const double* c, int n, double x) {
  double sum = c[n - 1];
  for (int k = n - 2; k >= 0; --k) sum = sum * x + c[k];
  return sum;
}

double log_gamma(double x) {
#if defined(__GLIBC__) || defined(__APPLE__)
  int unused;  // lgamma itself writes the sign to a global variable
  return lgamma_r(x, &unused);
#else
  return std::lgamma(x);
#endif
}

// The continued fraction of the incomplete beta function by Lentz's method (Numerical Recipes, 6.4).
double beta_fraction(double a, double b, double x) {
  constexpr double tiny = 1e-300;
  double c = 1.0, d = 1.0 - (a + b) * x / (a + 1.0);
  d = 1.0 / (std::abs(d) < tiny ? tiny : d);
  double h = d;
  for (int m = 1; m <= 10'000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0));
    for (const double term : {even, odd}) {
      d = 1.0 + term * d;
      c = 1.0 + term / c;
      d = 1.0 / (std::abs(d) < tiny ? tiny : d);
      if (std::abs(c) < tiny) c = tiny;
      h *= d * c;
    }
    if (std::abs(d * c - 1.0) < 1e-15) break;
  }
  return h;
}

struct Tails {
  double low, high;
};

// Regularised incomplete beta function I_x(a, b), and what it leaves of 1.
Tails beta(double a, double b, double x) {
  const double front = std::exp(log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1.0) / (a + b + 2.0)) {
    const double low = front * beta_fraction(a, b, x) / a;
    return {low, 1.0 - low};
  }
  const double high = front * beta_fraction(b, a, 1.0 - x) / b;
  return {1.0 - high, high};
}

constexpr int SUMMED = 512;

struct Reciprocals {
  double of[SUMMED + 2];
  Reciprocals() {
    of[0] = 0.0;
    for (int k = 1; k < SUMMED + 2; ++k) of[k] = 1.0 / k;
  }
};
const Reciprocals reciprocals;

// The probabilities of all counts above n, whose own is p.
double above(double p, int n, double size, double fail) {
  double sum = 0.0;
  for (double k = n; p > sum * 1e-17 && p > 0.0; k += 1.0) {
    p *= (size + k) * fail / (k + 1.0);
    sum += p;
  }
  return sum;
}

}  // namespace

// Algorithm AS 241 (Wichura 1988), relative error 1e-16.
double normal_quantile(double p) {
  static const double a[] = {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                             1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                             3.3430575583588128105e4, 2.5090809287301226727e3};
  static const double b[] = {1.0,
                             4.2313330701600911252e1,
                             6.8718700749205790830e2,
                             5.3941960214247511077e3,
                             2.1213794301586595867e4,
                             3.9307895800092710610e4,
                             2.8729085735721942674e4,
                             5.2264952788528545610e3};
  static const double c[] = {1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
                             3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
                             2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static const double d[] = {1.0,
                             2.05319162663775882187e0,
                             1.67638483018380384940e0,
                             6.89767334985100004550e-1,
                             1.48103976427480074590e-1,
                             1.51986665636164571966e-2,
                             5.47593808499534494600e-4,
                             1.05075007164441684324e-9};
  static const double e[] = {6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,
                             2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                             2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static const double f[] = {1.0,
                             5.99832206555887937690e-1,
                             1.36929880922735805310e-1,
                             1.48753612908506148525e-2,
                             7.86869131145613259100e-4,
                             1.84631831751005468180e-5,
                             1.42151175831644588870e-7,
                             2.04426310338993978564e-15};
  const double q = p - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(a, 8, r) / polynomial(b, 8, r);
  }
  const double tail = q < 0.0 ? p : 1.0 - p;
  if (!(tail > 0.0)) return tail != tail ? NaN : q * std::numeric_limits<double>::infinity();
  const double r = std::sqrt(-std::log(tail));
  const double x = r <= 5.0 ? polynomial(c, 8, r - 1.6) / polynomial(d, 8, r - 1.6)
                            : polynomial(e, 8, r - 5.0) / polynomial(f, 8, r - 5.0);
  return q < 0.0 ? -x : x;
}

// Normal score of the mid-p of a count under the negative binomial, see `_exact` of noise.py.
double exact(double count, double mu, double noise) {
  const double phi = larger(noise * noise * (PHI + 1.0 / mu) - 1.0 / mu, 1e-4);
  const double size = 1.0 / phi, fail = phi * mu / (1.0 + phi * mu);
  count = larger(count, 0.0);
  Tails tails;  // up to the count, and above it
  double at;
  if (count <= SUMMED && count == std::floor(count)) {
    // The probabilities of 0, 1, ..., count.
    const int n = static_cast<int>(count);
    double p = std::exp(-size * std::log1p(phi * mu));
    tails.low = p;
    for (int k = 0; k < n; ++k) {
      p *= (size + k) * fail * reciprocals.of[k + 1];
      tails.low += p;
    }
    at = p;
    tails.high = 1.0 - tails.low;
    // 1 less a probability near 1 has no digits.
    if (tails.high < 1e-4) tails.high = fail < 0.9 ? above(p, n, size, fail) : beta(size, count + 1.0, 1.0 - fail).high;
  } else {
    tails = beta(size, count + 1.0, 1.0 - fail);
    at = std::exp(log_gamma(size + count) - log_gamma(size) - log_gamma(count + 1.0) - size * std::log1p(phi * mu) +
                  count * std::log(fail));
  }
  const double under = count > 0.0 ? larger(tails.low - at, 0.0) : 0.0, low = (tails.low + under) / 2.0;
  if (low < 0.5) return normal_quantile(larger(low, 1e-300));
  return -normal_quantile(larger(count > 0.0 ? tails.high + at / 2.0 : (tails.high + 1.0) / 2.0, 1e-300));
}

}  // namespace segwatch
