// The ops before and after the cell of a large block, for one instruction set (see each_isa.h):
// from the residual stream to query, key, value and gates, and from the cell's output to the
// residual stream. A task is some steps of one sample.

#include "rows.h"

#include "norm_rows.h"
#include "product.h"
#include "tiles.h"

// --- The input.

inline NormedRows norm_of(const LargeInput& p) { return rms_rows(p.D, p.norm, p.norm_bias, p.eps); }

inline int64_t widest(const LargeInput& p) { return padded(std::max({p.QK, p.V, 2 * p.NH})); }
inline int64_t input_forward_floats(const LargeInput& p) {
  return kTileRows * (padded(p.D) + widest(p)) + 2 * LANES + 16 * 3;
}

inline void input_forward_task(const LargeInput& p, int64_t task, float* scratch) {
  const int64_t D = p.D, NH = p.NH, DP = padded(D);
  const Tile tile(task, p.T);
  Arena arena{scratch};
  float *x = arena.take(kTileRows * DP), *u = arena.take(kTileRows * widest(p));
  norm_of(p).forward(p.x + tile.at * D, D, tile.rows, x, DP);
  for (int part = 0; part < kProjections; ++part) {
    const int64_t width = p.width(part), ld = padded(width);
    // Rows of whole vectors are computed in place.
    float* to = part < kGates ? p.out[part] + tile.at * width : u;
    float* y = part < kGates && ld == width ? to : u;
    product_packed(tile.rows, width, D, x, DP, 1, p.weight[part], y, ld, false);
    add_bias(y, ld, tile.rows, width, p.bias[part]);
    if (y != to) write_rows(y, ld, tile.rows, width, to, width);
  }
  // Transposes the gates: from (steps, heads) to (heads, steps).
  const int64_t GP = padded(2 * NH);
  for (int64_t head = 0; head < NH; ++head) {
    const int64_t to = (tile.b * NH + head) * p.T + tile.t0;
    for (int64_t r = 0; r < tile.rows; r += LANES) {
      const int64_t count = std::min<int64_t>(LANES, tile.rows - r);
      Vec i{}, f{};
      for (int64_t j = 0; j < count; ++j)
        i[j] = u[(r + j) * GP + head], f[j] = u[(r + j) * GP + NH + head];
      f = soft_cap(f, p.cap);
      store(p.log_i + to + r, soft_cap(i, p.cap), count);
      store(p.f + to + r, f, count);
      store(p.log_f + to + r, log_sigmoid(f, exp_of_negative(-abs(f))), count);
    }
  }
}

// The gradients of all projections side by side, each in whole vectors.
inline int64_t all_wide(const LargeInput& p) {
  return odd_lines(2 * padded(p.QK) + 2 * padded(p.V) + padded(2 * p.NH));
}
inline int64_t input_backward_floats(const LargeInput& p) {
  return kTileRows * (odd_lines(p.D) + padded(p.D) + all_wide(p)) + 16 * 3;
}

inline void input_backward_task(const LargeInput& p, const LargeInputGrads& g, int64_t task,
                                const LargeInputSums& sums, float* scratch) {
  const int64_t D = p.D, NH = p.NH, DP = padded(D), XP = odd_lines(D), UP = all_wide(p);
  const Tile tile(task, p.T);
  const int64_t rows = tile.rows;
  Arena arena{scratch};
  float *x = arena.take(kTileRows * XP), *dx = arena.take(kTileRows * DP);
  float* du = arena.take(kTileRows * UP);
  const float* in = p.x + tile.at * D;
  norm_of(p).forward(in, D, rows, x, XP);
  int64_t at = 0;
  for (int part = 0; part < kProjections; ++part) {
    const int64_t width = p.width(part);
    float* d = du + at;
    if (part < kGates) {
      copy_part(g.out[part] + tile.at * width, width, rows, width, d, UP);
    } else {
      for (int64_t head = 0; head < NH; ++head) {
        const int64_t from = (tile.b * NH + head) * p.T + tile.t0;
        for (int64_t r = 0; r < rows; r += LANES) {
          const int64_t count = std::min<int64_t>(LANES, rows - r), step = from + r;
          const Vec i = load(p.log_i + step, count), f = load(p.f + step, count);
          const Vec di = load(g.log_i + step, count) * cap_slope(i, p.cap);
          const Vec df = load(g.log_f + step, count) * sigmoid(f).complement * cap_slope(f, p.cap);
          for (int64_t j = 0; j < count; ++j)
            d[(r + j) * UP + head] = di[j], d[(r + j) * UP + NH + head] = df[j];
        }
      }
    }
    product_packed(rows, D, width, d, UP, 1, p.weight[part], dx, DP, part > 0);
    product(width, D, rows, d, 1, UP, x, XP, sums.weight[part], DP, true);
    if (p.bias[part] != nullptr) add_column_sums(sums.bias[part], d, UP, rows, width);
    at += padded(width);
  }
  norm_of(p).backward(in, D, rows, dx, dx, DP, sums.norm, sums.norm_bias);
  write_rows(dx, DP, rows, D, g.dx + tile.at * D, D);
}

