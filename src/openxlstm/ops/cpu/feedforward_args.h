// What the feed-forward kernels are given; the same for every instruction set.
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
  float *gate_preact, *value_preact;  // (R, F), rows 2F apart; null where no gradient is wanted
  float* y;                           // (R, D)
  const float* dy;                    // (R, D)
  float* dx;                          // (R, D)
};

// Gradients of the parameters from one slice of the rows, rows padded to whole vectors.
struct FeedForwardSums {
  float *up, *down;            // (2F, D), the gate's rows first; (D, F)
  float *up_bias, *down_bias;  // (2F), (D)
  float *norm, *norm_bias;     // (D)
};

}  // namespace openxlstm
