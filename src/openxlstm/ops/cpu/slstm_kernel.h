// The sLSTM scan of one head and a tile of samples, for one instruction set (see each_isa.h).
//
// The recurrence is block-diagonal over the heads and samples don't meet, so a task takes one head
// and a few samples through all steps, its weights staying in cache. Registers hold the
// pre-activations of all four gates of LANES units for the samples of the tile; the gates are
// computed there as soon as the product is done.

// Samples in a tile: 4 gates of each, the 4 weights, and a broadcast fill the registers.
constexpr int kTile = REGISTERS >= 32 ? 6 : (LANES == 8 ? 3 : 2);

inline int64_t lanes() { return LANES; }

// R (NH, 4, DH, DH) as a product over `in` reads it: (NH, in, out block, gate, LANES), zero-padded.
inline void pack_forward(const float* R, int64_t DH, float* packed) {
  const int64_t DP = padded(DH);
  for (int64_t in = 0; in < DH; ++in)
    for (int64_t out = 0; out < DP; ++out)
      for (int64_t gate = 0; gate < 4; ++gate)
        packed[((in * (DP / LANES) + out / LANES) * 4 + gate) * LANES + out % LANES] =
            out < DH ? R[(gate * DH + out) * DH + in] : 0.0f;
}

// R as a product over (gate, out) reads it: (gate, out, in), `in` zero-padded.
inline void pack_backward(const float* R, int64_t DH, float* packed) {
  const int64_t DP = padded(DH);
  for (int64_t row = 0; row < 4 * DH; ++row)
    for (int64_t in = 0; in < DP; ++in)
      packed[row * DP + in] = in < DH ? R[row * DH + in] : 0.0f;
}

template <int BS>
void forward_tile(const SLSTMForward& a, int64_t head, int64_t b0, const float* packed,
                  float* scratch) {
  const int64_t DH = a.DH, DP = padded(DH), blocks = DP / LANES;
  // State of the tile: h twice, since all units read the old one; then c, n, m. (BS, DP) each.
  float* h = scratch;
  float* h_next = h + BS * DP;
  float* c = h_next + BS * DP;
  float* n = c + BS * DP;
  float* m = n + BS * DP;
  float* parts[4] = {h, c, n, m};
  for (int s = 0; s < 4; ++s)
    for (int b = 0; b < BS; ++b)
      for (int64_t d = 0; d < DP; ++d)
        parts[s][b * DP + d] =
            d < DH ? a.state[((s * a.B + b0 + b) * a.NH + head) * DH + d] : 0.0f;

  for (int64_t t = 0; t < a.T; ++t) {
    if (a.reset != nullptr)
      for (int b = 0; b < BS; ++b)
        if (a.reset[(b0 + b) * a.T + t])
          for (float* part : parts)
            for (int64_t d = 0; d < DP; ++d) part[b * DP + d] = 0.0f;

    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t d = block * LANES, count = DH - d;
      Vec gate[BS][4];
      for (int b = 0; b < BS; ++b) {
        const float* x = a.x + (b0 + b) * a.x_stride[0] + t * a.x_stride[1] +
                         head * a.x_stride[2] + d;
        for (int g = 0; g < 4; ++g) gate[b][g] = load(x + g * a.x_stride[3], count);
      }
      const float* w = packed + block * 4 * LANES;
      for (int64_t in = 0; in < DH; ++in, w += blocks * 4 * LANES) {
        const Vec w0 = load(w), w1 = load(w + LANES), w2 = load(w + 2 * LANES),
                  w3 = load(w + 3 * LANES);
        for (int b = 0; b < BS; ++b) {
          const Vec hb = splat(h[b * DP + in]);
          gate[b][0] += hb * w0;
          gate[b][1] += hb * w1;
          gate[b][2] += hb * w2;
          gate[b][3] += hb * w3;
        }
      }
      for (int b = 0; b < BS; ++b) {
        const int64_t at = b * DP + d;
        const Vec log_i = gate[b][0];
        Vec log_f = gate[b][1], slope = splat(1.0f);
        if (!a.exp_gate) {
          const Sigmoid s = sigmoid(log_f);
          log_f = s.log;
          slope = s.complement;
        }
        const Vec z = tanh(gate[b][2]), o = sigmoid(gate[b][3]).value;
        const Vec n_prev = load(n + at), carried = log_f + load(m + at);
        const IVec empty = n_prev == 0.0f;
        const Vec m_new = select(empty, log_i, max(carried, log_i));
        const Vec i = exp(log_i - m_new);
        const Vec f = select(empty, Vec{}, exp(carried - m_new));
        const Vec c_new = f * load(c + at) + i * z, n_new = f * n_prev + i;
        const Vec h_new = o * (c_new / n_new);
        store(h_next + at, h_new);
        store(c + at, c_new);
        store(n + at, n_new);
        store(m + at, m_new);
        const int64_t row = ((b0 + b) * a.T + t) * a.NH + head;
        store(a.h + row * DH + d, h_new, count);
        if (a.saved != nullptr) {
          float* saved = a.saved + row * 7 * DH + d;
          const Vec rows[7] = {i, f, z, o, slope, c_new, n_new};
          for (int r = 0; r < 7; ++r) store(saved + r * DH, rows[r], count);
        }
      }
    }
    std::swap(h, h_next);
    parts[0] = h;
  }
  for (int s = 0; s < 4; ++s)
    for (int b = 0; b < BS; ++b)
      for (int64_t d = 0; d < DH; ++d)
        a.state[((s * a.B + b0 + b) * a.NH + head) * DH + d] = parts[s][b * DP + d];
}

