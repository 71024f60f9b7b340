// The sLSTM scan of one head and a tile of samples, for one instruction set (see each_isa.h).
//
// The recurrence is block-diagonal over heads, and samples are independent, so a task takes one
// head and a few samples through all steps while its weights stay in cache. Registers hold the
// pre-activations of all four gates of LANES units for the samples of the tile; the gates are
// computed there as soon as the product is done.
//
// The backward writes the cell as y_t = keep · y_{t-1} + write · z_t with y = c/n, keep = f
// n_{t-1}/n_t and write = i/n_t, which sum to 1. It carries the gradients of y and of log n.

#include "rows.h"

#include "product.h"
#include "slstm_cell.h"

// Samples per tile: 4 gates per sample, 4 weights and a broadcast fill the registers.
constexpr int kTile = REGISTERS >= 32 ? 6 : (LANES == 8 ? 3 : 2);
// Partial sums per gate. With few samples there would be too few independent sums to hide the
// latency of an addition.
constexpr int kSums(int BS) { return REGISTERS < 32 ? 1 : BS == 1 ? 4 : BS <= 3 ? 2 : 1; }
// Steps whose gradients are collected and multiplied with the hidden states in one product: as many
// as fit in a quarter of a megabyte.
inline int64_t num_steps(int64_t DH) {
  return std::clamp<int64_t>((1 << 16) / (kTile * 5 * padded(DH)), 1, 16);
}

inline int64_t lanes() { return LANES; }

// The input weights of two gates of a head (2·DH out, DH in), packed for the forward or the
// backward.
inline int64_t half_floats(int64_t DH, bool backward) {
  return backward ? packed_size(2 * DH, DH) : packed_size(DH, 2 * DH);
}
inline void pack_half(const float* weight, int64_t DH, bool backward, float* packed) {
  const int64_t K = backward ? 2 * DH : DH, N = backward ? DH : 2 * DH;
  for (int64_t p = 0; p < num_panels(N); ++p)
    pack_panel(weight, backward ? DH : 1, backward ? 1 : DH, K, N, p, packed);
}
// Length of a step's row of gates, with room for the padding of its second half.
inline int64_t gate_floats(int64_t DH) { return odd_lines(4 * DH + LANES); }

inline int64_t packed_floats(int64_t DH) { return 4 * DH * padded(DH); }
// R (4, DH, DH) as a product over `in` reads it: (out block, in, gate, LANES), zero-padded.
inline void pack_forward(const float* R, int64_t DH, float* packed) {
  const int64_t DP = padded(DH);
  for (int64_t gate = 0; gate < 4; ++gate)
    for (int64_t out = 0; out < DP; ++out)
      for (int64_t in = 0; in < DH; ++in)
        packed[((out / LANES * DH + in) * 4 + gate) * LANES + out % LANES] =
            out < DH ? R[(gate * DH + out) * DH + in] : 0.0f;
}
// R as a product over (gate, out) reads it: (gate, out, in), `in` zero-padded.
inline void pack_backward(const float* R, int64_t DH, float* packed) {
  copy_rows(R, DH, 4 * DH, DH, packed, padded(DH));
}

