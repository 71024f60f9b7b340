// The chunkwise mLSTM of one sample and head, for one instruction set (see each_isa.h).
//
// A task takes one (sample, head) through its chunks. A chunk's padded inputs, scores, gates and
// state are in scratch memory that fits a core's cache. Equations and names are those of
// ops/plain/mlstm.py. The backward recomputes the scores instead of reading them from memory.

#include "rows.h"

#include "product.h"

// exp(-m), the 1 of eq. 21 in units of exp(m). It is never 0, so that an empty memory reads as 0.
inline float one(float m) { return std::max(std::exp(-m), FLT_MIN); }

// The gates of a chunk of `steps` steps.
struct Gates {
  float *row, *column;      // b_t - m_t, and log_i_s - b_s: their sum is the exponent of D
  float *initial, *write;   // weight of the earlier state in each output; of each step in the later state
  float* m;                 // stabilizer of each step
  int64_t* from;            // first step that each step reads: after the last reset
  float decay;              // weight of the state before the chunk in the state after it

  void take(Arena& arena, int64_t LP) {
    row = arena.take(LP), column = arena.take(LP);
    initial = arena.take(LP), write = arena.take(LP), m = arena.take(LP);
    from = reinterpret_cast<int64_t*>(arena.take(2 * LP));
  }

  void compute(const float* log_i, const float* log_f, const bool* reset, int64_t steps, int64_t LP,
               float m_before) {
    // Long sums of log gates, whose differences are exponents, are taken in double.
    double b[kMaxChunk], b_sum = 0.0, m_t = m_before;
    int64_t last_reset = -1;
    for (int64_t t = 0; t < steps; ++t) {
      if (reset != nullptr && reset[t]) last_reset = t, m_t = 0.0;
      b_sum += log_f[t];
      b[t] = b_sum;
      m_t = std::max(static_cast<double>(log_f[t]) + m_t, static_cast<double>(log_i[t]));
      m[t] = static_cast<float>(m_t);
      m_t = m[t];
      from[t] = last_reset;
    }
    const double m_next = m[steps - 1];
    for (int64_t t = 0; t < LP; ++t) {
      const bool in = t < steps;
      row[t] = in ? static_cast<float>(b[t] - m[t]) : 0.0f;
      column[t] = in ? static_cast<float>(log_i[t] - b[t]) : 0.0f;
      initial[t] = in ? static_cast<float>(b[t] + m_before - m[t]) : -100.0f;
      write[t] = in ? static_cast<float>(b_sum + (log_i[t] - b[t]) - m_next) : -100.0f;
      if (in && from[t] >= 0) initial[t] = -INFINITY;
      if (in && t < last_reset) write[t] = -INFINITY;
      if (!in) m[t] = 0.0f;
    }
    for (int64_t t = 0; t < LP; t += LANES) {
      store(initial + t, exp(load(initial + t)));
      store(write + t, exp(load(write + t)));
    }
    decay = last_reset >= 0 ? 0.0f : static_cast<float>(std::exp(b_sum + m_before - m_next));
  }

  // Row t of D: the weights of the steps s ≤ t that step t reads.
  Vec weights(int64_t t, int64_t s) const {
    IVec index;
    for (int j = 0; j < LANES; ++j) index[j] = static_cast<int32_t>(s) + j;
    const IVec seen = (index <= static_cast<int32_t>(t)) & (index >= static_cast<int32_t>(from[t]));
    return select(seen, exp(load(column + s) + row[t]), Vec{});
  }
};

inline int64_t forward_floats(int64_t DQK, int64_t DHV, int64_t L) {
  const int64_t QP = padded(DQK), VP = padded(DHV), LP = padded(L);
  return LP * (2 * QP + 2 * VP + LP) + QP * LP + DQK * VP + QP + 9 * LP + 16 * 20;
}