// --- The output.

inline NormedRows norm_of(const LargeOutput& p) {
  return {p.NH, p.V / p.NH, p.norm, p.eps, p.norm_bias, true, 0.0f};
}

inline int64_t output_forward_floats(int64_t D, int64_t V) {
  return kTileRows * (padded(V) + padded(D)) + 32;
}

inline void output_forward_task(const LargeOutput& p, int64_t task, float* scratch) {
  const int64_t D = p.D, V = p.V, DHV = V / p.NH, VP = padded(V), DP = padded(D);
  const NormedRows norm = norm_of(p);
  const Tile tile(task, p.T);
  Arena arena{scratch};
  float *inner = arena.take(kTileRows * VP), *y = arena.take(kTileRows * DP);
  for_head_rows(p.h, p.NH, p.T, DHV, tile, [&](int64_t head, int64_t r0, int64_t count, const float* h) {
    const Moments m = moments(h, DHV, count, DHV, p.eps);
    for (int64_t j = 0; j < count; ++j)
      for_vectors(DHV, [&](int64_t d, int64_t n) {
        const int64_t e = head * DHV + d;
        const Vec gate = sigmoid(load(p.o + (tile.at + r0 + j) * V + e, n)).value;
        store(inner + (r0 + j) * VP + e,
              norm.scaled(normed(load(h + j * DHV + d, n), m, j), e, n) * gate, n);
      });
  });
  product_packed(tile.rows, D, V, inner, VP, 1, p.down, y, DP, false);
  add_bias(y, DP, tile.rows, D, p.down_bias);
  if (p.residual != nullptr) add_rows(p.residual + tile.at * D, D, tile.rows, D, y, DP);
  write_rows(y, DP, tile.rows, D, p.y + tile.at * D, D);
}

inline int64_t output_backward_floats(int64_t D, int64_t V) {
  return kTileRows * (2 * odd_lines(V) + odd_lines(D)) + 48;
}

inline void output_backward_task(const LargeOutput& p, int64_t task, const LargeOutputSums& sums,
                                 float* scratch) {
  const int64_t D = p.D, V = p.V, DHV = V / p.NH, VP = odd_lines(V), XP = odd_lines(D);
  const NormedRows norm = norm_of(p);
  const Tile tile(task, p.T);
  Arena arena{scratch};
  float *inner = arena.take(kTileRows * VP), *dinner = arena.take(kTileRows * VP);
  float* dy = arena.take(kTileRows * XP);
  copy_rows(p.dy + tile.at * D, D, tile.rows, D, dy, XP);
  product_packed(tile.rows, V, D, dy, XP, 1, p.down, dinner, VP, false);
  for_head_rows(p.h, p.NH, p.T, DHV, tile, [&](int64_t head, int64_t r0, int64_t count, const float* h) {
    const Moments m = moments(h, DHV, count, DHV, p.eps);
    float* dh = p.dh + (h - p.h);
    for_vectors(DHV, [&](int64_t d, int64_t n) {
      const int64_t e = head * DHV + d;
      const Vec scale = load(p.norm + e, n);
      Vec dnorm{}, dbias{};
      for (int64_t j = 0; j < count; ++j) {
        const int64_t row = (tile.at + r0 + j) * V + e;
        const Sigmoid gate = sigmoid(load(p.o + row, n));
        const Vec in = normed(load(h + j * DHV + d, n), m, j), y = norm.scaled(in, e, n);
        const Vec dout = load(dinner + (r0 + j) * VP + e, n), dscaled = dout * gate.value;
        store(inner + (r0 + j) * VP + e, y * gate.value, n);
        store(p.d_o + row, dscaled * y * gate.complement, n);
        store(dh + j * DHV + d, dscaled * scale, n);
        dnorm += dscaled * in, dbias += dscaled;
      }
      store(sums.norm + e, load(sums.norm + e, n) + dnorm, n);
      store(sums.norm_bias + e, load(sums.norm_bias + e, n) + dbias, n);
    });
    through_norm(h, DHV, count, DHV, m, dh, DHV);
  });
  product(D, V, tile.rows, dy, 1, XP, inner, VP, sums.down, padded(V), true);
  add_column_sums(sums.down_bias, dy, XP, tile.rows, D);
}
