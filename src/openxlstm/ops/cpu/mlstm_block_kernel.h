// Around an mLSTM cell, for one instruction set (see each_isa.h): from the residual stream to query,
// key, value and gates, and from the cell's output back.
//
// A task is some steps of one sample. What is 2E wide is in memory once, for the backward; all
// between is in cache. The input's backward also looks at the K-1 steps after its own, whose
// convolutions read its last rows.

#include "rows.h"

#include "conv_rows.h"
#include "norm_rows.h"
#include "product.h"

constexpr int64_t kTileRows = 64;

inline int64_t tiles(int64_t T) { return (T + kTileRows - 1) / kTileRows; }
struct Tile {
  int64_t b, t0, rows;
  Tile(int64_t task, int64_t T)
      : b(task / tiles(T)),
        t0(task % tiles(T) * T / tiles(T)),
        rows((task % tiles(T) + 1) * T / tiles(T) - t0) {}
};

inline int64_t row_floats(int64_t E) { return odd_lines(E); }

// weight (blocks, out, in) as the vectors that each input of a block is multiplied with:
// (kBlock, E), [in][block·kBlock + out], or the other way round for the transposed map.
inline void pack_blocks(const float* weight, int64_t E, bool transposed, float* packed) {
  for (int64_t e = 0; e < E; ++e)
    for (int64_t j = 0; j < kBlock; ++j) {
      const int64_t block = e / kBlock, lane = e % kBlock;
      packed[j * E + e] = weight[(block * kBlock + (transposed ? j : lane)) * kBlock +
                                 (transposed ? lane : j)];
    }
}

// y = W∘x of one vector, whose blocks W maps each for itself.
inline Vec blockwise(Vec x, const Vec w[kBlock]) {
  return spread(x, kBlock, 0) * w[0] + spread(x, kBlock, 1) * w[1] + spread(x, kBlock, 2) * w[2] +
         spread(x, kBlock, 3) * w[3];
}
inline void load_blocks(const float* packed, int64_t E, int64_t d, Vec w[kBlock]) {
  for (int64_t j = 0; j < kBlock; ++j) w[j] = load(packed + j * E + d, E - d);
}
inline void blockwise_rows(const float* x, int64_t ldx, int64_t rows, const float* packed,
                           int64_t E, float* y, int64_t ldy, bool add) {
  for (int64_t d = 0; d < E; d += LANES) {
    Vec w[kBlock];
    load_blocks(packed, E, d, w);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec out = blockwise(load(x + r * ldx + d), w);
      store(y + r * ldy + d, add ? load(y + r * ldy + d) + out : out);
    }
  }
}
// sums (kBlock, ld) += the gradient of such a map's weight, from those of its outputs.
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

inline int64_t input_forward_floats(int64_t D, int64_t E, int64_t NH, int64_t K) {
  const int64_t rows = kTileRows + K, ld = row_floats(E);
  return rows * (padded(2 * E) + ld) + kTileRows * (ld + odd_lines(3 * E) + padded(2 * NH)) +
         2 * rows + 16 * 8;
}

inline void input_forward_task(const MLSTMInput& p, int64_t task, float* scratch) {
  const int64_t D = p.D, E = p.E, NH = p.NH, T = p.T, back = p.K > 0 ? p.K - 1 : 0;
  const int64_t ld = row_floats(E), UP = padded(2 * E), QP = odd_lines(3 * E), GP = padded(2 * NH);
  const Tile tile(task, T);
  Arena arena{scratch};
  float* u = arena.take((kTileRows + p.K) * UP);
  float* window = arena.take((kTileRows + p.K) * ld) + back * ld;
  float *c = arena.take(kTileRows * ld), *qkv = arena.take(kTileRows * QP);
  float* gates = arena.take(kTileRows * GP);
  int64_t* reach = reinterpret_cast<int64_t*>(arena.take(2 * kTileRows));

  // The steps before the tile are projected once more, instead of waiting for who does.
  const int64_t halo = std::min(back, tile.t0), at = tile.b * T + tile.t0;
  product_packed(halo + tile.rows, 2 * E, D, p.x + (at - halo) * D, D, 1, p.up, u, UP, false);
  const float* own = u + halo * UP;
  copy_rows(own, UP, tile.rows, E, window, ld);
  write_rows(own, UP, tile.rows, E, p.a + at * E, E);
  write_rows(own + E, UP, tile.rows, E, p.z + at * E, E);
  if (p.K > 0) {
    const float* before = p.before == nullptr ? nullptr : p.before + tile.b * back * E;
    // As if the sample began `halo` steps before the tile, when that is all that is looked at.
    copy_before(u, UP, before, E, halo, p.K, window - back * ld, ld);
    compute_reach(p.reset == nullptr ? nullptr : p.reset + tile.b * T, tile.t0, tile.rows, p.K, reach);
    convolve(window, ld, tile.rows, p.conv, p.conv_bias, p.K, reach, c);
  } else {
    copy_rows(window, ld, tile.rows, E, c, ld);
  }
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t d = 0; d < E; d += LANES) {
      const Vec v = load(c + r * ld + d);
      store(c + r * ld + d, v * sigmoid(v).value);
    }
  write_rows(c, ld, tile.rows, E, p.c + at * E, E);
  blockwise_rows(c, ld, tile.rows, p.q, E, qkv, QP, false);
  blockwise_rows(c, ld, tile.rows, p.k, E, qkv + E, QP, false);
  blockwise_rows(window, ld, tile.rows, p.v, E, qkv + 2 * E, QP, false);
  write_rows(qkv, QP, tile.rows, E, p.out_q + at * E, E);
  write_rows(qkv + E, QP, tile.rows, E, p.out_k + at * E, E);
  write_rows(qkv + 2 * E, QP, tile.rows, E, p.out_v + at * E, E);
  product_packed(tile.rows, 2 * NH, 3 * E, qkv, QP, 1, p.gate, gates, GP, false);
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
  return rows * (4 * ld + 2 * odd_lines(3 * E) + padded(2 * NH)) +
         kTileRows * (odd_lines(2 * E) + odd_lines(D) + padded(D)) + 2 * K * ld + 2 * rows + 16 * 12;
}