inline void forward_task(const MLSTMForward& a, int64_t task, float* scratch) {
  const int64_t b = task / a.NH, head = task % a.NH, DQK = a.DQK, DHV = a.DHV, L = a.L;
  const int64_t QP = padded(DQK), VP = padded(DHV), LP = padded(L), NC = (a.T + L - 1) / L;
  const float scale = 1.0f / std::sqrt(static_cast<float>(DQK));
  Arena arena{scratch};
  float *q = arena.take(LP * QP), *k = arena.take(LP * QP), *v = arena.take(LP * VP);
  float *h = arena.take(LP * VP), *scores = arena.take(LP * LP), *k_t = arena.take(QP * LP);
  float *C = arena.take(DQK * VP), *n = arena.take(QP);
  Gates gates;
  gates.take(arena, LP);
  copy_rows(a.C + task * DQK * DHV, DHV, DQK, DHV, C, VP);
  copy_rows(a.n + task * DQK, DQK, 1, DQK, n, QP);
  float m = a.m[task];

  for (int64_t chunk = 0; chunk < NC; ++chunk) {
    const int64_t t0 = chunk * L, steps = std::min(L, a.T - t0), at = task * a.T + t0;
    if (a.C_chunks != nullptr) {
      write_rows(C, VP, DQK, DHV, a.C_chunks + (task * NC + chunk) * DQK * DHV, DHV);
      write_rows(n, QP, 1, DQK, a.n_chunks + (task * NC + chunk) * DQK, DQK);
    }
    gates.compute(a.log_i + at, a.log_f + at, a.reset ? a.reset + b * a.T + t0 : nullptr, steps, LP, m);
    copy_rows(a.q.at(b, head, t0), a.q.stride_t, steps, DQK, q, QP);
    copy_rows(a.k.at(b, head, t0), a.k.stride_t, steps, DQK, k, QP);
    copy_rows(a.v.at(b, head, t0), a.v.stride_t, steps, DHV, v, VP);
    const bool empty = chunk == 0 && is_zero(C, DQK * VP) && is_zero(n, QP);
    for (int64_t t = 0; t < steps; ++t) scale_row(q + t * QP, QP, scale);
    transpose(k, QP, steps, DQK, k_t, LP);
    product(steps, LP, DQK, q, QP, 1, k_t, LP, scores, LP, false, Causal::kLowerOut);

    for (int64_t t = 0; t < steps; ++t) {
      prefetch<true>(a.h + (at + t) * DHV, DHV);
      if (t0 + L + t < a.T) {
        prefetch<false>(a.q.at(b, head, t0 + L + t), DQK);
        prefetch<false>(a.k.at(b, head, t0 + L + t), DQK);
        prefetch<false>(a.v.at(b, head, t0 + L + t), DHV);
      }
      float* row = scores + t * LP;
      Vec total{};
      for (int64_t s = 0; s < LP; s += LANES) {
        const Vec gated = s <= t ? load(row + s) * gates.weights(t, s) : Vec{};
        store(row + s, gated);
        total += gated;
      }
      const float initial = gates.initial[t];
      const float before = empty ? 0.0f : initial * dot(q + t * QP, n, QP);
      const float normalizer = sum(total) + before;
      const float denominator = std::max(std::fabs(normalizer), one(gates.m[t])) + a.eps;
      if (a.m_steps != nullptr) a.m_steps[at + t] = gates.m[t], a.normalizer[at + t] = normalizer;
      // h is divided by it: dividing the weights of the sum instead is the same.
      const float inverse = 1.0f / denominator;
      scale_row(row, LP, inverse);
      if (!empty) scale_row(q + t * QP, QP, initial * inverse);
    }
    product(steps, DHV, steps, scores, LP, 1, v, VP, h, VP, false, Causal::kLowerIn);
    if (!empty) product(steps, DHV, DQK, q, QP, 1, C, VP, h, VP, true);
    write_rows(h, VP, steps, DHV, a.h + at * DHV, DHV);

    for (int64_t s = 0; s < steps; ++s) scale_row(k + s * QP, QP, gates.write[s]);
    for (int64_t d = 0; d < DQK && !empty; ++d) scale_row(C + d * VP, VP, gates.decay);
    product(DQK, DHV, steps, k, 1, QP, v, VP, C, VP, !empty);
    scale_row(n, QP, gates.decay);
    add_column_sums(n, k, QP, steps, QP);
    m = gates.m[steps - 1];
  }
  write_rows(C, VP, DQK, DHV, a.C + task * DQK * DHV, DHV);
  write_rows(n, QP, 1, DQK, a.n + task * DQK, DQK);
  a.m[task] = m;
}

inline int64_t backward_floats(int64_t DQK, int64_t DHV, int64_t L) {
  const int64_t QP = padded(DQK), VP = padded(DHV), LP = padded(L);
  return LP * (6 * QP + 5 * VP + 2 * LP) + (QP + VP) * LP + 2 * DQK * VP + 2 * DHV * QP + 2 * QP +
         12 * LP + 16 * 32;
}

