// A model as one step sees it: where its weights and states are. A language model reads tokens and
// ends with a head; a recurrent layer reads features and ends with its norm.
//
// Python lays these structs out as rows of 64-bit words (ops/native_step.py has the same order).
// Weights are where the model has them, so that a step reads what training last wrote. States and
// results belong to whoever made the plan, and are overwritten. Matrices are float, or all of them
// bfloat16; everything else is float.
#pragma once

#include <cstdint>

namespace openxlstm {

constexpr int kStepWeights = 20;

struct StepLayer {
  int64_t is_slstm;              // else an mLSTM
  int64_t is_large;              // an mLSTM in a large block
  int64_t inner;                 // E of an mLSTM; F of an sLSTM's or large feed-forward, 0 for none
                                 // (a bare mLSTM has D inside)
  int64_t DQK, DHV;              // widths of an mLSTM's heads
  int64_t K;                     // of the convolution, 0 for none
  int64_t option;                // side of an mLSTM's blocks; whether an sLSTM's forget gate is exp
  double eps;                    // of an mLSTM's denominator
  double cap;                    // of the gates of a large block, 0 for none
  const float *norm, *norm_bias; // (D), null for a bare block: no norms, no residual
  const float *conv, *conv_bias; // (width, K), (width)
  const float *head_norm, *head_norm_bias;  // (E), (D) or (V)
  // mLSTM: up, its bias, q, k, v and their biases, gate, its bias, skip, down, its bias.
  // sLSTM: input weight, bias, R, the feed-forward's norm, up, its bias, down, its bias.
  // Large: q, k, v, o, gates and their biases, out, its bias, the feed-forward's norm, its bias,
  // gate, up, down and their biases.
  // Bare mLSTM: qkvo, its bias, gate, its bias. Bare sLSTM: input weight, bias, R.
  // Bare blocks have the map in front of them and its bias in the last two, null for none.
  const void* weight[kStepWeights];
  float* window;                 // (B, K-1, width)
  float* state[4];               // C, n, m; or h, c, n, m

  const float* vector(int place) const { return static_cast<const float*>(weight[place]); }
};

struct Step {
  int64_t B, D, V, NH, num_layers, num_positions;
  int64_t I;                        // features of the input, 0 where it is tokens
  int64_t narrow;                   // whether matrices are bfloat16
  int64_t rms;                      // whether norms of rows are those of large blocks
  double norm_eps;
  double cap;                       // of the result, 0 for none
  const void *tokens, *positions;   // (V, D), (num_positions, D) or null
  const void* proj;                 // of features: (D, I), null where I is D
  const float* proj_bias;           // (D)
  const float *norm, *norm_bias;    // (D) or null
  const void* head;                 // (V, D) or null
  int64_t* position;                // (B): tokens read so far; null for features
  float* out;                       // (B, V), without a head (B, D)
};

}  // namespace openxlstm
