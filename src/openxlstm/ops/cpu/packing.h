// Packs a matrix for product_packed; included after each_isa.h of a kernel that includes product.h.
#pragma once

#include "tensors.h"

namespace openxlstm {
namespace {

// B (K, N) with the element [k, n] at B[k·row + n·col].
inline Floats packed(const float* B, int64_t row, int64_t col, int64_t K, int64_t N) {
  Floats out(OPENXLSTM_CALL(packed_size, K, N));
  for_each_task(OPENXLSTM_CALL(num_panels, N), 0, [&](int64_t panel, float*) {
    OPENXLSTM_CALL(pack_panel, B, row, col, K, N, panel, out.data());
  });
  return out;
}

}  // namespace
}  // namespace openxlstm
