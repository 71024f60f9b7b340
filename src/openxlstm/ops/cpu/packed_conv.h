// The weights of a causal convolution as the kernels read them, and back.
#pragma once

#include <vector>

#include "tensors.h"

namespace openxlstm {

// The weights of a convolution (D, K), as (K, ld), and its bias (D), both zero-padded.
struct PackedConv {
  std::vector<float> weight, bias;
  void pack(const Tensor& weight_, const std::optional<Tensor>& bias_, int64_t ld) {
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
