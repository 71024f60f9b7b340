// The ops before and after an mLSTM cell, for one instruction set (see each_isa.h): from the
// residual stream to query, key, value and gates, and from the cell's output to the residual
// stream.
//
// A task is a tile: some steps of one sample. The 2E-wide inputs are written to memory once, for
// the backward; everything between stays in cache. The input's backward also reads the K-1 steps
// after its tile, whose convolutions read the tile's last rows.

#include "rows.h"

#include "conv_rows.h"
#include "norm_rows.h"
#include "product.h"
#include "tiles.h"

inline int64_t row_floats(int64_t E) { return odd_lines(E); }

// weight (blocks, out, in) as the vectors that the inputs of the blocks are multiplied with:
// (kBlock, E), [in][block·kBlock + out]; with in and out exchanged for the transposed map.
inline void pack_blocks(const float* weight, int64_t E, bool transposed, float* packed) {
  for (int64_t e = 0; e < E; ++e)
    for (int64_t j = 0; j < kBlock; ++j) {
      const int64_t block = e / kBlock, lane = e % kBlock;
      packed[j * E + e] = weight[(block * kBlock + (transposed ? j : lane)) * kBlock +
                                 (transposed ? lane : j)];
    }
}

// The product of a block-diagonal map and one vector.
inline Vec blockwise(Vec x, const float* packed, int64_t E) {
  return spread(x, kBlock, 0) * load(packed) + spread(x, kBlock, 1) * load(packed + E) +
         spread(x, kBlock, 2) * load(packed + 2 * E) + spread(x, kBlock, 3) * load(packed + 3 * E);
}
// sums (kBlock, ld) += the gradient of such a map's weight, from the gradients of its outputs.
inline void blockwise_sums(const float* x, int64_t ldx, const float* dy, int64_t ldy, int64_t rows,
                           int64_t E, float* sums, int64_t ld) {
  for (int64_t d = 0; d < E; d += LANES) {
    Vec total[kBlock] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const Vec v = load(x + r * ldx + d), g = load(dy + r * ldy + d);
      total[0] += g * spread(v, kBlock, 0);
      total[1] += g * spread(v, kBlock, 1);
      total[2] += g * spread(v, kBlock, 2);
      total[3] += g * spread(v, kBlock, 3);
    }
    for (int64_t j = 0; j < kBlock; ++j)
      store(sums + j * ld + d, load(sums + j * ld + d) + total[j]);
  }
}

// --- The input.

// Copies the rows of a that a tile's convolution reads: `rows` from its first on, and the K-1
// before.
inline void window_of(const MLSTMInput& p, const Tile& tile, int64_t rows, float* window, int64_t ld) {
  const float *a = p.a + tile.b * p.T * p.E, *before = p.before;
  if (before != nullptr) before += tile.b * (p.K - 1) * p.E;
  copy_part(a + tile.t0 * p.E, p.E, rows, p.E, window, ld);
  if (p.K > 0) copy_before(a, p.E, before, p.E, tile.t0, p.K, window - (p.K - 1) * ld, ld);
}

// c, query, key and value of a tile from its rows of a; the K-1 earlier rows are in front of them.
inline void branches(const MLSTMInput& p, const Tile& tile, const float* rows, int64_t ldr,
                     float* preact, int64_t* reach) {
  const int64_t E = p.E, ld = row_floats(E), at = tile.at;
  if (p.K > 0) {
    compute_reach(p.reset == nullptr ? nullptr : p.reset + tile.b * p.T, tile.t0, tile.rows, p.K, reach);
    convolve(rows, ldr, tile.rows, E, p.conv, p.conv_bias, p.K, reach, preact, ld);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float *own = rows + r * ldr, *in = p.K > 0 ? preact + r * ld : own;
    const int64_t to = (at + r) * E;
    for (int64_t d = 0; d < E; d += LANES) {
      const Vec v = load(in + d), c = v * sigmoid(v).value;
      store(p.c + to + d, c);
      store(p.out_q + to + d, blockwise(c, p.q + d, E));
      store(p.out_k + to + d, blockwise(c, p.k + d, E));
      store(p.out_v + to + d, blockwise(load(own + d), p.v + d, E));
    }
  }
}
// The same from a in memory: the backward recomputes them.
inline int64_t branches_floats(int64_t E, int64_t K) {
  return (2 * kTileRows + K) * row_floats(E) + 2 * kTileRows + 16 * 3;
}
inline void branches_task(const MLSTMInput& p, int64_t task, float* scratch) {
  const int64_t E = p.E, ld = row_floats(E), back = p.K > 0 ? p.K - 1 : 0;
  const Tile tile(task, p.T);
  Arena arena{scratch};
  float* window = arena.take((kTileRows + p.K) * ld) + back * ld;
  float* preact = arena.take(kTileRows * ld);
  int64_t* reach = reinterpret_cast<int64_t*>(arena.take(2 * kTileRows));
  window_of(p, tile, tile.rows, window, ld);
  branches(p, tile, window, ld, preact, reach);
}

