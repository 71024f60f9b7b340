// Packs weights on torch's threads.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "isa.h"
#include "packing.h"

#define OPENXLSTM_KERNEL "packing_kernel.h"
#include "each_isa.h"

namespace openxlstm {

Floats packed(const float* B, int64_t row, int64_t col, int64_t K, int64_t N) {
  Floats out(OPENXLSTM_CALL(packed_size, K, N));
  for_each_task(OPENXLSTM_CALL(num_panels, N), 0, [&](int64_t panel, float*) {
    OPENXLSTM_CALL(pack_panel, B, row, col, K, N, panel, out.data());
  });
  return out;
}

}  // namespace openxlstm
