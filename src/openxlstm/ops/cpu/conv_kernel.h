// The causal convolution of each channel, and SiLU after it, for one instruction set (see
// each_isa.h).
//
// A task is a tile: some steps of one sample. The backward also reads the K-1 steps after the tile,
// whose convolutions read the tile's last rows.

#include "rows.h"

#include "conv_rows.h"
#include "tiles.h"

inline int64_t row_floats(int64_t D) { return padded(D); }

// The rows that a tile's convolution reads, and its result.
struct Window {
  float *rows, *preact;
  int64_t* reach;
  void take(Arena& arena, int64_t steps, int64_t K, int64_t ld) {
    rows = arena.take((steps + K) * ld) + (K - 1) * ld;
    preact = arena.take(steps * ld);
    reach = reinterpret_cast<int64_t*>(arena.take(2 * steps));
  }
  void compute(const Conv& a, int64_t b, int64_t t0, int64_t steps, int64_t ld) {
    const float* x = a.x + b * a.T * a.D;
    const float* before = a.before == nullptr ? nullptr : a.before + b * (a.K - 1) * a.D;
    copy_rows(x + t0 * a.D, a.D, steps, a.D, rows, ld);
    copy_before(x, a.D, before, a.D, t0, a.K, rows - (a.K - 1) * ld, ld);
    compute_reach(a.reset == nullptr ? nullptr : a.reset + b * a.T, t0, steps, a.K, reach);
    convolve(rows, ld, steps, ld, a.weight, a.bias, a.K, reach, preact, ld);
  }
};
inline int64_t window_floats(int64_t steps, int64_t K, int64_t ld) {
  return (2 * steps + K) * ld + 2 * steps + 64;
}

inline int64_t forward_floats(int64_t D, int64_t K) {
  return window_floats(kTileRows, K, row_floats(D));
}

inline void forward_task(const Conv& a, int64_t task, float* scratch) {
  const int64_t ld = row_floats(a.D);
  const Tile tile(task, a.T);
  Arena arena{scratch};
  Window window;
  window.take(arena, kTileRows, a.K, ld);
  window.compute(a, tile.b, tile.t0, tile.rows, ld);
  for (int64_t s = 0; s < tile.rows; ++s)
    for (int64_t d = 0; d < a.D; d += LANES) {
      const Vec v = load(window.preact + s * ld + d);
      store(a.y + (tile.at + s) * a.D + d, a.silu ? v * sigmoid(v).value : v, a.D - d);
    }
}

inline int64_t backward_floats(int64_t D, int64_t K) {
  const int64_t ld = row_floats(D), steps = kTileRows + K;
  return window_floats(steps, K, ld) + (2 * steps + K) * ld;
}

// dweight (K, ld) and dbias (ld) are sums over tasks.
inline void backward_task(const Conv& a, int64_t task, float* dweight, float* dbias,
                          float* scratch) {
  const int64_t D = a.D, ld = row_floats(D), back = a.K - 1;
  const Tile tile(task, a.T);
  const int64_t b = tile.b, t0 = tile.t0, steps = tile.rows, at = tile.at;
  const int64_t extended = std::min(steps + back, a.T - t0);
  Arena arena{scratch};
  Window window;
  window.take(arena, kTileRows + a.K, a.K, ld);
  float* dpreact = arena.take((kTileRows + a.K) * ld);
  float* dx = arena.take((kTileRows + a.K) * ld) + back * ld;
  window.compute(a, b, t0, extended, ld);
  for (int64_t s = 0; s < extended; ++s)
    for (int64_t d = 0; d < D; d += LANES) {
      const Vec v = load(window.preact + s * ld + d), dy = load(a.dy + (at + s) * D + d, D - d);
      const Sigmoid gate = sigmoid(v);
      store(dpreact + s * ld + d,
            a.silu ? dy * gate.value * (1.0f + v * gate.complement) : dy);
    }
  fill(dx - back * ld, (back + steps) * ld, 0.0f);
  convolve_back(dpreact, extended, ld, t0 == 0 ? -back : 0, steps, ld, a.weight, a.K, window.reach,
                dx, ld);
  convolve_sums(dpreact, window.rows, ld, steps, ld, a.K, window.reach, dweight, dbias);
  write_rows(dx, ld, steps, D, a.dx + at * D, D);
  if (t0 == 0 && a.dbefore != nullptr)
    write_rows(dx - back * ld, ld, back, D, a.dbefore + b * back * D, D);
}
