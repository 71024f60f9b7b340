// One step of a whole model, for one instruction set (see each_isa.h).
//
// With few rows, reading the weights takes most of the time: a block of weights is read from memory
// once for all rows. Each row is computed as if it were alone, so that a sequence's result does not
// depend on the rest of the batch.

#include "rows.h"

#include "norm_rows.h"
#include "slstm_cell.h"
#include "step_maps.h"

inline void silu_row(float* x, int64_t width) {
  for (int64_t d = 0; d < width; d += LANES) {
    const Vec v = load(x + d, width - d);
    store(x + d, v * sigmoid(v).value, width - d);
  }
}
// c = SiLU of the convolution of the window's K-1 rows and x. The window then moves on by x.
inline void conv_row(const StepLayer& layer, const float* weight, const float* bias, int64_t width,
                     const float* x, float* window, float* c) {
  const int64_t back = layer.K - 1;
  for (int64_t d = 0; d < width; ++d) {
    const float* w = weight + d * layer.K;
    float sum = bias[d] + w[back] * x[d];
    for (int64_t j = 0; j < back; ++j) sum += w[j] * window[j * width + d];
    c[d] = sum;
  }
  if (back > 0) {
    std::copy(window + width, window + back * width, window);
    std::copy(x, x + width, window + (back - 1) * width);
  }
  silu_row(c, width);
}

// One step of kVectors vectors of the columns of C (DQK, DHV), `count` floats in all. h = qᵀC is
// written.
template <int kVectors>
inline void mlstm_columns(const float* q, const float* k, const float* v, float f, float i,
                          int64_t DQK, int64_t DHV, int64_t count, float* C, float* h) {
  Vec value[kVectors], sums[kVectors] = {};
  for (int j = 0; j < kVectors; ++j) value[j] = load(v + j * LANES, count - j * LANES) * i;
  for (int64_t d = 0; d < DQK; ++d)
    for (int j = 0; j < kVectors; ++j) {
      float* at = C + d * DHV + j * LANES;
      const Vec c = load(at, count - j * LANES) * f + value[j] * k[d];
      store(at, c, count - j * LANES);
      sums[j] += c * q[d];
    }
  for (int j = 0; j < kVectors; ++j) store(h + j * LANES, sums[j], count - j * LANES);
}
// One step of one head: C (DQK, DHV), n (DQK), m; h is written.
inline void mlstm_cell(const float* q, const float* k, const float* v, float log_i, float log_f,
                       float eps, int64_t DQK, int64_t DHV, float* C, float* n, float* m,
                       float* h) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(DQK)), carried = log_f + *m;
  const float m_new = std::max(carried, log_i);
  const float f = std::exp(carried - m_new), i = std::exp(log_i - m_new);
  *m = m_new;
  float normalizer = 0.0f;
  for (int64_t d = 0; d < DQK; ++d) {
    n[d] = f * n[d] + i * k[d];
    normalizer += n[d] * q[d];
  }
  int64_t e = 0;
  for (; e + 4 * LANES <= DHV; e += 4 * LANES)
    mlstm_columns<4>(q, k, v + e, f, i, DQK, DHV, 4 * LANES, C + e, h + e);
  for (; e < DHV; e += LANES)
    mlstm_columns<1>(q, k, v + e, f, i, DQK, DHV, std::min<int64_t>(LANES, DHV - e), C + e, h + e);
  // exp(-m) is the 1 of eq. 21. It is never 0, so that an empty memory reads as 0.
  const float one = std::max(std::exp(-m_new), FLT_MIN);
  const float inverse = scale / (std::max(std::fabs(normalizer * scale), one) + eps);
  for (int64_t d = 0; d < DHV; ++d) h[d] *= inverse;
}

// One head of row b: q, k (NH·DQK), v, h (NH·DHV), gates (2·NH) ĩ and f̃.
inline void cell_of_head(const StepLayer& layer, int64_t NH, int64_t b, int64_t head,
                         const float* q, const float* k, const float* v, const float* gates,
                         float* h) {
  const int64_t DQK = layer.DQK, DHV = layer.DHV, at = b * NH + head;
  const float f = gates[NH + head];
  const float log_f = std::min(f, 0.0f) - std::log1p(std::exp(-std::fabs(f)));
  mlstm_cell(q + head * DQK, k + head * DQK, v + head * DHV, gates[head], log_f,
             static_cast<float>(layer.eps), DQK, DHV, layer.state[0] + at * DQK * DHV,
             layer.state[1] + at * DQK, layer.state[2] + at, h + head * DHV);
}
inline void cells_of_row(const StepLayer& layer, int64_t NH, int64_t b, const float* q,
                         const float* k, const float* v, const float* gates, float* h) {
  for (int64_t head = 0; head < NH; ++head) cell_of_head(layer, NH, b, head, q, k, v, gates, h);
}

