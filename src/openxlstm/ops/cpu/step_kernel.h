// One step of a whole model, for one instruction set (see each_isa.h).
//
// With one row there is no product of matrices: every weight is used once, and reading it is what
// takes the time. Rows are computed one by one, each as if it were alone, so that what a sequence
// says never depends on its company; a block of weights is read from memory once for all of them.

#include "rows.h"

#include "norm_rows.h"
#include "slstm_cell.h"

// y (B, N) = x (B, K) · Wᵀ + bias for outputs n0 … n0 + LANES of W (N, K).
inline void map_block(int64_t B, int64_t N, int64_t K, const float* W, const float* bias,
                      const float* x, int64_t ldx, float* y, int64_t ldy, int64_t n0) {
  const float* rows[LANES];
  for (int j = 0; j < LANES; ++j) rows[j] = W + std::min(n0 + j, N - 1) * K;
  for (int64_t b = 0; b < B; ++b) {
    const float* in = x + b * ldx;
    Vec sums[LANES] = {};
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES) {
      const Vec v = load(in + k);
      for (int j = 0; j < LANES; ++j) sums[j] += v * load(rows[j] + k);
    }
    if (k < K) {
      const Vec v = load(in + k, K - k);
      for (int j = 0; j < LANES; ++j) sums[j] += v * load(rows[j] + k, K - k);
    }
    Vec out = sums_of(sums);
    if (bias != nullptr) out += load(bias + n0, N - n0);
    store(y + b * ldy + n0, out, N - n0);
  }
}
// A map of so many weights is worth a second thread.
constexpr int64_t kManyWeights = 1 << 18;
inline void map(int64_t B, int64_t N, int64_t K, const float* W, const float* bias, const float* x,
                int64_t ldx, float* y, int64_t ldy) {
  const int64_t blocks = (N + LANES - 1) / LANES;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      map_block(B, N, K, W, bias, x, ldx, y, ldy, block * LANES);
  };
  if (N * K < kManyWeights) run(0, blocks);
  else torch::stable::parallel_for(0, blocks, 1, run);
}

inline void silu_row(float* x, int64_t width) {
  for (int64_t d = 0; d < width; d += LANES) {
    const Vec v = load(x + d, width - d);
    store(x + d, v * sigmoid(v).value, width - d);
  }
}
// c = SiLU of the convolution of the window's K-1 rows and x, which joins the window.
inline void conv_row(const StepLayer& layer, int64_t width, const float* x, float* window, float* c) {
  const int64_t back = layer.K - 1;
  for (int64_t d = 0; d < width; ++d) {
    const float* w = layer.conv + d * layer.K;
    float sum = layer.conv_bias[d] + w[back] * x[d];
    for (int64_t j = 0; j < back; ++j) sum += w[j] * window[j * width + d];
    c[d] = sum;
  }
  if (back > 0) {
    std::copy(window + width, window + back * width, window);
    std::copy(x, x + width, window + (back - 1) * width);
  }
  silu_row(c, width);
}

// One step of one head: C (DH, DH), n (DH), m; h is written.
inline void mlstm_cell(const float* q, const float* k, const float* v, float log_i, float log_f,
                       float eps, int64_t DH, float* C, float* n, float* m, float* h) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(DH)), carried = log_f + *m;
  const float m_new = std::max(carried, log_i);
  const float f = std::exp(carried - m_new), i = std::exp(log_i - m_new);
  *m = m_new;
  float normalizer = 0.0f;
  for (int64_t d = 0; d < DH; ++d) {
    n[d] = f * n[d] + i * k[d];
    normalizer += n[d] * q[d];
  }
  for (int64_t e = 0; e < DH; e += LANES) {
    const int64_t count = DH - e;
    const Vec value = load(v + e, count);
    Vec sums[4] = {};
    for (int64_t d = 0; d < DH; ++d) {
      float* row = C + d * DH + e;
      const Vec c = load(row, count) * f + value * (i * k[d]);
      store(row, c, count);
      sums[d % 4] += c * q[d];
    }
    store(h + e, (sums[0] + sums[1]) + (sums[2] + sums[3]), count);
  }
  // exp(-m) is the 1 of eq. 21; never 0, so that no memory at all is read as 0.
  const float one = std::max(std::exp(-m_new), FLT_MIN);
  const float inverse = scale / (std::max(std::fabs(normalizer * scale), one) + eps);
  for (int64_t d = 0; d < DH; ++d) h[d] *= inverse;
}

// All heads of row b: q, k, v, h (NH·DH), gates (2·NH) ĩ and f̃.
inline void cells_of_row(const StepLayer& layer, int64_t NH, int64_t DH, int64_t b, const float* q,
                         const float* k, const float* v, const float* gates, float* h) {
  for (int64_t head = 0; head < NH; ++head) {
    const float f = gates[NH + head];
    const float log_f = std::min(f, 0.0f) - std::log1p(std::exp(-std::fabs(f)));
    const int64_t at = b * NH + head, d = head * DH;
    mlstm_cell(q + d, k + d, v + d, gates[head], log_f, static_cast<float>(layer.eps), DH,
               layer.state[0] + at * DH * DH, layer.state[1] + at * DH, layer.state[2] + at, h + d);
  }
}