inline int64_t input_forward_floats(int64_t D, int64_t E, int64_t NH, int64_t K) {
  const int64_t rows = kTileRows + K;
  return rows * odd_lines(2 * E) + kTileRows * (row_floats(E) + padded(2 * NH)) + 2 * rows + 16 * 4;
}

inline void input_forward_task(const MLSTMInput& p, int64_t task, float* scratch) {
  const int64_t D = p.D, E = p.E, NH = p.NH, T = p.T, back = p.K > 0 ? p.K - 1 : 0;
  const int64_t ld = row_floats(E), UP = odd_lines(2 * E), GP = padded(2 * NH);
  const Tile tile(task, T);
  Arena arena{scratch};
  float* u = arena.take((kTileRows + p.K) * UP) + back * UP;
  float *preact = arena.take(kTileRows * ld), *gates = arena.take(kTileRows * GP);
  int64_t* reach = reinterpret_cast<int64_t*>(arena.take(2 * kTileRows));

  // The steps before the tile are projected here too, so that no task waits for another.
  const int64_t halo = std::min(back, tile.t0), at = tile.at;
  product_packed(halo + tile.rows, 2 * E, D, p.x + (at - halo) * D, D, 1, p.up, u - halo * UP, UP,
                 false);
  const float* before = p.before == nullptr ? nullptr : p.before + tile.b * back * E;
  if (tile.t0 < back) copy_before(u - halo * UP, UP, before, E, halo, p.K, u - back * UP, UP);
  write_rows(u, UP, tile.rows, E, p.a + at * E, E);
  write_rows(u + E, UP, tile.rows, E, p.z + at * E, E);
  branches(p, tile, u, UP, preact, reach);
  product_packed(tile.rows, 2 * NH, E, p.c + at * E, E, 1, p.gate_c, gates, GP, false);
  product_packed(tile.rows, 2 * NH, E, u, UP, 1, p.gate_a, gates, GP, true);
  for (int64_t head = 0; head < NH; ++head) {
    const int64_t to = (tile.b * NH + head) * T + tile.t0;
    for (int64_t r = 0; r < tile.rows; ++r) {
      p.log_i[to + r] = gates[r * GP + head] + p.gate_bias[head];
      p.f_preact[to + r] = gates[r * GP + NH + head] + p.gate_bias[NH + head];
    }
    for (int64_t r = 0; r < tile.rows; r += LANES) {
      const Vec f = load(p.f_preact + to + r, tile.rows - r);
      store(p.log_f + to + r, log_sigmoid(f, exp_of_negative(-abs(f))), tile.rows - r);
    }
  }
}

inline int64_t input_backward_floats(int64_t D, int64_t E, int64_t NH, int64_t K) {
  const int64_t rows = kTileRows + K, ld = row_floats(E);
  return rows * (4 * ld + padded(2 * NH)) +
         kTileRows * (odd_lines(2 * E) + odd_lines(D) + padded(D)) + 2 * K * ld + 2 * rows + 16 * 12;
}