inline void mlstm_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                        float* scratch) {
  const int64_t B = s.B, D = s.D, E = layer.inner, NH = s.NH, DH = E / NH, side = layer.side;
  using S = MLSTMSlots;
  const float *conv = layer.vector(S::conv), *skip = layer.vector(S::skip);
  Arena arena{scratch};
  float *u = arena.take(B * 2 * E), *c = arena.take(B * E), *qkv = arena.take(B * 3 * E);
  float *h = arena.take(B * E), *gates = arena.take(B * 2 * NH);
  map(s, 2 * E, D, layer.weight[S::up], layer.vector(S::up_bias), x, D, u, 2 * E);
  for (int64_t b = 0; b < B; ++b) {
    const float* a = u + b * 2 * E;
    float* cb = c + b * E;
    if (layer.K > 0) {
      conv_row(layer, conv, layer.vector(S::conv_bias), E, a, layer.window + b * (layer.K - 1) * E, cb);
    } else {
      std::copy(a, a + E, cb);
      silu_row(cb, E);
    }
    for (int64_t part = 0; part < 3; ++part) {
      const float *in = part < 2 ? cb : a, *block = layer.vector(S::q + part);
      const float* bias = layer.vector(S::q_bias + part);
      float* out = qkv + (b * 3 + part) * E;
      for (int64_t e = 0; e < E; ++e, block += side) {
        const float* from = in + e / side * side;
        float sum = bias == nullptr ? 0.0f : bias[e];
        for (int64_t j = 0; j < side; ++j) sum += block[j] * from[j];
        out[e] = sum;
      }
    }
  }
  map(s, 2 * NH, 3 * E, layer.weight[S::gate], layer.vector(S::gate_bias), qkv, 3 * E, gates, 2 * NH);
  const NormedRows norm{NH, DH, layer.vector(S::head_norm), static_cast<float>(s.norm_eps)};
  for (int64_t b = 0; b < B; ++b) {
    const float *q = qkv + b * 3 * E, *k = q + E, *v = k + E, *z = u + b * 2 * E + E;
    float* hb = h + b * E;
    cells_of_row(layer, NH, b, q, k, v, gates + b * 2 * NH, hb);
    norm.forward(hb, E, 1, hb, E);
    for (int64_t e = 0; e < E; e += LANES) {
      const int64_t count = E - e;
      const Vec gate_branch = load(z + e, count);
      const Vec kept = load(hb + e, count) + load(skip + e, count) * load(c + b * E + e, count);
      store(hb + e, kept * gate_branch * sigmoid(gate_branch).value, count);
    }
  }
  map(s, D, E, layer.weight[S::down], layer.vector(S::down_bias), h, E, y, D);
}

// A bare mLSTM layer: h = σ(õ) ⊙ mLSTM(q, k, v), where q, k, v and õ are dense maps of x.
inline void bare_mlstm_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                             float* scratch) {
  const int64_t B = s.B, D = s.D, NH = s.NH;
  using S = BareMLSTMSlots;
  Arena arena{scratch};
  float *qkvo = arena.take(B * 4 * D), *gates = arena.take(B * 2 * NH);
  maps(s, D, x, D,
       {{4 * D, layer.weight[S::qkvo], layer.vector(S::qkvo_bias), qkvo, 4 * D},
        {2 * NH, layer.weight[S::gate], layer.vector(S::gate_bias), gates, 2 * NH}});
  for (int64_t b = 0; b < B; ++b) {
    const float *q = qkvo + b * 4 * D, *k = q + D, *v = k + D, *o = v + D;
    cells_of_row(layer, NH, b, q, k, v, gates + b * 2 * NH, y + b * D);
    for (int64_t d = 0; d < D; d += LANES) {
      const int64_t count = D - d;
      store(y + b * D + d, load(y + b * D + d, count) * sigmoid(load(o + d, count)).value, count);
    }
  }
}

