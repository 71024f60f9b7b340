// The gated feed-forward of some rows, for one instruction set (see each_isa.h).
//
// What is 2F wide stays in cache: a task takes a tile of rows through both products, the activation
// between them, and in the backward the products for the weights' gradients as well.

#include "rows.h"

#include "norm_rows.h"
#include "product.h"

constexpr int64_t kTileRows = 96;

struct Activated {
  Vec value, slope;
};
inline Activated activate(Vec x, bool silu) {
  if (silu) {
    const Sigmoid s = sigmoid(x);
    return {x * s.value, s.value * (1.0f + x * s.complement)};
  }
  const Normal n = normal(x);
  return {x * n.cumulative, n.cumulative + x * n.density};
}

inline int64_t tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
inline int64_t forward_floats(int64_t D, int64_t F) {
  return kTileRows * (padded(2 * F) + padded(F) + 2 * padded(D)) + 16 * 4;
}

inline NormedRows norm_of(const FeedForward& a) { return {1, a.D, a.norm, a.eps}; }

inline void add_bias(float* x, int64_t ld, int64_t rows, int64_t width, const float* bias) {
  if (bias == nullptr) return;
  for (int64_t d = 0; d < width; d += LANES) {
    const Vec b = load(bias + d, width - d);
    for (int64_t r = 0; r < rows; ++r) store(x + r * ld + d, load(x + r * ld + d) + b);
  }
}
inline void forward_tile(const FeedForward& a, int64_t tile, float* scratch) {
  const int64_t D = a.D, F = a.F, UP = padded(2 * F), FP = padded(F), DP = padded(D);
  const int64_t r0 = tile * kTileRows, rows = std::min(kTileRows, a.R - r0);
  Arena arena{scratch};
  float *u = arena.take(kTileRows * UP), *act = arena.take(kTileRows * FP);
  float *y = arena.take(kTileRows * DP), *normed_x = arena.take(kTileRows * DP);
  const float* in = a.x + r0 * D;
  if (a.norm != nullptr) norm_of(a).forward(in, D, rows, normed_x, DP);
  product_packed(rows, 2 * F, D, a.norm != nullptr ? normed_x : in, a.norm != nullptr ? DP : D, 1,
                 a.up, u, UP, false);
  add_bias(u, UP, rows, 2 * F, a.up_bias);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < F; d += LANES) {
      const Vec gate = load(u + r * UP + d, F - d), value = load(u + r * UP + F + d, F - d);
      store(act + r * FP + d, activate(gate, a.silu).value * value);
    }
  if (a.preact != nullptr) write_rows(u, UP, rows, 2 * F, a.preact + r0 * 2 * F, 2 * F);
  product_packed(rows, D, F, act, FP, 1, a.down, y, DP, false);
  add_bias(y, DP, rows, D, a.down_bias);
  if (a.residual) add_rows(in, D, rows, D, y, DP);
  write_rows(y, DP, rows, D, a.y + r0 * D, D);
}

inline int64_t backward_floats(int64_t D, int64_t F) {
  return kTileRows * (odd_lines(2 * F) + odd_lines(F) + padded(F) + padded(D) + 2 * odd_lines(D));
}

inline void backward_tile(const FeedForward& a, int64_t tile, const FeedForwardSums& sums,
                          float* scratch) {
  const int64_t D = a.D, F = a.F, UP = odd_lines(2 * F), FP = odd_lines(F);
  const int64_t DP = padded(D), XP = odd_lines(D);
  const int64_t r0 = tile * kTileRows, rows = std::min(kTileRows, a.R - r0);
  const float *in = a.x + r0 * D, *u = a.preact + r0 * 2 * F;
  Arena arena{scratch};
  float *du = arena.take(kTileRows * UP), *act = arena.take(kTileRows * FP);
  float *dact = arena.take(kTileRows * padded(F)), *dx = arena.take(kTileRows * DP);
  float *x = arena.take(kTileRows * XP), *dy = arena.take(kTileRows * XP);
  if (a.norm != nullptr) norm_of(a).forward(in, D, rows, x, XP);
  else copy_rows(in, D, rows, D, x, XP);
  copy_rows(a.dy + r0 * D, D, rows, D, dy, XP);
  product_packed(rows, F, D, dy, XP, 1, a.down, dact, padded(F), false);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < F; d += LANES) {
      const Vec gate = load(u + r * 2 * F + d, F - d), value = load(u + r * 2 * F + F + d, F - d);
      const Vec from = load(dact + r * padded(F) + d);
      const Activated g = activate(gate, a.silu);
      store(act + r * FP + d, g.value * value);
      store(du + r * UP + d, from * value * g.slope, F - d);
      store(du + r * UP + F + d, from * g.value, F - d);
    }
  product_packed(rows, D, 2 * F, du, UP, 1, a.up, dx, DP, false);
  if (a.norm != nullptr) norm_of(a).backward(in, D, rows, dx, dx, DP, sums.norm);
  if (a.residual) add_rows(dy, XP, rows, D, dx, DP);
  write_rows(dx, DP, rows, D, a.dx + r0 * D, D);
  product(2 * F, D, rows, du, 1, UP, x, XP, sums.up, DP, true);
  product(D, F, rows, dy, 1, XP, act, FP, sums.down, padded(F), true);
  if (a.up_bias != nullptr) add_column_sums(sums.up_bias, du, UP, rows, 2 * F);
  if (a.down_bias != nullptr) add_column_sums(sums.down_bias, dy, XP, rows, D);
}