// dh (BS, DP) = dgates (BS, 4·DH) · R (4·DH, DP), a few vectors of dh at a time.
template <int BS, int NV>
void backward_product(const float* dgates, int64_t rows, int64_t stride, const float* packed,
                      int64_t DP, int64_t d, float* dh) {
  Vec sum[BS][NV];
  for (int b = 0; b < BS; ++b)
    for (int v = 0; v < NV; ++v) sum[b][v] = Vec{};
  for (int64_t row = 0; row < rows; ++row) {
    Vec w[NV];
    for (int v = 0; v < NV; ++v) w[v] = load(packed + row * DP + d + v * LANES);
    for (int b = 0; b < BS; ++b) {
      const Vec g = splat(dgates[b * stride + row]);
      for (int v = 0; v < NV; ++v) sum[b][v] += g * w[v];
    }
  }
  for (int b = 0; b < BS; ++b)
    for (int v = 0; v < NV; ++v) store(dh + b * DP + d + v * LANES, sum[b][v]);
}

template <int BS>
void backward_tile(const SLSTMBackward& a, int64_t head, int64_t b0, const float* packed,
                   float* scratch) {
  const int64_t DH = a.DH, DP = padded(DH), stride = 4 * DH;
  float* dh = scratch;
  float* dc = dh + BS * DP;
  float* dn = dc + BS * DP;
  float* dm = dn + BS * DP;
  float* dgates = dm + BS * DP;  // (BS, 4, DH)
  float* parts[4] = {dh, dc, dn, dm};
  for (int s = 0; s < 4; ++s)
    for (int b = 0; b < BS; ++b)
      for (int64_t d = 0; d < DP; ++d)
        parts[s][b * DP + d] =
            d < DH ? a.dstate[((s * a.B + b0 + b) * a.NH + head) * DH + d] : 0.0f;

  for (int64_t t = a.T - 1; t >= 0; --t) {
    for (int b = 0; b < BS; ++b) {
      const int64_t row = ((b0 + b) * a.T + t) * a.NH + head;
      const bool first = t == 0;
      const bool emptied = a.reset != nullptr && a.reset[(b0 + b) * a.T + t];
      const float* before = a.saved + (row - a.NH) * 7 * DH;  // the step before, of this head
      for (int64_t d = 0; d < DH; d += LANES) {
        const int64_t count = DH - d, at = b * DP + d;
        const float* s = a.saved + row * 7 * DH + d;
        const Vec i = load(s, count), f = load(s + DH, count), z = load(s + 2 * DH, count),
                  o = load(s + 3 * DH, count), slope = load(s + 4 * DH, count),
                  n = load(s + 6 * DH, count), h = load(a.h + row * DH + d, count);
        Vec c_prev{}, n_prev{};
        if (!emptied) {
          const float* p = first ? a.state + ((a.B + b0 + b) * a.NH + head) * DH + d
                                 : before + 5 * DH + d;
          const int64_t to_n = first ? a.B * a.NH * DH : DH;
          c_prev = load(p, count);
          n_prev = load(p + to_n, count);
        }
        const Vec inverse = count >= LANES ? 1.0f / n : 1.0f / select(n == 0.0f, splat(1.0f), n);
        Vec dh_t = load(dh + at);
        dh_t += load(a.dh + row * DH + d, count);
        const Vec dc_t = load(dc + at) + dh_t * o * inverse;
        const Vec dn_t = load(dn + at) - dh_t * h * inverse;
        const Vec dm_t = load(dm + at), dm_i = select(i == 1.0f, dm_t, Vec{}), dm_f = dm_t - dm_i;
        const Vec grads[4] = {
            (dc_t * z + dn_t) * i + dm_i,
            ((dc_t * c_prev + dn_t * n_prev) * f + dm_f) * slope,
            dc_t * i * (1.0f - z * z),
            dh_t * h * (1.0f - o),
        };
        for (int g = 0; g < 4; ++g) {
          store(dgates + b * stride + g * DH + d, grads[g], count);
          store(a.dx + (row * 4 + g) * DH + d, grads[g], count);
        }
        store(dc + at, dc_t * f);
        store(dn + at, dn_t * f);
        store(dm + at, dm_f);
      }
    }
    int64_t d = 0;
    if constexpr (BS * 4 + 5 <= REGISTERS)
      for (; d + 4 * LANES <= DP; d += 4 * LANES)
        backward_product<BS, 4>(dgates, stride, stride, packed, DP, d, dh);
    if constexpr (BS * 2 + 3 <= REGISTERS)
      for (; d + 2 * LANES <= DP; d += 2 * LANES)
        backward_product<BS, 2>(dgates, stride, stride, packed, DP, d, dh);
    for (; d < DP; d += LANES)
      backward_product<BS, 1>(dgates, stride, stride, packed, DP, d, dh);
    if (a.reset != nullptr)
      for (int b = 0; b < BS; ++b)
        if (a.reset[(b0 + b) * a.T + t])
          for (int64_t j = 0; j < DP; ++j) dh[b * DP + j] = 0.0f;
  }
  for (int s = 0; s < 4; ++s)
    for (int b = 0; b < BS; ++b)
      for (int64_t d = 0; d < DH; ++d)
        a.dstate[((s * a.B + b0 + b) * a.NH + head) * DH + d] = parts[s][b * DP + d];
}

// Calls tile<BS> for the number of samples that is left.
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
inline int64_t scratch_floats(int64_t DH) { return kTile * (5 * padded(DH) + 4 * DH + LANES); }
inline int64_t packed_floats(int64_t DH) { return 4 * DH * padded(DH); }

// One task: a head and a tile of samples, through all steps.
inline void forward_task(const SLSTMForward& a, int64_t task, const float* packed, float* scratch) {
  const int64_t head = task / num_tiles(a.B), tile = task % num_tiles(a.B);
  const int64_t b0 = tile_start(a.B, tile), size = tile_start(a.B, tile + 1) - b0;
  OPENXLSTM_TILE(forward_tile, size, a, head, b0, packed + head * packed_floats(a.DH), scratch);
}
inline void backward_task(const SLSTMBackward& a, int64_t task, const float* packed,
                          float* scratch) {
  const int64_t head = task / num_tiles(a.B), tile = task % num_tiles(a.B);
  const int64_t b0 = tile_start(a.B, tile), size = tile_start(a.B, tile + 1) - b0;
  OPENXLSTM_TILE(backward_tile, size, a, head, b0, packed + head * packed_floats(a.DH), scratch);
}
#undef OPENXLSTM_TILE
