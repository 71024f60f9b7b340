// From the residual stream to the gates of an sLSTM, for one instruction set (see each_isa.h): the
// input and forget gates read the convolved input, cell input and output gate the raw one.
//
// A task is some steps of one sample. The backward also looks at the K-1 steps after them, whose
// convolutions read its last rows.

#include "rows.h"

#include "conv_rows.h"
#include "product.h"

constexpr int64_t kTileRows = 96;

inline int64_t row_floats(int64_t D) { return odd_lines(D + LANES); }
inline int64_t half_floats(int64_t DH, bool backward) {
  return backward ? packed_size(2 * DH, DH) : packed_size(DH, 2 * DH);
}
// Two gates of a head: `weight` (2·DH out, DH in).
inline void pack_half(const float* weight, int64_t DH, bool backward, float* packed) {
  const int64_t K = backward ? 2 * DH : DH, N = backward ? DH : 2 * DH;
  for (int64_t p = 0; p < num_panels(N); ++p)
    pack_panel(weight, backward ? DH : 1, backward ? 1 : DH, K, N, p, packed);
}

inline int64_t tiles(int64_t T) { return (T + kTileRows - 1) / kTileRows; }

inline void silu_rows(const float* x, float* y, int64_t floats) {
  for (int64_t d = 0; d < floats; d += LANES) {
    const Vec v = load(x + d);
    store(y + d, v * sigmoid(v).value);
  }
}

// The tile's inputs: the window of its rows, what the convolution makes of it, and SiLU of that.
struct Inputs {
  float *window, *preact, *c;
  int64_t* reach;
  void take(Arena& arena, int64_t rows, int64_t K, int64_t ld) {
    window = arena.take((rows + K) * ld) + (K > 0 ? K - 1 : 0) * ld;
    preact = arena.take(rows * ld), c = arena.take(rows * ld);
    reach = reinterpret_cast<int64_t*>(arena.take(2 * rows));
  }
  void compute(const SLSTMInput& a, int64_t b, int64_t t0, int64_t rows, int64_t ld) {
    const int64_t D = a.NH * a.DH;
    const float* x = a.x + b * a.T * D;
    copy_rows(x + t0 * D, D, rows, D, window, ld);
    if (a.K == 0) return;
    copy_before(x, D, a.before == nullptr ? nullptr : a.before + b * (a.K - 1) * D, D, t0, a.K,
                window - (a.K - 1) * ld, ld);
    compute_reach(a.reset == nullptr ? nullptr : a.reset + b * a.T, t0, rows, a.K, reach);
    convolve(window, ld, rows, a.conv, a.conv_bias, a.K, reach, preact);
    silu_rows(preact, c, rows * ld);
  }
};
inline int64_t inputs_floats(int64_t rows, int64_t K, int64_t ld) {
  return (rows + K) * ld + 2 * rows * ld + 2 * rows + 64;
}

inline int64_t forward_floats(int64_t NH, int64_t DH, int64_t K) {
  return inputs_floats(kTileRows, K, row_floats(NH * DH)) + kTileRows * padded(2 * DH);
}

inline void forward_task(const SLSTMInput& a, int64_t task, float* scratch) {
  const int64_t DH = a.DH, ld = row_floats(a.NH * DH), OP = padded(2 * DH), G = 4 * a.NH * DH;
  const int64_t b = task / tiles(a.T), tile = task % tiles(a.T);
  const int64_t t0 = tile * a.T / tiles(a.T), rows = (tile + 1) * a.T / tiles(a.T) - t0;
  Arena arena{scratch};
  Inputs in;
  in.take(arena, kTileRows, a.K, ld);
  float* out = arena.take(kTileRows * OP);
  in.compute(a, b, t0, rows, ld);
  for (int64_t head = 0; head < a.NH; ++head)
    for (int64_t half = 0; half < 2; ++half) {
      const float* from = (half == 0 && a.K > 0 ? in.c : in.window) + head * DH;
      product_packed(rows, 2 * DH, DH, from, ld, 1,
                     a.weight + (head * 2 + half) * half_floats(DH, false), out, OP, false);
      const float* bias = a.bias + (head * 4 + half * 2) * DH;
      float* gates = a.gates + (b * a.T + t0) * G + (head * 4 + half * 2) * DH;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < 2 * DH; d += LANES) {
          const int64_t count = 2 * DH - d;
          store(gates + r * G + d, load(out + r * OP + d) + load(bias + d, count), count);
        }
    }
}

