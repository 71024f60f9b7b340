// Layer norm of rows, whole or in groups, for one instruction set (see each_isa.h).

#include "rows.h"

#include "norm_rows.h"

constexpr int64_t kTileRows = 64;
inline int64_t tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

inline void forward_tile(const Norm& a, int64_t tile) {
  const int64_t width = a.G * a.W, r0 = tile * kTileRows;
  const NormedRows norm{a.G, a.W, a.weight, a.eps};
  norm.forward(a.x + r0 * width, width, std::min(kTileRows, a.R - r0), a.y + r0 * width, width);
}

// dweight (G·W) is a sum over rows.
inline void backward_tile(const Norm& a, int64_t tile, float* dweight) {
  const int64_t width = a.G * a.W, r0 = tile * kTileRows, at = r0 * width;
  const NormedRows norm{a.G, a.W, a.weight, a.eps};
  norm.backward(a.x + at, width, std::min(kTileRows, a.R - r0), a.dy + at, a.dx + at, width, dweight);
}
