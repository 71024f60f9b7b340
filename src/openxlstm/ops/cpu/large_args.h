// Arguments of the kernels before and after the cell of a large block; the same for every
// instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

// The projections of a large block: query, key, value, output gate, and the input and forget gates
// together.
constexpr int kProjections = 5, kGates = 4;

struct LargeInput {
  int64_t B, T, D, QK, V, NH;
  float eps, cap;                  // of the norm; soft cap of the gates, 0 for none
  const float* x;                  // (B, T, D)
  const float *norm, *norm_bias;   // (D); the bias may be null
  const float* weight[kProjections];  // (width, D), packed as the forward or the backward reads them
  const float* bias[kProjections];    // (width); null for none
  float* out[kGates];              // q, k, v, õ (B, T, width)
  float *log_i, *log_f, *f;        // (B, NH, T); the backward reads log_i and f, which is capped
  int64_t width(int part) const { return part < 2 ? QK : part < kGates ? V : 2 * NH; }
};

struct LargeInputGrads {
  const float* out[kGates];        // of q, k, v, õ (B, T, width)
  const float *log_i, *log_f;      // (B, NH, T)
  float* dx;
};

// Sums of the parameters' gradients over one slice of the tasks; rows are padded to whole vectors.
struct LargeInputSums {
  float* weight[kProjections];
  float* bias[kProjections];
  float *norm, *norm_bias;
};

struct LargeOutput {
  int64_t B, T, D, V, NH;
  float eps;
  const float* h;                  // (B, NH, T, V/NH)
  const float* o;                  // (B, T, V): õ
  const float *norm, *norm_bias;   // (V); the bias may be null
  const float *down, *down_bias;   // (D, V), packed; (D) or null
  const float* residual;           // (B, T, D), or null
  float* y;                        // (B, T, D)
  const float* dy;                 // (B, T, D)
  float *dh, *d_o;                 // as h, o
};

struct LargeOutputSums {
  float *norm, *norm_bias;  // (V)
  float *down, *down_bias;  // (D, padded V), (D)
};

}  // namespace openxlstm
