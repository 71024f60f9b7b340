// Arguments of the kernels before and after an mLSTM cell; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

// Width of the diagonal blocks of the query, key and value projections.
constexpr int64_t kBlock = 4;

struct MLSTMInput {
  int64_t B, T, D, E, NH, K;      // K 0: no convolution
  const float* x;                 // (B, T, D)
  const float* before;            // (B, K-1, E), or null for zeros
  const bool* reset;              // (B, T), or null
  const float *conv, *conv_bias;  // (K, ld), (ld)
  const float* up;                // (2E, D), packed
  const float *q, *k, *v;         // (kBlock, E): how each input of a block reaches its outputs
  // The gates are maps of q, k and v, which are maps of c and a: the joint maps (2·NH, E) of c and
  // of a, packed for the forward, in rows of 2E for the backward.
  const float *gate_c, *gate_a;
  const float* gate_bias;         // (2·NH)
  float *a, *z, *c, *out_q, *out_k, *out_v;  // (B, T, E); a is read by the backward
  float *log_i, *log_f, *f_preact;           // (B, NH, T); f_preact too
};

struct MLSTMInputGrads {
  const float *dz, *dc;           // (B, T, E)
  const float *dq, *dk, *dv;      // (B, T, E)
  const float *dlog_i, *dlog_f;   // (B, NH, T)
  float *dx, *dbefore;            // as x and before; dbefore may be null
};

// Sums of the parameters' gradients over one slice of the tasks; rows are padded.
struct MLSTMInputSums {
  float *up;                 // (2E, padded D)
  float *q, *k, *v;          // (kBlock, padded E)
  float *gate, *gate_bias;   // (2·NH, 2E) of the joint map, (2·NH padded)
  float *conv, *conv_bias;   // (K, ld), (ld)
};

struct MLSTMOutput {
  int64_t B, T, D, E, NH;
  float eps;
  const float* h;                 // (B, NH, T, E/NH)
  const float *c, *z;             // (B, T, E)
  const float *norm, *skip;       // (E); the norm's scale less 1
  const float* down;              // (D, E), packed
  float* y;                       // (B, T, D)
  const float* dy;                // (B, T, D)
  float *dh, *dc, *dz;            // as h, c, z
};

struct MLSTMOutputSums {
  float *norm, *skip;  // (E)
  float* down;         // (D, padded E)
};

}  // namespace openxlstm