template <int BS>
void forward_tile(const SLSTMForward& a, int64_t head, int64_t b0, const float* packed,
                  float* scratch) {
  const int64_t DH = a.DH, DP = padded(DH), blocks = DP / LANES;
  constexpr int kParts = kSums(BS);
  // The tile's state, (BS, DP) each: h twice, since all units read the old h; then c, n, m.
  Arena arena{scratch};
  float *h = arena.take(BS * DP), *h_next = arena.take(BS * DP);
  float *c = arena.take(BS * DP), *n = arena.take(BS * DP), *m = arena.take(BS * DP);
  float* parts[4] = {h, c, n, m};
  // The gates' pre-activations are given, or projected here, some steps at a time.
  const bool projects = a.x == nullptr;
  const int64_t S = num_steps(DH), GP = gate_floats(DH), D = a.NH * DH;
  float* gates = arena.take(BS * S * GP);
  for (int s = 0; s < 4; ++s)
    copy_rows(a.state + ((s * a.B + b0) * a.NH + head) * DH, a.NH * DH, BS, DH, parts[s], DP);

  for (int64_t t = 0; t < a.T; ++t) {
    if (a.reset != nullptr)
      for (int b = 0; b < BS; ++b)
        if (a.reset[(b0 + b) * a.T + t])
          for (float* part : parts) fill(part + b * DP, DP, 0.0f);

    if (projects && t % S == 0)
      for (int b = 0; b < BS; ++b)
        for (int half = 0; half < 2; ++half)
          product_packed(std::min(S, a.T - t), 2 * DH, DH,
                         (half == 0 ? a.convolved : a.raw) + ((b0 + b) * a.T + t) * D + head * DH, D,
                         1, a.input + (head * 2 + half) * half_floats(DH, false),
                         gates + b * S * GP + half * 2 * DH, GP, false);
    for (int b = 0; b < BS && t + 1 < a.T; ++b) {
      if (projects && t + S < a.T) {
        const int64_t later = ((b0 + b) * a.T + t + S) * D + head * DH;
        prefetch<false>(a.convolved + later, DH);
        prefetch<false>(a.raw + later, DH);
      } else if (!projects) {
        const float* x = a.x + (b0 + b) * a.x_stride[0] + (t + 1) * a.x_stride[1] + head * a.x_stride[2];
        for (int g = 0; g < 4; ++g) prefetch<false>(x + g * a.x_stride[3], DH);
      }
      prefetch<true>(a.h + (((b0 + b) * a.T + t + 1) * a.NH + head) * DH, DH);
      if (a.saved != nullptr)
        prefetch<true>(a.saved + ((head * a.B + b0 + b) * a.T + t + 1) * kSaved * DH, kSaved * DH);
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t d = block * LANES, count = DH - d;
      Vec gate[kParts][BS][4];
      for (int b = 0; b < BS; ++b) {
        const float* x = projects ? gates + (b * S + t % S) * GP + d
                                  : a.x + (b0 + b) * a.x_stride[0] + t * a.x_stride[1] +
                                        head * a.x_stride[2] + d;
        const int64_t to_next = projects ? DH : a.x_stride[3];
        for (int g = 0; g < 4; ++g) {
          gate[0][b][g] = load(x + g * to_next, count);
          if (a.bias != nullptr) gate[0][b][g] += load(a.bias + (head * 4 + g) * DH + d, count);
          for (int p = 1; p < kParts; ++p) gate[p][b][g] = Vec{};
        }
      }
      const float* w = packed + block * DH * 4 * LANES;
      int64_t in = 0;
      for (; in + kParts <= DH; in += kParts)
        for (int p = 0; p < kParts; ++p, w += 4 * LANES)
          for (int b = 0; b < BS; ++b) {
            const Vec hb = splat(h[b * DP + in + p]);
            for (int g = 0; g < 4; ++g) gate[p][b][g] += hb * load(w + g * LANES);
          }
      for (; in < DH; ++in, w += 4 * LANES)
        for (int b = 0; b < BS; ++b) {
          const Vec hb = splat(h[b * DP + in]);
          for (int g = 0; g < 4; ++g) gate[0][b][g] += hb * load(w + g * LANES);
        }
      for (int p = 1; p < kParts; ++p)
        for (int b = 0; b < BS; ++b)
          for (int g = 0; g < 4; ++g) gate[0][b][g] += gate[p][b][g];

      for (int b = 0; b < BS; ++b) {
        const int64_t at = b * DP + d;
        const Cell s = step(gate[0][b], load(c + at), load(n + at), load(m + at), a.exp_gate);
        store(h_next + at, s.h);
        store(c + at, s.c);
        store(n + at, s.n);
        store(m + at, s.m);
        store(a.h + (((b0 + b) * a.T + t) * a.NH + head) * DH + d, s.h, count);
        if (a.saved != nullptr) {
          float* saved = a.saved + ((head * a.B + b0 + b) * a.T + t) * kSaved * DH + d;
          const Vec rows[kSaved] = {s.share, s.z, s.o, s.slope, s.y};
          for (int r = 0; r < kSaved; ++r) store(saved + r * DH, rows[r], count);
        }
      }
    }
    std::swap(h, h_next);
    parts[0] = h;
  }
  for (int s = 0; s < 4; ++s)
    write_rows(parts[s], DP, BS, DH, a.state + ((s * a.B + b0) * a.NH + head) * DH, a.NH * DH);
}

// Vectors per panel of R in the backward's product: as many as a tile's sums leave registers for.
constexpr int64_t kWidest(int BS) {
  return REGISTERS < 32 ? (BS <= 2 ? 4 : 2) : BS == 1 ? 8 : BS <= 5 ? 4 : 3;
}