// The weights of an sLSTM layer; null for those that a bare one does not have.
struct SLSTMWeights {
  const float *conv, *conv_bias;
  const void *input, *recurrent;
  const float *bias, *head_norm;
};
inline SLSTMWeights slstm_weights(const StepLayer& layer) {
  if (layer.kind == BlockKind::kBareSLSTM) {
    using S = BareSLSTMSlots;
    return {nullptr, nullptr, layer.weight[S::input], layer.weight[S::recurrent],
            layer.vector(S::bias), nullptr};
  }
  using S = SLSTMSlots;
  return {layer.vector(S::conv), layer.vector(S::conv_bias), layer.weight[S::input],
          layer.weight[S::recurrent], layer.vector(S::bias), layer.vector(S::head_norm)};
}

inline void slstm_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                        float* scratch) {
  const int64_t B = s.B, D = s.D, NH = s.NH, DH = D / NH;
  const SLSTMWeights w = slstm_weights(layer);
  Arena arena{scratch};
  float *c = arena.take(B * D), *gates = arena.take(B * 4 * DH);
  float* recurrent = arena.take(B * 4 * DH);
  for (int64_t b = 0; b < B && layer.K > 0; ++b)
    conv_row(layer, w.conv, w.conv_bias, D, x + b * D, layer.window + b * (layer.K - 1) * D, c + b * D);
  for (int64_t head = 0; head < NH; ++head) {
    const int64_t square = DH * DH, first = head * 4 * square;
    const float* bias_h = w.bias + head * 4 * DH;
    const float *convolved = (layer.K > 0 ? c : x) + head * DH, *raw = x + head * DH;
    map(s, 2 * DH, DH, at(s, w.input, first), bias_h, convolved, D, gates, 4 * DH);
    map(s, 2 * DH, DH, at(s, w.input, first + 2 * square), bias_h + 2 * DH, raw, D, gates + 2 * DH,
        4 * DH);
    map(s, 4 * DH, DH, at(s, w.recurrent, first), nullptr, layer.state[0] + head * DH, D, recurrent, 4 * DH);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t d = 0; d < DH; d += LANES) {
        const int64_t place = b * D + head * DH + d, count = DH - d;
        Vec preact[4];
        for (int g = 0; g < 4; ++g) {
          const int64_t from = (b * 4 + g) * DH + d;
          preact[g] = load(gates + from, count) + load(recurrent + from, count);
        }
        const Cell cell = step(preact, load(layer.state[1] + place, count),
                               load(layer.state[2] + place, count),
                               load(layer.state[3] + place, count), layer.exp_gate != 0);
        const Vec after[4] = {cell.h, cell.c, cell.n, cell.m};
        for (int part = 0; part < 4; ++part) store(layer.state[part] + place, after[part], count);
      }
  }
  if (w.head_norm == nullptr) {
    std::copy(layer.state[0], layer.state[0] + B * D, y);
  } else {
    const NormedRows norm{NH, DH, w.head_norm, static_cast<float>(s.norm_eps)};
    norm.forward(layer.state[0], D, B, y, D);
  }
}

inline void feedforward_layer(const Step& s, const StepLayer& layer, const float* x, float* y,
                              float* scratch) {
  const int64_t B = s.B, F = layer.inner;
  using S = SLSTMSlots;
  Arena arena{scratch};
  float *u = arena.take(B * 2 * F), *act = arena.take(B * F);
  map(s, 2 * F, s.D, layer.weight[S::ff_up], layer.vector(S::ff_up_bias), x, s.D, u, 2 * F);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t d = 0; d < F; d += LANES) {
      const int64_t count = F - d;
      const Vec gate = load(u + b * 2 * F + d, count), value = load(u + b * 2 * F + F + d, count);
      store(act + b * F + d, gate * normal(gate).cumulative * value, count);
    }
  map(s, s.D, F, layer.weight[S::ff_down], layer.vector(S::ff_down_bias), act, F, y, s.D);
}