inline void mlstm_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                        float* scratch) {
  const int64_t B = s.B, D = s.D, E = layer.inner, NH = s.NH, DH = E / NH, side = layer.option;
  const float *const *w = layer.weight;
  const float *up = w[0], *up_bias = w[1], *gate = w[8], *gate_bias = w[9], *skip = w[10];
  const float *down = w[11], *down_bias = w[12];
  Arena arena{scratch};
  float *u = arena.take(B * 2 * E), *c = arena.take(B * E), *qkv = arena.take(B * 3 * E);
  float *h = arena.take(B * E), *gates = arena.take(B * 2 * NH);
  map(B, 2 * E, D, up, up_bias, x, D, u, 2 * E);
  for (int64_t b = 0; b < B; ++b) {
    const float* a = u + b * 2 * E;
    float* cb = c + b * E;
    if (layer.K > 0) {
      conv_row(layer, E, a, layer.window + b * (layer.K - 1) * E, cb);
    } else {
      std::copy(a, a + E, cb);
      silu_row(cb, E);
    }
    for (int64_t part = 0; part < 3; ++part) {
      const float *in = part < 2 ? cb : a, *block = w[2 + part], *bias = w[5 + part];
      float* out = qkv + (b * 3 + part) * E;
      for (int64_t e = 0; e < E; ++e, block += side) {
        const float* from = in + e / side * side;
        float sum = bias == nullptr ? 0.0f : bias[e];
        for (int64_t j = 0; j < side; ++j) sum += block[j] * from[j];
        out[e] = sum;
      }
    }
  }
  map(B, 2 * NH, 3 * E, gate, gate_bias, qkv, 3 * E, gates, 2 * NH);
  const NormedRows norm{NH, DH, layer.head_norm, static_cast<float>(s.norm_eps)};
  for (int64_t b = 0; b < B; ++b) {
    const float *q = qkv + b * 3 * E, *k = q + E, *v = k + E, *z = u + b * 2 * E + E;
    float* hb = h + b * E;
    cells_of_row(layer, NH, DH, b, q, k, v, gates + b * 2 * NH, hb);
    norm.forward(hb, E, 1, hb, E);
    for (int64_t e = 0; e < E; e += LANES) {
      const int64_t count = E - e;
      const Vec gate_branch = load(z + e, count);
      const Vec kept = load(hb + e, count) + load(skip + e, count) * load(c + b * E + e, count);
      store(hb + e, kept * gate_branch * sigmoid(gate_branch).value, count);
    }
  }
  map(B, D, E, down, down_bias, h, E, y, D);
}

// h = σ(õ) ⊙ mLSTM(q, k, v) of dense maps of x, with nothing around it.
inline void bare_mlstm_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                             float* scratch) {
  const int64_t B = s.B, D = s.D, NH = s.NH, DH = D / NH;
  Arena arena{scratch};
  float *qkvo = arena.take(B * 4 * D), *gates = arena.take(B * 2 * NH);
  map(B, 4 * D, D, layer.weight[0], layer.weight[1], x, D, qkvo, 4 * D);
  map(B, 2 * NH, D, layer.weight[2], layer.weight[3], x, D, gates, 2 * NH);
  for (int64_t b = 0; b < B; ++b) {
    const float *q = qkvo + b * 4 * D, *k = q + D, *v = k + D, *o = v + D;
    cells_of_row(layer, NH, DH, b, q, k, v, gates + b * 2 * NH, y + b * D);
    for (int64_t d = 0; d < D; d += LANES) {
      const int64_t count = D - d;
      store(y + b * D + d, load(y + b * D + d, count) * sigmoid(load(o + d, count)).value, count);
    }
  }
}

inline void slstm_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                        float* scratch) {
  const int64_t B = s.B, D = s.D, NH = s.NH, DH = D / NH;
  const float *input = layer.weight[0], *bias = layer.weight[1], *R = layer.weight[2];
  Arena arena{scratch};
  float *c = arena.take(B * D), *gates = arena.take(B * 4 * DH);
  float* recurrent = arena.take(B * 4 * DH);
  for (int64_t b = 0; b < B && layer.K > 0; ++b)
    conv_row(layer, D, x + b * D, layer.window + b * (layer.K - 1) * D, c + b * D);
  for (int64_t head = 0; head < NH; ++head) {
    const float *W = input + head * 4 * DH * DH, *bias_h = bias + head * 4 * DH;
    const float *convolved = (layer.K > 0 ? c : x) + head * DH, *raw = x + head * DH;
    map(B, 2 * DH, DH, W, bias_h, convolved, D, gates, 4 * DH);
    map(B, 2 * DH, DH, W + 2 * DH * DH, bias_h + 2 * DH, raw, D, gates + 2 * DH, 4 * DH);
    map(B, 4 * DH, DH, R + head * 4 * DH * DH, nullptr, layer.state[0] + head * DH, D, recurrent,
        4 * DH);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t d = 0; d < DH; d += LANES) {
        const int64_t at = b * D + head * DH + d, count = DH - d;
        Vec preact[4];
        for (int g = 0; g < 4; ++g) {
          const int64_t from = (b * 4 + g) * DH + d;
          preact[g] = load(gates + from, count) + load(recurrent + from, count);
        }
        const Cell cell = step(preact, load(layer.state[1] + at, count),
                               load(layer.state[2] + at, count), load(layer.state[3] + at, count),
                               layer.option != 0);
        const Vec after[4] = {cell.h, cell.c, cell.n, cell.m};
        for (int part = 0; part < 4; ++part) store(layer.state[part] + at, after[part], count);
      }
  }
  if (layer.head_norm == nullptr) {
    std::copy(layer.state[0], layer.state[0] + B * D, y);
  } else {
    const NormedRows norm{NH, DH, layer.head_norm, static_cast<float>(s.norm_eps)};
    norm.forward(layer.state[0], D, B, y, D);
  }
}

