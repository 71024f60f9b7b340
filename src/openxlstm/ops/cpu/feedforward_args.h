// What the feed-forward kernels are given; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

struct FeedForward {
  int64_t R, D, F;                    // rows, model width, inner width
  bool silu;                          // the activation: SiLU, else GELU
  bool residual;                      // whether x is added to the result
  float eps;                          // of the norm
  const float* x;                     // (R, D)
  const float* norm;                  // (D), the scale less 1 of a norm of x; null for none
  const float *up, *down;             // packed, as the forward or the backward reads them
  const float *up_bias, *down_bias;   // (2F), (D); or null
  float* preact;                      // (R, 2F): gate, value; null where no gradient is wanted
  float* y;                           // (R, D)
  const float* dy;                    // (R, D)
  float* dx;                          // (R, D)
};

// Gradients of the parameters from one slice of the rows, rows padded to whole vectors.
struct FeedForwardSums {
  float *up, *down;            // (2F, D), (D, F)
  float *up_bias, *down_bias;  // (2F), (D)
  float* norm;                 // (D)
};

}  // namespace openxlstm