// A large block: both halves, each added to x. y (B, D) is scratch memory.
inline void large_block(const Step& s, const StepLayer& layer, float* x, float* y, float* scratch) {
  const int64_t B = s.B, D = s.D, NH = s.NH, F = layer.inner, QK = NH * layer.DQK;
  const int64_t V = NH * layer.DHV, wide = 2 * QK + 2 * V;
  using S = LargeSlots;
  const auto norm = [&](int weight, int bias) {
    const float eps = static_cast<float>(s.norm_eps);
    rms_rows(D, layer.vector(weight), layer.vector(bias), eps).forward(x, D, B, y, D);
  };
  const auto add = [&] {
    for (int64_t d = 0; d < B * D; ++d) x[d] += y[d];
  };
  const auto output = [&](int weight, int bias, int64_t N, float* to, int64_t ld) {
    return Map{N, layer.weight[weight], layer.vector(bias), to, ld};
  };
  Arena arena{scratch};
  float *qkvo = arena.take(B * wide), *h = arena.take(B * V), *gates = arena.take(B * 2 * NH);
  norm(S::norm, S::norm_bias);
  maps(s, D, y, D,
       {output(S::q, S::q_bias, QK, qkvo, wide), output(S::k, S::k_bias, QK, qkvo + QK, wide),
        output(S::v, S::v_bias, V, qkvo + 2 * QK, wide),
        output(S::o, S::o_bias, V, qkvo + 2 * QK + V, wide),
        output(S::gate, S::gate_bias, 2 * NH, gates, 2 * NH)});
  const float cap = static_cast<float>(layer.cap);
  for (int64_t d = 0; d < B * 2 * NH && cap > 0; ++d) gates[d] = cap * std::tanh(gates[d] / cap);
  const auto cells = [&](int64_t begin, int64_t end) {
    for (int64_t one = begin; one < end; ++one) {
      const int64_t b = one / NH;
      const float *q = qkvo + b * wide, *k = q + QK, *v = k + QK;
      cell_of_head(layer, NH, b, one % NH, q, k, v, gates + b * 2 * NH, h + b * V);
    }
  };
  if (B * QK * layer.DHV < kManyWeights) cells(0, B * NH);
  else torch::stable::parallel_for(0, B * NH, 1, cells);
  const NormedRows head_norm{NH, layer.DHV, layer.vector(S::head_norm), static_cast<float>(s.norm_eps),
                             layer.vector(S::head_norm_bias), true, 0.0f};
  for (int64_t b = 0; b < B; ++b) {
    float *row = h + b * V, *o = qkvo + b * wide + 2 * QK + V;
    head_norm.forward(row, V, 1, row, V);
    for_vectors(V, [&](int64_t d, int64_t n) {
      store(row + d, load(row + d, n) * sigmoid(load(o + d, n)).value, n);
    });
  }
  maps(s, V, h, V, {output(S::out, S::out_bias, D, y, D)});
  add();

  arena = Arena{scratch};  // the first half's buffers are free again
  float *u = arena.take(B * 2 * F), *act = arena.take(B * F);
  norm(S::ff_norm, S::ff_norm_bias);
  maps(s, D, y, D, {output(S::ff_gate, S::ff_gate_bias, F, u, 2 * F),
                    output(S::ff_up, S::ff_up_bias, F, u + F, 2 * F)});
  for (int64_t b = 0; b < B; ++b)
    for_vectors(F, [&](int64_t d, int64_t n) {
      const Vec gate = load(u + b * 2 * F + d, n), value = load(u + b * 2 * F + F + d, n);
      store(act + b * F + d, gate * sigmoid(gate).value * value, n);
    });
  maps(s, F, act, F, {output(S::ff_down, S::ff_down_bias, D, y, D)});
  add();
}

// A layer's scratch memory in floats per row.
inline int64_t layer_floats(const Step& s, const StepLayer& layer) {
  if (is_slstm(layer.kind)) return s.D + 8 * (s.D / s.NH) + 3 * layer.inner;
  if (layer.kind != BlockKind::kLarge) return 7 * layer.inner + 2 * s.NH;
  return std::max(s.NH * (2 * layer.DQK + 3 * layer.DHV + 2), 3 * layer.inner);
}
inline int64_t step_floats(const Step& s, const StepLayer* layers) {
  int64_t most = 0;
  for (int64_t l = 0; l < s.num_layers; ++l) most = std::max(most, layer_floats(s, layers[l]));
  return s.B * (3 * s.D + most) + 16 * 8;
}

// x (D) = or += a row of a matrix.
inline void read_row(const Step& s, const void* matrix, int64_t row, float* x, bool add) {
  const void* from = at(s, matrix, row * s.D);
  for_vectors(s.D, [&](int64_t d, int64_t n) {
    const Vec v = s.narrow ? load(static_cast<const uint16_t*>(from) + d, n)
                           : load(static_cast<const float*>(from) + d, n);
    store(x + d, add ? load(x + d, n) + v : v, n);
  });
}

