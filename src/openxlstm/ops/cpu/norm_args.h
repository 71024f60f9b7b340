// What the norm kernels are given; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

struct Norm {
  int64_t R, G, W;      // rows, groups of a row, width of a group
  float eps;
  const float* x;       // (R, G·W)
  const float* weight;  // (G·W), the scale less 1
  float* y;             // (R, G·W)
  const float* dy;      // (R, G·W)
  float* dx;            // (R, G·W)
};

}  // namespace openxlstm
