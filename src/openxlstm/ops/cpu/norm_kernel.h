// Norms of rows, whole or in groups, for one instruction set (see each_isa.h).

#include "rows.h"

#include "norm_rows.h"
#include "tiles.h"

inline NormedRows norm_of(const Norm& a) {
  return {a.G, a.W, a.weight, a.eps, a.bias, !a.rms, a.rms ? 0.0f : 1.0f};
}

inline void forward_tile(const Norm& a, int64_t tile) {
  const int64_t width = a.G * a.W, r0 = tile * kTileRows, rows = std::min(kTileRows, a.R - r0);
  norm_of(a).forward(a.x + r0 * width, width, rows, a.y + r0 * width, width);
}

// dweight and dbias (G·W) are sums over rows.
inline void backward_tile(const Norm& a, int64_t tile, float* dweight, float* dbias) {
  const int64_t width = a.G * a.W, r0 = tile * kTileRows, at = r0 * width;
  const int64_t rows = std::min(kTileRows, a.R - r0);
  norm_of(a).backward(a.x + at, width, rows, a.dy + at, a.dx + at, width, dweight, dbias);
}