inline void feedforward_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                              float* scratch) {
  const int64_t B = s.B, F = layer.inner;
  Arena arena{scratch};
  float *u = arena.take(B * 2 * F), *act = arena.take(B * F);
  map(B, 2 * F, s.D, layer.weight[4], layer.weight[5], x, s.D, u, 2 * F);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t d = 0; d < F; d += LANES) {
      const int64_t count = F - d;
      const Vec gate = load(u + b * 2 * F + d, count), value = load(u + b * 2 * F + F + d, count);
      store(act + b * F + d, gate * normal(gate).cumulative * value, count);
    }
  map(B, s.D, F, layer.weight[6], layer.weight[7], act, F, y, s.D);
}

inline int64_t step_floats(const Step& s, const StepLayer* layers) {
  int64_t most = 0;
  for (int64_t l = 0; l < s.num_layers; ++l)
    most = std::max(most, layers[l].is_slstm ? s.D + 8 * (s.D / s.NH) + 3 * layers[l].inner
                                             : 7 * layers[l].inner + 2 * s.NH);
  return s.B * (3 * s.D + most) + 16 * 8;
}

// What the blocks read: of tokens their embeddings, of features their projection.
inline void read_input(const Step& s, const void* input, float* x) {
  const int64_t D = s.D;
  if (s.I > 0) {
    const auto* features = static_cast<const float*>(input);
    if (s.proj == nullptr) std::copy(features, features + s.B * D, x);
    else map(s.B, D, s.I, s.proj, s.proj_bias, features, s.I, x, D);
    return;
  }
  const auto* ids = static_cast<const int64_t*>(input);
  for (int64_t b = 0; b < s.B; ++b) {
    const float* token = s.tokens + ids[b] * D;
    std::copy(token, token + D, x + b * D);
    if (s.positions != nullptr) {
      const float* row = s.positions + std::min(s.position[b], s.num_positions - 1) * D;
      for (int64_t d = 0; d < D; ++d) x[b * D + d] += row[d];
    }
    ++s.position[b];
  }
}

// Reads tokens (B) or features (B, I) → out, the states and positions a step further.
inline void step_model(const Step& s, const StepLayer* layers, const void* input, float* scratch) {
  const int64_t B = s.B, D = s.D;
  Arena arena{scratch};
  float *x = arena.take(B * D), *normed_x = arena.take(B * D), *y = arena.take(B * D);
  float* rest = arena.next;
  const auto norm_all = [&](const float* weight, float* to) {
    const NormedRows norm{1, D, weight, static_cast<float>(s.norm_eps)};
    norm.forward(x, D, B, to, D);
  };
  const auto add = [&] {
    for (int64_t d = 0; d < B * D; ++d) x[d] += y[d];
  };
  read_input(s, input, x);
  for (int64_t l = 0; l < s.num_layers; ++l) {
    const StepLayer& layer = layers[l];
    if (layer.norm == nullptr) {
      const float *proj = layer.weight[11], *in = x;
      if (proj != nullptr) map(B, D, D, proj, layer.weight[12], in, D, normed_x, D), in = normed_x;
      layer.is_slstm ? slstm_layer(s, layer, in, y, rest) : bare_mlstm_layer(s, layer, in, y, rest);
      std::swap(x, y);
      continue;
    }
    norm_all(layer.norm, normed_x);
    layer.is_slstm ? slstm_layer(s, layer, normed_x, y, rest) : mlstm_layer(s, layer, normed_x, y, rest);
    add();
    if (layer.is_slstm && layer.inner > 0) {
      norm_all(layer.weight[3], normed_x);
      feedforward_layer(s, layer, normed_x, y, rest);
      add();
    }
  }
  float* last = s.head == nullptr ? s.out : normed_x;
  if (s.norm == nullptr) std::copy(x, x + B * D, last);
  else norm_all(s.norm, last);
  if (s.head != nullptr) map(B, s.V, D, s.head, nullptr, last, D, s.out, s.V);
}
