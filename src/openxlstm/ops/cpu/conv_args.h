// Arguments of the convolution kernels; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

// The most steps that a convolution may read: its weights are held in registers.
constexpr int64_t kMaxKernel = 8;

struct Conv {
  int64_t B, T, D, K;
  bool silu;                   // whether SiLU follows
  const float* x;              // (B, T, D)
  const float* before;         // (B, K-1, D), or null for zeros
  const bool* reset;           // (B, T), or null
  const float *weight, *bias;  // (K, ld), (ld)
  float* y;                    // (B, T, D)
  const float* dy;             // (B, T, D)
  float *dx, *dbefore;         // as x and before; dbefore may be null
};

}  // namespace openxlstm
