// The inner loops of the solver. native.cpp includes this once for each instruction set, inside a namespace of its own
// and under that set's compiler options; nothing here may call a template of the standard library, whose one compiled
// copy would be shared by all of them.
//
// n is padded to whole blocks of PAD rows. Rows of padding have NaN for alpha: they are neither below 1 nor above 0, so
// that no selection finds them.

// WIDTH: bytes of a vector register of the instruction set.

typedef float floats __attribute__((vector_size(WIDTH)));
typedef int32_t ints __attribute__((vector_size(WIDTH)));
typedef uint32_t unsigneds __attribute__((vector_size(WIDTH)));
typedef float half __attribute__((vector_size(WIDTH / 2)));
typedef double doubles __attribute__((vector_size(WIDTH)));
typedef int64_t longs __attribute__((vector_size(WIDTH)));
constexpr int64_t N_FLOATS = WIDTH / 4, N_DOUBLES = WIDTH / 8;

static inline doubles widened(const float* at) {
  half v;
  __builtin_memcpy(&v, at, sizeof v);
  return __builtin_convertvector(v, doubles);
}

static inline doubles loaded(const double* at) {
  doubles v;
  __builtin_memcpy(&v, at, sizeof v);
  return v;
}

static inline longs first_rows() {
  longs rows;
  for (int64_t k = 0; k < N_DOUBLES; ++k) rows[k] = k;
  return rows;
}

// exp of x <= 0, relative error below 3e-7; 0 below -87, where float has no normal numbers left.
// Cephes' reduction and polynomial (S. Moshier).
static inline floats exp_negative(floats x) {
  const floats least = floats{} - 87.0f;
  const ints is_zero = x < least;
  x = is_zero ? least : x;
  const floats shifted = x * 1.44269504088896341f + 12582912.0f;
  const floats power = shifted - 12582912.0f;
  floats r = x - power * 0.693359375f;
  r = r - power * -2.12194440e-4f;
  floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  unsigneds bits;
  __builtin_memcpy(&bits, &p, sizeof bits);
  bits += (unsigneds)__builtin_convertvector(power, ints) << 23;
  floats result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return is_zero ? floats{} : result;
}

// K(x_i, x_j) = exp(-gamma |x_i - x_j|^2) for all j. columns: (n_features, padded), one feature after the other.
static void kernel_column(const float* columns, int64_t padded, int64_t n_features, const float* x, float gamma,
                          float* out) {
  for (int64_t j = 0; j < padded; j += N_FLOATS) {
    floats distance = {};
    for (int64_t k = 0; k < n_features; ++k) {
      floats t;
      __builtin_memcpy(&t, columns + k * padded + j, sizeof t);
      t -= x[k];
      distance += t * t;
    }
    const floats value = exp_negative(distance * -gamma);
    __builtin_memcpy(out + j, &value, sizeof value);
  }
}

// gradient += step (plus - minus); minus may be null.
static void add_column(double* gradient, int64_t padded, double step, const float* plus, const float* minus) {
  for (int64_t j = 0; j < padded; j += N_DOUBLES) {
    doubles change = widened(plus + j);
    if (minus) change -= widened(minus + j);
    const doubles g = loaded(gradient + j) + change * step;
    __builtin_memcpy(gradient + j, &g, sizeof g);
  }
}

// The row of the least gradient among those whose alpha may grow; -1 if none may.
static int64_t select_growing(const double* gradient, const double* alpha, int64_t padded, double upper) {
  doubles least = doubles{} + __builtin_inf();
  longs at = longs{} - 1, here = first_rows();
  for (int64_t j = 0; j < padded; j += N_DOUBLES, here += N_DOUBLES) {
    const doubles g = loaded(gradient + j), a = loaded(alpha + j);
    const longs better = (a < upper) & (g < least);
    least = better ? g : least;
    at = better ? here : at;
  }
  int64_t found = -1;
  for (int k = 0; k < N_DOUBLES; ++k)
    if (at[k] >= 0 && (found < 0 || gradient[at[k]] < gradient[found] ||
                       (gradient[at[k]] == gradient[found] && at[k] < found)))
      found = at[k];
  return found;
}

// Of the rows whose alpha may shrink: the largest gradient, and the row whose exchange with i gains most
// (second-order working set of Fan, Chen and Lin 2005); -1 if none gains.
static int64_t select_shrinking(const double* gradient, const double* alpha, const float* column, double g_i,
                                int64_t padded, double* largest) {
  doubles most = doubles{} - __builtin_inf(), gain = {};
  longs at = longs{} - 1, here = first_rows();
  for (int64_t j = 0; j < padded; j += N_DOUBLES, here += N_DOUBLES) {
    const doubles g = loaded(gradient + j), a = loaded(alpha + j);
    const longs may = a > 0.0;
    most = (may & (g > most)) ? g : most;
    const doubles difference = g - g_i;
    doubles curvature = 2.0 - 2.0 * widened(column + j);
    curvature = curvature > 1e-12 ? curvature : doubles{} + 1e-12;
    const doubles own = difference * difference / curvature;
    const longs better = may & (difference > 0.0) & (own > gain);
    gain = better ? own : gain;
    at = better ? here : at;
  }
  *largest = -__builtin_inf();
  int64_t found = -1;
  double best = 0.0;
  for (int k = 0; k < N_DOUBLES; ++k) {
    if (most[k] > *largest) *largest = most[k];
    if (at[k] >= 0 && (gain[k] > best || (gain[k] == best && at[k] < found))) best = gain[k], found = at[k];
  }
  return found;
}

static const Kernels kernels = {kernel_column, add_column, select_growing, select_shrinking};
