// Arguments of the sLSTM kernels; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

// Rows of DH that the backward reads per step: share, z, o, slope and y of slstm_cell.h.
constexpr int64_t kSaved = 5;

struct SLSTMForward {
  int64_t B, T, NH, DH;
  bool exp_gate;
  const float* x;  // (B, T, NH, 4, DH), strides below, the last one 1; or null, and these are read:
  int64_t x_stride[4];
  const float *convolved, *raw;  // (B, T, NH, DH), the inputs of i and f, and of z and o
  const float* input;            // (NH, 2, ·): i and f, z and o of a head, packed
  const float* bias;  // (NH, 4, DH), or null
  const bool* reset;  // (B, T) contiguous, or null
  float* h;           // (B, T, NH, DH)
  float* state;       // (4, B, NH, DH): h, c, n, m; in: initial, out: final
  float* saved;       // (NH, B, T, kSaved, DH), or null
};

struct SLSTMBackward {
  int64_t B, T, NH, DH;
  const bool* reset;
  const float* h;       // (B, T, NH, DH)
  const float* saved;   // (NH, B, T, kSaved, DH)
  const float* before;  // (4, B, NH, DH): the state before the first step
  const float* after;   // (4, B, NH, DH): the state after the last
  const float* dh;      // (B, T, NH, DH)
  float* dstate;        // (4, B, NH, DH); in: gradients of the final state, out: of the initial
  float* dx;            // (B, T, NH, 4, DH); or null, and these are computed:
  const float *convolved, *raw, *input;
  float *dconvolved, *draw;  // both may be null
};

// Sums of the weights' gradients over one slice of the tasks; rows are padded.
struct SLSTMSums {
  float *R, *bias;  // (NH, 4, DH, padded DH), (NH, 4·DH padded); bias may be null
  float* input;     // as R; null where x was given
};

}  // namespace openxlstm
