// Layer norm of rows, whole or in groups, for one instruction set (see each_isa.h).

#include "rows.h"

#include "norm_rows.h"

constexpr int64_t kTileRows = 64;
inline int64_t tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
inline int64_t scratch_floats(int64_t width) { return padded(width); }

inline void forward_tile(const Norm& a, int64_t tile) {
  const int64_t width = a.G * a.W;
  for (int64_t r = tile * kTileRows; r < std::min(a.R, (tile + 1) * kTileRows); ++r)
    norm_row(a.x + r * width, a.G, a.W, a.weight, a.eps, a.y + r * width);
}

// dweight (G·W) is a sum over rows.
inline void backward_tile(const Norm& a, int64_t tile, float* dweight, float* scratch) {
  for (int64_t r = tile * kTileRows; r < std::min(a.R, (tile + 1) * kTileRows); ++r)
    for (int64_t g = 0; g < a.G; ++g) {
      const int64_t at = (r * a.G + g) * a.W, w = g * a.W;
      copy_part(a.dy + at, 0, 1, a.W, scratch, 0);
      norm_back(a.x + at, a.W, a.weight + w, a.eps, scratch, dweight + w);
      write_rows(scratch, 0, 1, a.W, a.dx + at, 0);
    }
}
