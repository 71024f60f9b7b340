// What the sLSTM kernels are given; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

struct SLSTMForward {
  int64_t B, T, NH, DH;
  bool exp_gate;
  const float* x;  // (B, T, NH, 4, DH), strides below, the last one 1
  int64_t x_stride[4];
  const bool* reset;  // (B, T) contiguous, or null
  float* h;           // (B, T, NH, DH)
  float* state;       // (4, B, NH, DH): h, c, n, m, before and after
  float* saved;       // (B, T, NH, 7, DH): i, f, z, o, d log_f / d f̃, c, n; or null
};

struct SLSTMBackward {
  int64_t B, T, NH, DH;
  const bool* reset;
  const float* h;      // (B, T, NH, DH)
  const float* saved;  // (B, T, NH, 7, DH)
  const float* state;  // (4, B, NH, DH) before the first step
  const float* dh;     // (B, T, NH, DH)
  float* dstate;       // (4, B, NH, DH): gradients of the final state, then of the initial
  float* dx;           // (B, T, NH, 4, DH)
};

}  // namespace openxlstm