// dh (BS, DP) = dgates (BS, rows) · R (rows, DP), a few vectors of dh at a time.
template <int BS, int NV>
void backward_product(const float* dgates, int64_t rows, int64_t stride, const float* packed,
                      int64_t DP, float* dh) {
  constexpr int kParts = REGISTERS < 32 || BS * NV > 8 ? 1 : BS * NV <= 4 ? 4 : 2;
  Vec sum[kParts][BS][NV];
  for (int p = 0; p < kParts; ++p)
    for (int b = 0; b < BS; ++b)
      for (int v = 0; v < NV; ++v) sum[p][b][v] = Vec{};
  for (int64_t row = 0; row < rows; row += kParts)  // 4·DH rows
    for (int p = 0; p < kParts; ++p) {
      Vec w[NV];
      for (int v = 0; v < NV; ++v) w[v] = load(packed + (row + p) * DP + v * LANES);
      for (int b = 0; b < BS; ++b) {
        const Vec g = splat(dgates[b * stride + row + p]);
        for (int v = 0; v < NV; ++v) sum[p][b][v] += g * w[v];
      }
    }
  for (int b = 0; b < BS; ++b)
    for (int v = 0; v < NV; ++v) {
      Vec total = sum[0][b][v];
      for (int p = 1; p < kParts; ++p) total += sum[p][b][v];
      store(dh + b * DP + v * LANES, total);
    }
}

