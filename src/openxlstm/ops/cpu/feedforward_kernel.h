// The gated feed-forward of some rows, for one instruction set (see each_isa.h).
//
// The 2F-wide activations stay in cache: a task takes a tile of rows through both products and the
// activation between them, and in the backward through the products for the weights' gradients too.

#include "rows.h"

#include "norm_rows.h"
#include "product.h"
#include "tiles.h"

constexpr int64_t kMostRows = 96;
inline int64_t row_tiles(int64_t rows) { return tiles(rows, kMostRows); }

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

inline int64_t forward_floats(int64_t D, int64_t F) {
  return kMostRows * (3 * padded(F) + 2 * padded(D)) + 16 * 4;
}

inline NormedRows norm_of(const FeedForward& a) {
  return a.rms ? rms_rows(a.D, a.norm, a.norm_bias, a.eps)
               : NormedRows{1, a.D, a.norm, a.eps, a.norm_bias};
}

inline void forward_tile(const FeedForward& a, int64_t tile, float* scratch) {
  const int64_t D = a.D, F = a.F, FP = padded(F), UP = 2 * FP, DP = padded(D);
  const int64_t r0 = tile * kMostRows, rows = std::min(kMostRows, a.R - r0);
  Arena arena{scratch};
  float *u = arena.take(kMostRows * UP), *act = arena.take(kMostRows * FP);
  float *y = arena.take(kMostRows * DP), *normed_x = arena.take(kMostRows * DP);
  const float *x = a.x + r0 * D, *in = x;
  int64_t ld = D;
  if (a.norm != nullptr) {
    norm_of(a).forward(x, D, rows, normed_x, DP);
    in = normed_x, ld = DP;
  }
  product_packed(rows, F, D, in, ld, 1, a.gate, u, UP, false);
  product_packed(rows, F, D, in, ld, 1, a.value, u + FP, UP, false);
  add_bias(u, UP, rows, F, a.gate_bias);
  add_bias(u + FP, UP, rows, F, a.value_bias);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < FP; d += LANES) {
      const Vec gate = load(u + r * UP + d), value = load(u + r * UP + FP + d);
      store(act + r * FP + d, activate(gate, a.silu).value * value);
    }
  if (a.gate_preact != nullptr) {
    write_rows(u, UP, rows, F, a.gate_preact + r0 * 2 * F, 2 * F);
    write_rows(u + FP, UP, rows, F, a.value_preact + r0 * 2 * F, 2 * F);
  }
  product_packed(rows, D, F, act, FP, 1, a.down, y, DP, false);
  add_bias(y, DP, rows, D, a.down_bias);
  if (a.residual) add_rows(x, D, rows, D, y, DP);
  write_rows(y, DP, rows, D, a.y + r0 * D, D);
}

inline int64_t backward_floats(int64_t D, int64_t F) {
  return kMostRows * (odd_lines(2 * padded(F)) + odd_lines(F) + padded(F) + padded(D) +
                      2 * odd_lines(D));
}

inline void backward_tile(const FeedForward& a, int64_t tile, const FeedForwardSums& sums,
                          float* scratch) {
  const int64_t D = a.D, F = a.F, PP = padded(F), UP = odd_lines(2 * PP), FP = odd_lines(F);
  const int64_t DP = padded(D), XP = odd_lines(D);
  const int64_t r0 = tile * kMostRows, rows = std::min(kMostRows, a.R - r0);
  const float *in = a.x + r0 * D;
  Arena arena{scratch};
  float *du = arena.take(kMostRows * UP), *act = arena.take(kMostRows * FP);
  float *dact = arena.take(kMostRows * PP), *dx = arena.take(kMostRows * DP);
  float *x = arena.take(kMostRows * XP), *dy = arena.take(kMostRows * XP);
  if (a.norm != nullptr) norm_of(a).forward(in, D, rows, x, XP);
  else copy_rows(in, D, rows, D, x, XP);
  copy_rows(a.dy + r0 * D, D, rows, D, dy, XP);
  product_packed(rows, F, D, dy, XP, 1, a.down, dact, PP, false);
  for (int64_t r = 0; r < rows; ++r) {
    const float *gates = a.gate_preact + (r0 + r) * 2 * F, *values = a.value_preact + (r0 + r) * 2 * F;
    for (int64_t d = 0; d < F; d += LANES) {
      const Vec gate = load(gates + d, F - d), value = load(values + d, F - d);
      const Vec from = load(dact + r * PP + d);
      const Activated g = activate(gate, a.silu);
      store(act + r * FP + d, g.value * value);
      store(du + r * UP + d, from * value * g.slope);
      store(du + r * UP + PP + d, from * g.value);
    }
  }
  product_packed(rows, D, F, du, UP, 1, a.gate, dx, DP, false);
  product_packed(rows, D, F, du + PP, UP, 1, a.value, dx, DP, true);
  if (a.norm != nullptr) norm_of(a).backward(in, D, rows, dx, dx, DP, sums.norm, sums.norm_bias);
  if (a.residual) add_rows(dy, XP, rows, D, dx, DP);
  write_rows(dx, DP, rows, D, a.dx + r0 * D, D);
  product(F, D, rows, du, 1, UP, x, XP, sums.up, DP, true);
  product(F, D, rows, du + PP, 1, UP, x, XP, sums.up + F * DP, DP, true);
  product(D, F, rows, dy, 1, XP, act, FP, sums.down, PP, true);
  if (a.gate_bias != nullptr) add_column_sums(sums.up_bias, du, UP, rows, F);
  if (a.value_bias != nullptr) add_column_sums(sums.up_bias + F, du + PP, UP, rows, F);
  if (a.down_bias != nullptr) add_column_sums(sums.down_bias, dy, XP, rows, D);
}