inline void input_backward_task(const MLSTMInput& p, const MLSTMInputGrads& g, int64_t task,
                                const MLSTMInputSums& sums, float* scratch) {
  const int64_t D = p.D, E = p.E, NH = p.NH, T = p.T, back = p.K > 0 ? p.K - 1 : 0;
  const int64_t ld = row_floats(E), UP = odd_lines(2 * E), GP = padded(2 * NH);
  const int64_t XP = odd_lines(D), DP = padded(D), rows_taken = kTileRows + p.K;
  const Tile tile(task, T);
  const int64_t rows = tile.rows, extended = std::min(rows + back, T - tile.t0);
  const int64_t at = tile.at;
  Arena arena{scratch};
  float* window = arena.take((rows_taken + p.K) * ld) + back * ld;
  float *c = arena.take(rows_taken * ld), *dc = arena.take(rows_taken * ld);
  float* dgates = arena.take(rows_taken * GP);
  int64_t* reach = reinterpret_cast<int64_t*>(arena.take(2 * rows_taken));
  float* du = arena.take(kTileRows * UP);  // gradients of a and z
  float *x = arena.take(kTileRows * XP), *dx = arena.take(kTileRows * DP);
  float* da_before = arena.take(p.K * ld);

  // Recomputes the convolution of the tile and of the steps after it.
  window_of(p, tile, extended, window, ld);
  if (p.K > 0) {
    compute_reach(p.reset == nullptr ? nullptr : p.reset + tile.b * T, tile.t0, extended, p.K, reach);
    convolve(window, ld, extended, E, p.conv, p.conv_bias, p.K, reach, c, ld);
  } else {
    copy_part(window, ld, extended, E, c, ld);
  }

  // Gates: the gradients of their pre-activations reach both branches.
  for (int64_t r = 0; r < extended; ++r)
    for (int64_t head = 0; head < NH; ++head) {
      const int64_t from = (tile.b * NH + head) * T + tile.t0 + r;
      dgates[r * GP + head] = g.dlog_i[from];
      dgates[r * GP + NH + head] = g.dlog_f[from] / (1.0f + std::exp(p.f_preact[from]));
    }
  product(extended, E, 2 * NH, dgates, GP, 1, p.gate_c, 2 * E, dc, ld, false);
  product(rows, E, 2 * NH, dgates, GP, 1, p.gate_a, 2 * E, du, UP, false);

  // From query and key through SiLU to the convolved branch; from value to the raw branch.
  for (int64_t r = 0; r < extended; ++r) {
    const int64_t from = (at + r) * E;
    for (int64_t d = 0; d < E; d += LANES) {
      const Vec in = load(c + r * ld + d);
      const Sigmoid s = sigmoid(in);
      store(c + r * ld + d, in * s.value);
      const Vec dout = load(dc + r * ld + d) + load(g.dc + from + d) +
                       blockwise(load(g.dq + from + d), p.q + d, E) +
                       blockwise(load(g.dk + from + d), p.k + d, E);
      store(dc + r * ld + d, dout * s.value * (1.0f + in * s.complement));
    }
    for (int64_t d = 0; d < E && r < rows; d += LANES) {
      float* to = du + r * UP + d;
      store(to, load(to) + blockwise(load(g.dv + from + d), p.v + d, E));
      store(to + E, load(g.dz + from + d));
    }
  }
  // From the convolved branch through the convolution to the raw branch.
  if (p.K > 0) {
    convolve_back(dc, extended, ld, 0, rows, E, p.conv, p.K, reach, du, UP);
    convolve_sums(dc, window, ld, rows, E, p.K, reach, sums.conv, sums.conv_bias);
    if (tile.t0 == 0 && g.dbefore != nullptr) {
      fill(da_before, back * ld, 0.0f);
      convolve_back(dc, extended, ld, -back, 0, E, p.conv, p.K, reach, da_before + back * ld, ld);
      write_rows(da_before, ld, back, E, g.dbefore + tile.b * back * E, E);
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) add_scaled(du + r * UP, dc + r * ld, E, 1.0f);
  }

  // The weights of the block-diagonal maps and of the gates.
  blockwise_sums(c, ld, g.dq + at * E, E, rows, E, sums.q, E);
  blockwise_sums(c, ld, g.dk + at * E, E, rows, E, sums.k, E);
  blockwise_sums(window, ld, g.dv + at * E, E, rows, E, sums.v, E);
  product(2 * NH, E, rows, dgates, 1, GP, c, ld, sums.gate, 2 * E, true);
  product(2 * NH, E, rows, dgates, 1, GP, window, ld, sums.gate + E, 2 * E, true);
  add_column_sums(sums.gate_bias, dgates, GP, rows, 2 * NH);

  // Through the up-projection.
  copy_rows(p.x + at * D, D, rows, D, x, XP);
  product_packed(rows, D, 2 * E, du, UP, 1, p.up, dx, DP, false);
  write_rows(dx, DP, rows, D, g.dx + at * D, D);
  product(2 * E, D, rows, du, 1, UP, x, XP, sums.up, DP, true);
}