template <int BS>
void backward_tile(const SLSTMBackward& a, int64_t head, int64_t b0, const float* packed,
                   const SLSTMSums& sums, float* scratch) {
  const int64_t DH = a.DH, DP = padded(DH), G = odd_lines(4 * DH), NH = a.NH;
  const int64_t S = num_steps(DH), vectors = DP / LANES;
  const int64_t panels = (vectors + kWidest(BS) - 1) / kWidest(BS);
  Arena arena{scratch};
  float *dh = arena.take(BS * DP), *dy = arena.take(BS * DP);
  float *dlog_n = arena.take(BS * DP), *dm = arena.take(BS * DP);
  float* before = arena.take(BS * DP);          // y of the initial state, 0 where it is empty
  float* h_prev = arena.take(S * BS * DP);      // (S, BS, DP)
  float* dgates = arena.take(S * BS * G);       // (S, BS, 4·DH), rows of G
  float* inputs = arena.take(2 * S * BS * DP);  // (2, S, BS, DP): what was projected
  float* dinputs = arena.take(S * BS * DP);     // (S, BS, DP)
  const bool projects = a.dx == nullptr;
  const auto initial = [&](int part, int b) {
    return a.before + ((part * a.B + b0 + b) * NH + head) * DH;
  };
  for (int b = 0; b < BS; ++b)
    for (int64_t d = 0; d < DP; d += LANES) {
      const int64_t count = DH - d, at = b * DP + d;
      Vec part[4], final[4];
      for (int s = 0; s < 4; ++s) {
        const int64_t from = ((s * a.B + b0 + b) * NH + head) * DH + d;
        part[s] = load(a.dstate + from, count);
        final[s] = load(a.after + from, count);
      }
      store(dh + at, part[0]);
      store(dy + at, part[1] * final[2]);  // c is y n; a change of log n at a fixed y changes both
      store(dlog_n + at, part[1] * final[1] + part[2] * final[2]);
      store(dm + at, part[3]);
      const Vec c = load(initial(1, b) + d, count), n = load(initial(2, b) + d, count);
      store(before + at, select(n == 0.0f, Vec{}, c / select(n == 0.0f, splat(1.0f), n)));
    }

  for (int64_t t = a.T - 1; t >= 0; --t) {
    const int64_t slot = t % S;
    float* dg = dgates + slot * BS * G;
    for (int b = 0; b < BS; ++b) {
      const int64_t row = ((b0 + b) * a.T + t) * NH + head;
      const float* saved = a.saved + ((head * a.B + b0 + b) * a.T + t) * kSaved * DH;
      if (t > 1) {
        prefetch<false>(saved - 2 * kSaved * DH, kSaved * DH);
        prefetch<false>(a.dh + (row - NH) * DH, DH);
        prefetch<false>(a.h + (row - 2 * NH) * DH, DH);
        if (projects) {
          prefetch<false>(a.convolved + (row - NH) * DH, DH);
          prefetch<false>(a.raw + (row - NH) * DH, DH);
          if (a.draw != nullptr) {
            prefetch<true>(a.dconvolved + row * DH, DH);
            prefetch<true>(a.draw + row * DH, DH);
          }
        } else {
          prefetch<true>(a.dx + (row - NH) * 4 * DH, 4 * DH);
        }
      }
      const float* y_prev = t == 0 ? before + b * DP : saved - DH;  // the last row of a step is y
      for (int64_t d = 0; d < DH; d += LANES) {
        const int64_t count = DH - d, at = b * DP + d;
        const Vec share = load(saved + d, count), z = load(saved + DH + d, count);
        const Vec o = load(saved + 2 * DH + d, count), signed_slope = load(saved + 3 * DH + d, count);
        const Vec y = load(saved + 4 * DH + d, count);
        const IVec wrote = reinterpret_cast<IVec>(share) < 0;
        const Vec keep = select(wrote, 1.0f + share, share);
        const Vec write = select(wrote, -share, 1.0f - share);
        const Vec dh_t = load(dh + at) + load(a.dh + row * DH + d, count);
        const Vec dy_t = load(dy + at) + dh_t * o, dlog_n_t = load(dlog_n + at);
        const Vec dkeep = dy_t * (load(y_prev + d, count) - z) * (keep * write);
        const Vec dlog_f = dlog_n_t * keep + dkeep;
        const Vec dm_t = load(dm + at);
        const Vec dm_i = select(reinterpret_cast<IVec>(signed_slope) < 0, dm_t, Vec{});
        const Vec grads[4] = {
            dlog_n_t * write - dkeep + dm_i,
            (dlog_f + (dm_t - dm_i)) * abs(signed_slope),
            dy_t * write * (1.0f - z * z),
            dh_t * o * y * (1.0f - o),
        };
        for (int g = 0; g < 4; ++g) {
          store(dg + b * G + g * DH + d, grads[g], count);
          if (!projects) store(a.dx + (row * 4 + g) * DH + d, grads[g], count);
        }
        store(dy + at, dy_t * keep);
        store(dlog_n + at, dlog_f);
        store(dm + at, dm_t - dm_i);
      }
      const bool emptied = a.reset != nullptr && a.reset[(b0 + b) * a.T + t];
      const float* h = t == 0 ? initial(0, b) : a.h + (row - NH) * DH;
      float* to = h_prev + (slot * BS + b) * DP;
      if (emptied) fill(to, DP, 0.0f);
      else copy_rows(h, DH, 1, DH, to, DP);
      for (int half = 0; projects && half < 2; ++half)
        copy_rows((half == 0 ? a.convolved : a.raw) + row * DH, DH, 1, DH,
                  inputs + ((half * S + slot) * BS + b) * DP, DP);
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = p * vectors / panels, width = (p + 1) * vectors / panels - first;
      const float* R = packed + first * LANES;
      float* to = dh + first * LANES;
      switch (width) {
        case 1: backward_product<BS, 1>(dg, 4 * DH, G, R, DP, to); break;
        case 2: backward_product<BS, 2>(dg, 4 * DH, G, R, DP, to); break;
        case 3: if constexpr (kWidest(BS) >= 3) backward_product<BS, 3>(dg, 4 * DH, G, R, DP, to); break;
        case 4: if constexpr (kWidest(BS) >= 4) backward_product<BS, 4>(dg, 4 * DH, G, R, DP, to); break;
        case 5: if constexpr (kWidest(BS) >= 5) backward_product<BS, 5>(dg, 4 * DH, G, R, DP, to); break;
        case 6: if constexpr (kWidest(BS) >= 6) backward_product<BS, 6>(dg, 4 * DH, G, R, DP, to); break;
        case 7: if constexpr (kWidest(BS) >= 7) backward_product<BS, 7>(dg, 4 * DH, G, R, DP, to); break;
        case 8: if constexpr (kWidest(BS) >= 8) backward_product<BS, 8>(dg, 4 * DH, G, R, DP, to); break;
      }
    }
    if (a.reset != nullptr)
      for (int b = 0; b < BS; ++b)
        if (a.reset[(b0 + b) * a.T + t]) fill(dh + b * DP, DP, 0.0f);
    if (slot == 0) {
      const int64_t rows = std::min(S, a.T - t) * BS;
      product(4 * DH, DH, rows, dgates, 1, G, h_prev, DP, sums.R + head * packed_floats(DH), DP, true);
      if (sums.bias != nullptr)
        add_column_sums(sums.bias + head * padded(4 * DH), dgates, G, rows, 4 * DH);
      for (int half = 0; projects && half < 2; ++half) {
        const float* dhalf = dgates + half * 2 * DH;
        product(2 * DH, DH, rows, dhalf, 1, G, inputs + half * S * BS * DP, DP,
                sums.input + head * packed_floats(DH) + half * 2 * DH * DP, DP, true);
        if (a.draw == nullptr) continue;
        product_packed(rows, DH, 2 * DH, dhalf, G, 1,
                       a.input + (head * 2 + half) * half_floats(DH, true), dinputs, DP, false);
        float* to = half == 0 ? a.dconvolved : a.draw;
        for (int64_t s = 0; s < rows / BS; ++s)
          for (int b = 0; b < BS; ++b)
            write_rows(dinputs + (s * BS + b) * DP, DP, 1, DH,
                       to + (((b0 + b) * a.T + t + s) * NH + head) * DH, 0);
      }
    }
  }
  // From the gradients of y and log n to those of c and n; an empty memory passes none on.
  for (int b = 0; b < BS; ++b)
    for (int64_t d = 0; d < DH; d += LANES) {
      const int64_t count = DH - d, at = b * DP + d;
      const Vec n = load(initial(2, b) + d, count);
      const IVec empty = n == 0.0f;
      const Vec inverse = select(empty, Vec{}, 1.0f / select(empty, splat(1.0f), n));
      const Vec dy_0 = load(dy + at);
      const Vec parts[4] = {load(dh + at), dy_0 * inverse,
                            (load(dlog_n + at) - dy_0 * load(before + at)) * inverse, load(dm + at)};
      for (int s = 0; s < 4; ++s)
        store(a.dstate + ((s * a.B + b0 + b) * NH + head) * DH + d, parts[s], count);
    }
}