inline int64_t backward_floats(int64_t NH, int64_t DH, int64_t K) {
  const int64_t rows = kTileRows + K, ld = row_floats(NH * DH);
  return inputs_floats(rows, K, ld) + 2 * rows * ld + K * ld + rows * odd_lines(4 * DH) + 64;
}

inline void backward_task(const SLSTMInput& a, int64_t task, const SLSTMInputSums& sums,
                          float* scratch) {
  const int64_t DH = a.DH, D = a.NH * DH, ld = row_floats(D), GP = odd_lines(4 * DH);
  const int64_t G = 4 * D, WP = padded(DH), back = a.K > 0 ? a.K - 1 : 0;
  const int64_t b = task / tiles(a.T), tile = task % tiles(a.T);
  const int64_t t0 = tile * a.T / tiles(a.T), rows = (tile + 1) * a.T / tiles(a.T) - t0;
  const int64_t extended = std::min(rows + back, a.T - t0);
  Arena arena{scratch};
  Inputs in;
  in.take(arena, kTileRows + a.K, a.K, ld);
  float* dc = arena.take((kTileRows + a.K) * ld);
  float* dx = arena.take((kTileRows + a.K) * ld) + back * ld;
  float* dgates = arena.take((kTileRows + a.K) * GP);
  in.compute(a, b, t0, extended, ld);
  fill(dx - back * ld, back * ld, 0.0f);
  for (int64_t head = 0; head < a.NH; ++head) {
    const float *i_f = a.weight + head * 2 * half_floats(DH, true);
    const float* z_o = i_f + half_floats(DH, true);
    copy_rows(a.dgates + (b * a.T + t0) * G + head * 4 * DH, G, extended, 4 * DH, dgates, GP);
    product_packed(rows, DH, 2 * DH, dgates + 2 * DH, GP, 1, z_o, dx + head * DH, ld, false);
    if (a.K > 0)
      product_packed(extended, DH, 2 * DH, dgates, GP, 1, i_f, dc + head * DH, ld, false);
    else
      product_packed(rows, DH, 2 * DH, dgates, GP, 1, i_f, dx + head * DH, ld, true);
    for (int64_t half = 0; half < 2; ++half)
      product(2 * DH, DH, rows, dgates + half * 2 * DH, 1, GP,
              (half == 0 && a.K > 0 ? in.c : in.window) + head * DH, ld,
              sums.weight + (head * 4 + half * 2) * DH * WP, WP, true);
    add_column_sums(sums.bias + head * padded(4 * DH), dgates, GP, rows, 4 * DH);
  }
  if (a.K > 0) {
    for (int64_t r = 0; r < extended; ++r)
      for (int64_t d = 0; d < D; d += LANES) {
        const Vec p = load(in.preact + r * ld + d);
        const Sigmoid s = sigmoid(p);
        float* to = dc + r * ld + d;
        store(to, first(load(to) * s.value * (1.0f + p * s.complement), D - d));
      }
    for (int64_t r = 0; r < extended; ++r) fill(dc + r * ld + padded(D), ld - padded(D), 0.0f);
    convolve_back(dc, extended, ld, t0 == 0 ? -back : 0, rows, a.conv, a.K, in.reach, dx);
    convolve_sums(dc, in.window, ld, rows, a.K, in.reach, sums.conv, sums.conv_bias);
  }
  write_rows(dx, ld, rows, D, a.dx + (b * a.T + t0) * D, D);
  if (t0 == 0 && a.dbefore != nullptr)
    write_rows(dx - back * ld, ld, back, D, a.dbefore + b * back * D, D);
}