// x (B, D), the first block's input: the tokens' embeddings, or the features' projection.
inline void read_input(const Step& s, const void* input, float* x) {
  const int64_t D = s.D;
  if (s.I > 0) {
    const auto* features = static_cast<const float*>(input);
    const void* proj = s.weight[ModelSlots::proj];
    if (proj == nullptr) std::copy(features, features + s.B * D, x);
    else map(s, D, s.I, proj, s.vector(ModelSlots::proj_bias), features, s.I, x, D);
    return;
  }
  const auto* ids = static_cast<const int64_t*>(input);
  for (int64_t b = 0; b < s.B; ++b) {
    read_row(s, s.weight[ModelSlots::tokens], ids[b], x + b * D, false);
    if (s.num_positions > 0) {
      const int64_t position = std::min(s.position[b], s.num_positions - 1);
      read_row(s, s.weight[ModelSlots::positions], position, x + b * D, true);
    }
    ++s.position[b];
  }
}

// One step from tokens (B) or features (B, I) to out; states and positions are updated.
inline void step_model(const Step& s, const StepLayer* layers, const void* input, float* scratch) {
  const int64_t B = s.B, D = s.D;
  Arena arena{scratch};
  float *x = arena.take(B * D), *normed_x = arena.take(B * D), *y = arena.take(B * D);
  float* rest = arena.next;
  const float eps = static_cast<float>(s.norm_eps);
  const float* norm_bias = s.vector(ModelSlots::norm_bias);
  const auto norm_all = [&](const float* weight, float* to) {
    const NormedRows norm =
        s.rms ? rms_rows(D, weight, norm_bias, eps) : NormedRows{1, D, weight, eps};
    norm.forward(x, D, B, to, D);
  };
  const auto add = [&] {
    for (int64_t d = 0; d < B * D; ++d) x[d] += y[d];
  };
  // What a bare block's cell reads: x, or a dense map of it.
  const auto projected = [&](const void* proj, const float* bias) {
    if (proj == nullptr) return x;
    map(s, D, D, proj, bias, x, D, normed_x, D);
    return normed_x;
  };
  read_input(s, input, x);
  for (int64_t l = 0; l < s.num_layers; ++l) {
    const StepLayer& layer = layers[l];
    switch (layer.kind) {
      case BlockKind::kMLSTM:
        norm_all(layer.vector(MLSTMSlots::norm), normed_x);
        mlstm_layer(s, layer, normed_x, y, rest);
        add();
        break;
      case BlockKind::kSLSTM:
        norm_all(layer.vector(SLSTMSlots::norm), normed_x);
        slstm_layer(s, layer, normed_x, y, rest);
        add();
        if (layer.inner == 0) break;
        norm_all(layer.vector(SLSTMSlots::ff_norm), normed_x);
        feedforward_layer(s, layer, normed_x, y, rest);
        add();
        break;
      case BlockKind::kLarge: large_block(s, layer, x, y, rest); break;
      case BlockKind::kBareMLSTM: {
        using S = BareMLSTMSlots;
        const float* in = projected(layer.weight[S::proj], layer.vector(S::proj_bias));
        bare_mlstm_layer(s, layer, in, y, rest);
        std::swap(x, y);
        break;
      }
      case BlockKind::kBareSLSTM: {
        using S = BareSLSTMSlots;
        const float* in = projected(layer.weight[S::proj], layer.vector(S::proj_bias));
        slstm_layer(s, layer, in, y, rest);
        std::swap(x, y);
        break;
      }
      case BlockKind::kCount: break;
    }
  }
  const void* head = s.weight[ModelSlots::head];
  const float* norm = s.vector(ModelSlots::norm);
  float* last = head == nullptr ? s.out : normed_x;
  if (norm == nullptr) std::copy(x, x + B * D, last);
  else norm_all(norm, last);
  if (head != nullptr) map(s, s.V, D, head, nullptr, last, D, s.out, s.V);
  const float cap = static_cast<float>(s.cap);
  for_vectors(cap > 0 ? B * s.V : 0, [&](int64_t d, int64_t n) {
    store(s.out + d, soft_cap(load(s.out + d, n), cap), n);
  });
}