inline void input_backward_task(const MLSTMInput& p, const MLSTMInputGrads& g, int64_t task,
                                const MLSTMInputSums& sums, float* scratch) {
  const int64_t D = p.D, E = p.E, NH = p.NH, T = p.T, back = p.K > 0 ? p.K - 1 : 0;
  const int64_t ld = row_floats(E), UP = odd_lines(2 * E), QP = odd_lines(3 * E), GP = padded(2 * NH);
  const int64_t XP = odd_lines(D), DP = padded(D), EP = padded(E), rows_taken = kTileRows + p.K;
  const Tile tile(task, T);
  const int64_t rows = tile.rows, extended = std::min(rows + back, T - tile.t0);
  const int64_t at = tile.b * T + tile.t0;
  Arena arena{scratch};
  float* window = arena.take((rows_taken + p.K) * ld) + back * ld;
  float *preact = arena.take(rows_taken * ld), *c = arena.take(rows_taken * ld);
  float *dqkv = arena.take(rows_taken * QP), *qkv = arena.take(rows_taken * QP);
  float* dgates = arena.take(rows_taken * GP);
  float* dc = arena.take(rows_taken * ld);
  int64_t* reach = reinterpret_cast<int64_t*>(arena.take(2 * rows_taken));
  float* du = arena.take(kTileRows * UP);
  float *x = arena.take(kTileRows * XP), *dx = arena.take(kTileRows * DP);
  float* da_before = arena.take(p.K * ld);

  // What the forward did, of the tile and the steps after it.
  copy_rows(p.a + at * E, E, extended, E, window, ld);
  if (p.K > 0) {
    const float* before = p.before == nullptr ? nullptr : p.before + tile.b * back * E;
    copy_before(p.a + tile.b * T * E, E, before, E, tile.t0, p.K, window - back * ld, ld);
    compute_reach(p.reset == nullptr ? nullptr : p.reset + tile.b * T, tile.t0, extended, p.K, reach);
    convolve(window, ld, extended, p.conv, p.conv_bias, p.K, reach, preact);
  } else {
    copy_rows(window, ld, extended, E, preact, ld);
  }

  // Gates: the gradients of their pre-activations reach query, key and value.
  for (int64_t r = 0; r < extended; ++r)
    for (int64_t head = 0; head < NH; ++head) {
      const int64_t from = (tile.b * NH + head) * T + tile.t0 + r;
      dgates[r * GP + head] = g.dlog_i[from];
      dgates[r * GP + NH + head] = g.dlog_f[from] / (1.0f + std::exp(p.f_preact[from]));
    }
  copy_part(g.dq + at * E, E, extended, E, dqkv, QP);
  copy_part(g.dk + at * E, E, extended, E, dqkv + E, QP);
  copy_part(g.dv + at * E, E, extended, E, dqkv + 2 * E, QP);
  product(extended, 3 * E, 2 * NH, dgates, GP, 1, p.gate, padded(3 * E), dqkv, QP, true);

  // Query and key to the convolved branch, and through SiLU.
  for (int64_t d = 0; d < E; d += LANES) {
    Vec q[kBlock], k[kBlock];
    load_blocks(p.q, E, d, q), load_blocks(p.k, E, d, k);
    for (int64_t r = 0; r < extended; ++r) {
      const Vec in = load(preact + r * ld + d);
      const Sigmoid s = sigmoid(in);
      store(c + r * ld + d, in * s.value);
      const Vec dout = load(g.dc + (at + r) * E + d, E - d) +
                       blockwise(load(dqkv + r * QP + d), q) +
                       blockwise(load(dqkv + r * QP + E + d), k);
      store(dc + r * ld + d, dout * s.value * (1.0f + in * s.complement));
    }
  }
  // Value straight to the raw branch; into the same rows, what comes through the convolution.
  float* da = preact;  // no longer needed
  blockwise_rows(dqkv + 2 * E, QP, rows, p.v, E, da, ld, false);
  if (p.K > 0) {
    for (int64_t r = 0; r < extended; ++r) fill(dc + r * ld + EP, ld - EP, 0.0f);
    convolve_back(dc, extended, ld, 0, rows, p.conv, p.K, reach, da);
    convolve_sums(dc, window, ld, rows, p.K, reach, sums.conv, sums.conv_bias);
    if (tile.t0 == 0 && g.dbefore != nullptr) {
      fill(da_before, back * ld, 0.0f);
      convolve_back(dc, extended, ld, -back, 0, p.conv, p.K, reach, da_before + back * ld);
      write_rows(da_before, ld, back, E, g.dbefore + tile.b * back * E, E);
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) add_scaled(da + r * ld, dc + r * ld, EP, 1.0f);
  }

  // Weights of the blocks and gates, from the tile's own rows.
  blockwise_sums(c, ld, dqkv, QP, rows, E, sums.q, EP);
  blockwise_sums(c, ld, dqkv + E, QP, rows, E, sums.k, EP);
  blockwise_sums(window, ld, dqkv + 2 * E, QP, rows, E, sums.v, EP);
  copy_part(p.out_q + at * E, E, rows, E, qkv, QP);
  copy_part(p.out_k + at * E, E, rows, E, qkv + E, QP);
  copy_part(p.out_v + at * E, E, rows, E, qkv + 2 * E, QP);
  product(2 * NH, 3 * E, rows, dgates, 1, GP, qkv, QP, sums.gate, padded(3 * E), true);
  add_column_sums(sums.gate_bias, dgates, GP, rows, 2 * NH);

  // The projection up.
  copy_part(da, ld, rows, E, du, UP);
  copy_part(g.dz + at * E, E, rows, E, du + E, UP);
  copy_rows(p.x + at * D, D, rows, D, x, XP);
  product_packed(rows, D, 2 * E, du, UP, 1, p.up, dx, DP, false);
  write_rows(dx, DP, rows, D, g.dx + at * D, D);
  product(2 * E, D, rows, du, 1, UP, x, XP, sums.up, DP, true);
}

