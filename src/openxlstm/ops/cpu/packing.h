// Weights as the kernels read them. The fused ops pack once per call.
#pragma once

#include "tensors.h"

namespace openxlstm {

// B (K, N), whose element [k, n] is at B[k·row + n·col], as product_packed (product.h) reads it.
Floats packed(const float* B, int64_t row, int64_t col, int64_t K, int64_t N);

// W (out, in) packed for x·Wᵀ, as a forward has it, and for dy·W, as a backward has it.
inline Floats packed_forward(const float* W, int64_t out, int64_t in) {
  return packed(W, 1, in, in, out);
}
inline Floats packed_backward(const float* W, int64_t out, int64_t in) {
  return packed(W, in, 1, out, in);
}

// The weights of a causal convolution (D, K) as (K, ld), and its bias (D), both zero-padded to ld.
struct PackedConv {
  std::vector<float> weight, bias;
  void pack(const Tensor& weight_, const MaybeTensor& bias_, int64_t ld) {
    const int64_t D = weight_.size(0), K = weight_.size(1);
    weight.assign(K * ld, 0.0f), bias.assign(ld, 0.0f);
    for (int64_t d = 0; d < D; ++d) {
      if (bias_) bias[d] = data(*bias_)[d];
      for (int64_t k = 0; k < K; ++k) weight[k * ld + d] = data(weight_)[d * K + k];
    }
  }
};

// (K, D) → (D, K).
inline Tensor transposed(const Tensor& from) {
  const int64_t K = from.size(0), D = from.size(1);
  const std::initializer_list<int64_t> sizes = {D, K};
  Tensor to = torch::stable::new_empty(from, {sizes.begin(), sizes.size()});
  for (int64_t k = 0; k < K; ++k)
    for (int64_t d = 0; d < D; ++d) data(to)[d * K + k] = data(from)[k * D + d];
  return to;
}

}  // namespace openxlstm
