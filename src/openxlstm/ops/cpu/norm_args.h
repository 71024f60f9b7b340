// Arguments of the norm kernels; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

struct Norm {
  int64_t R, G, W;      // rows, groups per row, width of a group
  float eps;
  bool rms;             // RMS norm whose weight is the scale, else layer norm whose weight is the scale less 1
  const float* x;       // (R, G·W)
  const float* weight;  // (G·W)
  const float* bias;    // (G·W), or null
  float* y;             // (R, G·W)
  const float* dy;      // (R, G·W)
  float* dx;            // (R, G·W)
};

}  // namespace openxlstm
