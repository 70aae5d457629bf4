// What other parts of the extension ask of baseline.cpp.
#pragma once

#include "noise.h"

namespace segwatch {

enum Column {
  UNIT, EXPECTED, NOISE, FORMER, COMMON, COMMON_Z, SUM_SHORT, COUNT_SHORT, SUM_LONG, COUNT_LONG, PREVIOUS, REPEATS,
  SURPRISE, REPEAT_RATE, PEAK, N_CONTEXT
};
enum Feature { Z, SHORT, LONG, FLAT, SHARED, N_FEATURES };

struct Own {
  double z, sd;
  bool is_former;
};

Own own_of(double value, const double* context, Kind kind);
void features_of(double value, const double* context, const Own& own, Kind kind, double* X);
bool kind_of(const char* name, Kind* kind);

}  // namespace segwatch
