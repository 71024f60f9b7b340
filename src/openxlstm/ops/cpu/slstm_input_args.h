// What the sLSTM's input kernels are given; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

struct SLSTMInput {
  int64_t B, T, NH, DH, K;     // K 0: no convolution
  const float* x;              // (B, T, NH·DH)
  const float* before;         // (B, K-1, NH·DH), or null for zeros
  const bool* reset;           // (B, T), or null
  const float *conv, *conv_bias;  // (K, ld), (ld)
  const float* weight;         // (NH, 2, ·): i and f, z and o of a head, packed
  const float* bias;           // (NH, 4, DH)
  float* gates;                // (B, T, NH, 4, DH)
  const float* dgates;         // the same
  float *dx, *dbefore;         // as x and before; dbefore may be null
};

// Gradients of the parameters from one slice of the samples; rows are padded.
struct SLSTMInputSums {
  float *weight, *bias;      // (NH, 4·DH, padded DH), (NH, 4·DH padded)
  float *conv, *conv_bias;   // (K, ld), (ld)
};

}  // namespace openxlstm