inline void backward_task(const MLSTMBackward& a, int64_t task, float* scratch) {
  const int64_t b = task / a.NH, head = task % a.NH, DQK = a.DQK, DHV = a.DHV, L = a.L;
  const int64_t QP = padded(DQK), VP = padded(DHV), LP = padded(L), NC = (a.T + L - 1) / L;
  const float scale = 1.0f / std::sqrt(static_cast<float>(DQK));
  Arena arena{scratch};
  float *q = arena.take(LP * QP), *k = arena.take(LP * QP), *v = arena.take(LP * VP);
  float *h = arena.take(LP * VP), *dnum = arena.take(LP * VP);
  float *dq = arena.take(LP * QP), *dk = arena.take(LP * QP), *dv = arena.take(LP * VP);
  float *scores = arena.take(LP * LP), *dscores = arena.take(LP * LP);
  float *k_t = arena.take(QP * LP), *v_t = arena.take(VP * LP), *temp = arena.take(LP * QP);
  float *C_t = arena.take(DHV * QP), *dC = arena.take(DQK * VP), *dC_t = arena.take(DHV * QP);
  float *C = arena.take(DQK * VP), *n = arena.take(QP), *dn = arena.take(QP);
  float *dnorm = arena.take(LP), *dlog_i = arena.take(LP), *db = arena.take(LP);
  Gates gates;
  gates.take(arena, LP);
  copy_rows(a.dC + task * DQK * DHV, DHV, DQK, DHV, dC, VP);
  copy_rows(a.dn + task * DQK, DQK, 1, DQK, dn, QP);

  for (int64_t chunk = NC - 1; chunk >= 0; --chunk) {
    const int64_t t0 = chunk * L, steps = std::min(L, a.T - t0), at = task * a.T + t0;
    const float m_before = chunk == 0 ? a.m_0[task] : a.m_steps[at - 1];
    gates.compute(a.log_i + at, a.log_f + at, a.reset ? a.reset + b * a.T + t0 : nullptr, steps, LP,
                  m_before);
    copy_rows(a.q.at(b, head, t0), a.q.stride_t, steps, DQK, q, QP);
    copy_rows(a.k.at(b, head, t0), a.k.stride_t, steps, DQK, k, QP);
    copy_rows(a.v.at(b, head, t0), a.v.stride_t, steps, DHV, v, VP);
    copy_rows(a.h.at(b, head, t0), a.h.stride_t, steps, DHV, h, VP);
    copy_rows(a.dh.at(b, head, t0), a.dh.stride_t, steps, DHV, dnum, VP);
    copy_rows(a.C_chunks + (task * NC + chunk) * DQK * DHV, DHV, DQK, DHV, C, VP);
    copy_rows(a.n_chunks + (task * NC + chunk) * DQK, DQK, 1, DQK, n, QP);

    // h = numerator / denominator
    for (int64_t t = 0; t < steps; ++t) {
      prefetch<true>(a.dq.at(b, head, t0 + t), DQK);
      prefetch<true>(a.dk.at(b, head, t0 + t), DQK);
      prefetch<true>(a.dv.at(b, head, t0 + t), DHV);
      const float normalizer = a.normalizer[at + t], floor = one(gates.m[t]);
      const float size = std::fabs(normalizer);
      scale_row(dnum + t * VP, VP, 1.0f / (std::max(size, floor) + a.eps));
      const float d_denominator = -dot(h + t * VP, dnum + t * VP, VP);
      dnorm[t] = size > floor ? std::copysign(d_denominator, d_denominator * normalizer) : 0.0f;
    }

    // Within the chunk.
    transpose(k, QP, steps, DQK, k_t, LP);
    transpose(v, VP, steps, DHV, v_t, LP);
    product(steps, LP, DQK, q, QP, 1, k_t, LP, scores, LP, false, Causal::kLowerOut);
    product(steps, LP, DHV, dnum, VP, 1, v_t, LP, dscores, LP, false, Causal::kLowerOut);
    for (int64_t t = 0; t < steps; ++t) {
      if (chunk > 0) {
        const int64_t before = t0 - L + t;
        prefetch<false>(a.q.at(b, head, before), DQK);
        prefetch<false>(a.k.at(b, head, before), DQK);
        prefetch<false>(a.v.at(b, head, before), DHV);
        prefetch<false>(a.h.at(b, head, before), DHV);
        prefetch<false>(a.dh.at(b, head, before), DHV);
      }
      float *row = scores + t * LP, *drow = dscores + t * LP;
      for (int64_t s = 0; s < LP; s += LANES) {
        const Vec D = s <= t ? gates.weights(t, s) * scale : Vec{};
        const Vec score = s <= t ? load(row + s) : Vec{}, d = s <= t ? load(drow + s) : Vec{};
        store(row + s, score * D);
        store(drow + s, (d + dnorm[t]) * D);
      }
    }
    product(steps, DHV, steps, scores, 1, LP, dnum, VP, dv, VP, false, Causal::kUpperIn);
    product(steps, DQK, steps, dscores, 1, LP, q, QP, dk, QP, false, Causal::kUpperIn);
    product(steps, DQK, steps, dscores, LP, 1, k, QP, dq, QP, false, Causal::kLowerIn);

    // Through what the chunk wrote into the state, and through the decay of the earlier state.
    const bool ignored = chunk == NC - 1 && is_zero(dC, DQK * VP) && is_zero(dn, QP);
    double d_sum_log_f = 0.0;
    if (!ignored) {
      transpose(dC, VP, DQK, DHV, dC_t, QP);
      product(steps, DQK, DHV, v, VP, 1, dC_t, QP, temp, QP, false);
    }
    for (int64_t s = 0; s < steps; ++s) {
      float *dk_s = dk + s * QP, *k_s = k + s * QP, *temp_s = temp + s * QP;
      if (!ignored) {
        const float write = gates.write[s];
        Vec along{};
        for (int64_t d = 0; d < QP; d += LANES) {
          const Vec key = load(k_s + d), reached = load(temp_s + d) + load(dn + d);
          along += key * reached;
          store(dk_s + d, load(dk_s + d) + reached * write);
          store(temp_s + d, key * write);
        }
        d_sum_log_f += write * sum(along);
      }
      dlog_i[s] = dot(k_s, dk_s, QP);
    }
    if (!ignored) {
      product(steps, DHV, DQK, temp, QP, 1, dC, VP, dv, VP, true);
      d_sum_log_f += gates.decay * (dot(C, dC, DQK * VP) + dot(n, dn, QP));
    }

    // From the state before the chunk.
    const bool empty = chunk == 0 && is_zero(C, DQK * VP) && is_zero(n, QP);
    if (!empty) {
      transpose(C, VP, DQK, DHV, C_t, QP);
      product(steps, DQK, DHV, dnum, VP, 1, C_t, QP, temp, QP, false);
    }
    for (int64_t t = 0; t < steps; ++t) {
      float *dq_t = dq + t * QP, *q_t = q + t * QP;
      const float initial = gates.initial[t] * scale;
      for (int64_t d = 0; d < QP && !empty; d += LANES) {
        const Vec reached = load(temp + t * QP + d) + load(n + d) * dnorm[t];
        store(dq_t + d, load(dq_t + d) + reached * initial);
      }
      db[t] = dot(q_t, dq_t, QP) - dlog_i[t];
      scale_row(q_t, QP, initial);
    }
    if (chunk > 0 || a.wants_initial) {
      for (int64_t d = 0; d < DQK && !ignored; ++d) scale_row(dC + d * VP, VP, gates.decay);
      product(DQK, DHV, steps, q, 1, QP, dnum, VP, dC, VP, !ignored);
      scale_row(dn, QP, gates.decay);
      add_weighted_rows(dn, q, dnorm, steps, QP);
    }

    // A gate is a factor of all that it lets through: the gradient of its logarithm is the sum over
    // that of value times gradient.
    double sum_db = d_sum_log_f;
    for (int64_t t = steps - 1; t >= 0; --t) {
      sum_db += db[t];
      const bool cut = a.reset != nullptr && a.reset[b * a.T + t0 + t];
      a.dlog_f[at + t] = cut ? 0.0f : static_cast<float>(sum_db);
      a.dlog_i[at + t] = dlog_i[t];
    }
    write_rows(dq, QP, steps, DQK, a.dq.at(b, head, t0), a.dq.stride_t);
    write_rows(dk, QP, steps, DQK, a.dk.at(b, head, t0), a.dk.stride_t);
    write_rows(dv, VP, steps, DHV, a.dv.at(b, head, t0), a.dv.stride_t);
  }
  write_rows(dC, VP, DQK, DHV, a.dC + task * DQK * DHV, DHV);
  write_rows(dn, QP, 1, DQK, a.dn + task * DQK, DQK);
}
