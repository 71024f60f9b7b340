// Arguments of the mLSTM kernels; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

// A (B, NH, T, D) tensor of any strides but the last, which is 1.
template <class Float>
struct RowsOf {
  Float* data;
  int64_t stride_b, stride_h, stride_t;
  Float* at(int64_t b, int64_t head, int64_t t) const {
    return data + b * stride_b + head * stride_h + t * stride_t;
  }
};
using Rows = RowsOf<const float>;

// The most steps per chunk: the kernel holds a chunk's gates on the stack.
constexpr int64_t kMaxChunk = 256;

struct MLSTMForward {
  int64_t B, NH, T, DQK, DHV, L;
  float eps;
  Rows q, k, v;
  const float *log_i, *log_f;  // (B, NH, T) contiguous
  const bool* reset;           // (B, T) contiguous, or null
  float* h;                    // (B, NH, T, DHV) contiguous
  float *C, *n, *m;            // the state, before and after: (B, NH, DQK, DHV), …
  float *C_chunks, *n_chunks;  // before each chunk (B, NH, NC, DQK, DHV), (B, NH, NC, DQK); or null
  float *m_steps, *normalizer; // m_t and n_tᵀ q_t/√DQK (B, NH, T); or null
};

struct MLSTMBackward {
  int64_t B, NH, T, DQK, DHV, L;
  float eps;
  Rows q, k, v, h, dh;
  const float *log_i, *log_f;
  const bool* reset;
  const float *m_0;  // (B, NH)
  const float *C_chunks, *n_chunks, *m_steps, *normalizer;
  RowsOf<float> dq, dk, dv;
  float *dlog_i, *dlog_f;    // (B, NH, T)
  float *dC, *dn;            // in: gradients of the final state; out: of the initial state
  bool wants_initial;        // whether the initial state's gradients are read
};

// The tasks of mlstm_kernel.h for the instruction set that runs, one per sample and head, and their
// scratch memory in floats.
int64_t mlstm_forward_floats(const MLSTMForward& a);
void mlstm_forward_task(const MLSTMForward& a, int64_t task, float* scratch);
int64_t mlstm_backward_floats(const MLSTMBackward& a);
void mlstm_backward_task(const MLSTMBackward& a, int64_t task, float* scratch);

}  // namespace openxlstm
