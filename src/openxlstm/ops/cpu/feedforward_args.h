// Arguments of the feed-forward kernels; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

struct FeedForward {
  int64_t R, D, F;                    // rows, model width, inner width
  bool silu;                          // the activation: SiLU, else GELU
  bool residual;                      // whether x is added to the result
  bool rms;                           // the norm of large blocks, else a layer norm
  float eps;                          // of the norm
  const float* x;                     // (R, D)
  const float *norm, *norm_bias;      // (D), the scale and bias of a norm of x; null for none
  const float *gate, *value, *down;   // packed, as the forward or the backward reads them
  const float *gate_bias, *value_bias, *down_bias;  // (F), (F), (D); or null
  float *gate_preact, *value_preact;  // (R, F), rows 2F apart; null if there is no backward
  float* y;                           // (R, D)
  const float* dy;                    // (R, D)
  float* dx;                          // (R, D)
};

// Sums of the parameters' gradients over one slice of the rows; rows are padded to whole vectors.
struct FeedForwardSums {
  float *up, *down;            // (2F, D), the gate's rows first; (D, F)
  float *up_bias, *down_bias;  // (2F), (D)
  float *norm, *norm_bias;     // (D)
};

}  // namespace openxlstm
