// Layer norm of rows, whole or in groups, for one instruction set (see each_isa.h).

#include "rows.h"

#include "norm_rows.h"

constexpr int64_t kTileRows = 64;
inline int64_t tile_rows() { return kTileRows; }
inline int64_t scratch_floats(int64_t width) { return padded(width); }

inline void forward_tile(const Norm& a, int64_t tile) {
  for (int64_t r = tile * kTileRows; r < std::min(a.R, (tile + 1) * kTileRows); ++r)
    for (int64_t g = 0; g < a.G; ++g) {
      const int64_t at = (r * a.G + g) * a.W;
      const Moments m = moments(a.x + at, a.W, a.eps);
      for (int64_t d = 0; d < a.W; d += LANES) {
        const int64_t count = a.W - d;
        const Vec scale = load(a.weight + g * a.W + d, count) + 1.0f;
        store(a.y + at + d, normed(load(a.x + at + d, count), m) * scale, count);
      }
    }
}

// dweight (G·W) is a sum over rows.
inline void backward_tile(const Norm& a, int64_t tile, float* dweight, float* scratch) {
  for (int64_t r = tile * kTileRows; r < std::min(a.R, (tile + 1) * kTileRows); ++r)
    for (int64_t g = 0; g < a.G; ++g) {
      const int64_t at = (r * a.G + g) * a.W;
      const Moments m = moments(a.x + at, a.W, a.eps);
      for (int64_t d = 0; d < a.W; d += LANES) {
        const int64_t count = a.W - d, w = g * a.W + d;
        const Vec dy = load(a.dy + at + d, count), x = normed(load(a.x + at + d, count), m);
        store(dweight + w, load(dweight + w, count) + dy * x, count);
        store(scratch + d, dy * (load(a.weight + w, count) + 1.0f));
      }
      through_norm(a.x + at, m, scratch, a.W);
      write_rows(scratch, 0, 1, a.W, a.dx + at, 0);
    }
}