// Calls function<BS> with the number of samples in a tile as BS.
#define OPENXLSTM_TILE(function, size, ...)            \
  switch (size) {                                      \
    case 1: function<1>(__VA_ARGS__); break;           \
    case 2: function<2>(__VA_ARGS__); break;           \
    case 3: if constexpr (kTile >= 3) function<3>(__VA_ARGS__); break; \
    case 4: if constexpr (kTile >= 4) function<4>(__VA_ARGS__); break; \
    case 5: if constexpr (kTile >= 5) function<5>(__VA_ARGS__); break; \
    case 6: if constexpr (kTile >= 6) function<6>(__VA_ARGS__); break; \
  }

// Tiles of about equal size, so that threads finish together.
inline int64_t num_tiles(int64_t B) { return (B + kTile - 1) / kTile; }
inline int64_t tile_start(int64_t B, int64_t tile) { return tile * B / num_tiles(B); }

inline int64_t num_tasks(int64_t B, int64_t NH) { return num_tiles(B) * NH; }
inline int64_t forward_floats(int64_t DH) {
  return kTile * (5 * padded(DH) + num_steps(DH) * gate_floats(DH)) + 16 * 6;
}
inline int64_t backward_floats(int64_t DH) {
  return kTile * (5 * padded(DH) + num_steps(DH) * (4 * padded(DH) + odd_lines(4 * DH))) + 16 * 9;
}

// One task: a head and a tile of samples, through all steps.
inline void forward_task(const SLSTMForward& a, int64_t task, const float* packed, float* scratch) {
  const int64_t head = task / num_tiles(a.B), tile = task % num_tiles(a.B);
  const int64_t b0 = tile_start(a.B, tile), size = tile_start(a.B, tile + 1) - b0;
  OPENXLSTM_TILE(forward_tile, size, a, head, b0, packed + head * packed_floats(a.DH), scratch);
}
inline void backward_task(const SLSTMBackward& a, int64_t task, const float* packed,
                          const SLSTMSums& sums, float* scratch) {
  const int64_t head = task / num_tiles(a.B), tile = task % num_tiles(a.B);
  const int64_t b0 = tile_start(a.B, tile), size = tile_start(a.B, tile + 1) - b0;
  OPENXLSTM_TILE(backward_tile, size, a, head, b0, packed + head * packed_floats(a.DH), sums, scratch);
}
#undef OPENXLSTM_TILE