// --- The output.

inline int64_t output_forward_floats(int64_t D, int64_t E) {
  return kTileRows * (padded(E) + padded(D)) + 32;
}

inline void output_forward_task(const MLSTMOutput& p, int64_t task, float* scratch) {
  const int64_t D = p.D, E = p.E, DH = E / p.NH, EP = padded(E), DP = padded(D);
  const Tile tile(task, p.T);
  const int64_t at = tile.at;
  Arena arena{scratch};
  float *inner = arena.take(kTileRows * EP), *y = arena.take(kTileRows * DP);
  for_head_rows(p.h, p.NH, p.T, DH, tile, [&](int64_t head, int64_t r0, int64_t count, const float* h) {
    const Moments m = moments(h, DH, count, DH, p.eps);
    for (int64_t j = 0; j < count; ++j)
      for_vectors(DH, [&](int64_t d, int64_t n) {
        const int64_t e = head * DH + d, row = (at + r0 + j) * E + e;
        const Vec z = load(p.z + row, n);
        const Vec kept = normed(load(h + j * DH + d, n), m, j) * (load(p.norm + e, n) + 1.0f) +
                         load(p.skip + e, n) * load(p.c + row, n);
        store(inner + (r0 + j) * EP + e, kept * z * sigmoid(z).value, n);
      });
  });
  product_packed(tile.rows, D, E, inner, EP, 1, p.down, y, DP, false);
  write_rows(y, DP, tile.rows, D, p.y + at * D, D);
}

inline int64_t output_backward_floats(int64_t D, int64_t E) {
  return kTileRows * (2 * odd_lines(E) + odd_lines(D)) + 48;
}

inline void output_backward_task(const MLSTMOutput& p, int64_t task, const MLSTMOutputSums& sums,
                                 float* scratch) {
  const int64_t D = p.D, E = p.E, DH = E / p.NH, EP = odd_lines(E), XP = odd_lines(D);
  const Tile tile(task, p.T);
  const int64_t at = tile.at;
  Arena arena{scratch};
  float *inner = arena.take(kTileRows * EP), *dinner = arena.take(kTileRows * EP);
  float* dy = arena.take(kTileRows * XP);
  copy_rows(p.dy + at * D, D, tile.rows, D, dy, XP);
  product_packed(tile.rows, E, D, dy, XP, 1, p.down, dinner, EP, false);
  for_head_rows(p.h, p.NH, p.T, DH, tile, [&](int64_t head, int64_t r0, int64_t count, const float* h) {
    // Prefetches what is in memory: hardware does not, since rows are read down their columns.
    for (int64_t j = LANES; j < 2 * LANES; ++j) {
      prefetch<false>(h + j * DH, DH);
      prefetch<false>(p.z + (at + r0 + j) * E + head * DH, DH);
    }
    const Moments m = moments(h, DH, count, DH, p.eps);
    float* dh = p.dh + (h - p.h);
    for_vectors(DH, [&](int64_t d, int64_t n) {
      const int64_t e = head * DH + d;
      const Vec scale = load(p.norm + e, n) + 1.0f, skip = load(p.skip + e, n);
      Vec dskip{}, dnorm{};
      for (int64_t j = 0; j < count; ++j) {
        const int64_t row = (at + r0 + j) * E + e;
        const Vec z = load(p.z + row, n), c = load(p.c + row, n);
        const Vec in = normed(load(h + j * DH + d, n), m, j), kept = in * scale + skip * c;
        const Sigmoid s = sigmoid(z);
        const Vec gate = z * s.value, dout = load(dinner + (r0 + j) * EP + e, n);
        const Vec dkept = dout * gate;
        store(inner + (r0 + j) * EP + e, kept * gate, n);
        store(p.dz + row, dout * kept * s.value * (1.0f + z * s.complement), n);
        store(p.dc + row, dkept * skip, n);
        store(dh + j * DH + d, dkept * scale, n);
        dskip += dkept * c, dnorm += dkept * in;
      }
      store(sums.skip + e, load(sums.skip + e, n) + dskip, n);
      store(sums.norm + e, load(sums.norm + e, n) + dnorm, n);
    });
    through_norm(h, DH, count, DH, m, dh, DH);
  });
  product(D, E, tile.rows, dy, 1, XP, inner, EP, sums.down, padded(E), true);
}