// --- The output.

// Calls f(head, row, count, h) for up to LANES rows of a tile and their h of one head.
template <class F>
inline void for_head_rows(const MLSTMOutput& p, const Tile& tile, const F& f) {
  const int64_t DH = p.E / p.NH;
  for (int64_t r = 0; r < tile.rows; r += LANES)
    for (int64_t head = 0; head < p.NH; ++head)
      f(head, r, std::min<int64_t>(LANES, tile.rows - r),
        p.h + ((tile.b * p.NH + head) * p.T + tile.t0 + r) * DH);
}

inline int64_t output_forward_floats(int64_t D, int64_t E) {
  return kTileRows * (padded(E) + padded(D)) + 32;
}

inline void output_forward_task(const MLSTMOutput& p, int64_t task, float* scratch) {
  const int64_t D = p.D, E = p.E, DH = E / p.NH, EP = padded(E), DP = padded(D);
  const Tile tile(task, p.T);
  const int64_t at = tile.b * p.T + tile.t0;
  Arena arena{scratch};
  float *inner = arena.take(kTileRows * EP), *y = arena.take(kTileRows * DP);
  for_head_rows(p, tile, [&](int64_t head, int64_t r0, int64_t count, const float* h) {
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
  const int64_t at = tile.b * p.T + tile.t0;
  Arena arena{scratch};
  float *inner = arena.take(kTileRows * EP), *dinner = arena.take(kTileRows * EP);
  float* dy = arena.take(kTileRows * XP);
  copy_rows(p.dy + at * D, D, tile.rows, D, dy, XP);
  product_packed(tile.rows, E, D, dy, XP, 1, p.down, dinner, EP, false);
  for_head_rows(p, tile, [&](int64_t head, int64_t r0, int64_t count, const float* h) {
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
