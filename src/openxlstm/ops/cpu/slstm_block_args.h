// Arguments of the kernels of an sLSTM block; the same for every instruction set.
#pragma once

#include <cstdint>

namespace openxlstm {

struct SLSTMBlock {
  int64_t B, T, D, NH, K;         // K 0: no convolution
  float eps;                      // of both norms
  const float* x;                 // (B, T, D)
  const float* before;            // (B, K-1, D): normed inputs before x, or null for zeros
  const bool* reset;              // (B, T), or null
  const float *norm, *head_norm;  // (D), scales less 1
  const float *conv, *conv_bias;  // (K, D), (D)
};

// Consecutive steps of consecutive samples; a chunk's buffers in scratch memory are (samples,
// steps, ·).
struct Chunk {
  int64_t b0, samples, t0, steps;
  int64_t rows() const { return samples * steps; }
};

// The scan's inputs of a chunk, and the buffers that they are computed in.
struct ChunkInputs {
  float *raw, *convolved;  // (samples, steps, D); the same buffer if there is no convolution
  float* window;           // (samples, K-1 + steps, D): normed rows, beginning before the chunk
  float* preact;           // (samples, steps, D) of the convolution
  int64_t* reach;          // (samples, steps)
};

// Sums of the parameters' gradients over one slice of the samples.
struct SLSTMBlockSums {
  float *norm, *head_norm;   // (D)
  float *conv, *conv_bias;   // (K, D), (D)
};

}  // namespace openxlstm
