// The parts of an sLSTM block other than scan and feed-forward, for one instruction set (see
// each_isa.h): norm and convolution, head norm and residual, of a chunk in cache. D is a multiple
// of 16.

#include "rows.h"

#include "conv_rows.h"
#include "norm_rows.h"

inline NormedRows norm_of(const SLSTMBlock& p) { return {1, p.D, p.norm, p.eps}; }
inline NormedRows head_norm_of(const SLSTMBlock& p) {
  return {p.NH, p.D / p.NH, p.head_norm, p.eps};
}
inline int64_t rows_before(const SLSTMBlock& p) { return p.K > 0 ? p.K - 1 : 0; }

// The K-1 normed rows before step t0 of a sample.
inline void normed_before(const SLSTMBlock& p, int64_t b, int64_t t0, float* to) {
  const int64_t back = rows_before(p), D = p.D, given = std::max<int64_t>(0, back - t0);
  if (p.before != nullptr) copy_rows(p.before + (b * back + t0) * D, D, given, D, to, D);
  else fill(to, given * D, 0.0f);
  const int64_t own = back - given;
  norm_of(p).forward(p.x + (b * p.T + t0 - own) * D, D, own, to + given * D, D);
}
// The first of them that step t0 - 1 or a later one still reads.
inline int64_t first_seen(const SLSTMBlock& p, int64_t b, int64_t t0) {
  const int64_t back = rows_before(p);
  for (int64_t j = back - 1; j >= 0 && p.reset != nullptr && t0 - back + j >= 0; --j)
    if (p.reset[b * p.T + t0 - back + j]) return j;
  return 0;
}

// The convolution's state after x: (K-1, D) of one sample.
inline void last_inputs(const SLSTMBlock& p, int64_t b, float* to) {
  normed_before(p, b, p.T, to);
  fill(to, first_seen(p, b, p.T) * p.D, 0.0f);
}
inline void last_inputs_back(const SLSTMBlock& p, int64_t b, const float* d_after, float* carry) {
  const int64_t back = rows_before(p), D = p.D, seen = first_seen(p, b, p.T);
  fill(carry, back * D, 0.0f);
  copy_rows(d_after + seen * D, D, back - seen, D, carry + seen * D, D);
}

inline void norm_and_convolve(const SLSTMBlock& p, const Chunk& c, const ChunkInputs& in) {
  const int64_t D = p.D, back = rows_before(p), own = c.steps * D;
  for (int64_t j = 0; j < c.samples; ++j) {
    const int64_t b = c.b0 + j;
    float *raw = in.raw + j * own, *window = in.window + (j * (back + c.steps) + back) * D;
    norm_of(p).forward(p.x + (b * p.T + c.t0) * D, D, c.steps, raw, D);
    if (p.K == 0) continue;
    normed_before(p, b, c.t0, window - back * D);
    copy_rows(raw, D, c.steps, D, window, D);
    int64_t* reach = in.reach + j * c.steps;
    compute_reach(p.reset == nullptr ? nullptr : p.reset + b * p.T, c.t0, c.steps, p.K, reach);
    float* preact = in.preact + j * own;
    convolve(window, D, c.steps, D, p.conv, p.conv_bias, p.K, reach, preact, D);
    for (int64_t d = 0; d < own; d += LANES) {
      const Vec v = load(preact + d);
      store(in.convolved + j * own + d, v * sigmoid(v).value);
    }
  }
}

// y = x + head norm of h; all rows of a chunk.
inline void add_head_norm(const SLSTMBlock& p, const Chunk& c, const float* h, float* y) {
  const int64_t D = p.D;
  head_norm_of(p).forward(h, D, c.rows(), y, D);
  for (int64_t j = 0; j < c.samples; ++j)
    add_rows(p.x + ((c.b0 + j) * p.T + c.t0) * D, D, c.steps, D, y + j * c.steps * D, D);
}
inline void head_norm_back(const SLSTMBlock& p, const Chunk& c, const float* h, const float* dy,
                           float* dh, const SLSTMBlockSums& sums) {
  head_norm_of(p).backward(h, p.D, c.rows(), dy, dh, p.D, sums.head_norm);
}

// dx (B, T, D) of a chunk from dy, the gradient of the residual stream after the layer, and from
// draw and dconvolved, which are overwritten. carry (samples, K-1, D) holds the gradients of this
// chunk's last rows from later chunks, and afterwards those of the rows before this chunk.
inline void inputs_back(const SLSTMBlock& p, const Chunk& c, const ChunkInputs& in, const float* dy,
                        float* draw, float* dconvolved, float* dwindow, float* carry, float* dx,
                        const SLSTMBlockSums& sums) {
  const int64_t D = p.D, back = rows_before(p), own = c.steps * D;
  for (int64_t j = 0; j < c.samples; ++j) {
    const int64_t at = ((c.b0 + j) * p.T + c.t0) * D;
    float *dpreact = dconvolved + j * own, *d = dwindow + back * D;
    copy_rows(draw + j * own, D, c.steps, D, d, D);
    if (p.K > 0) {
      const float *preact = in.preact + j * own;
      const float *window = in.window + (j * (back + c.steps) + back) * D;
      const int64_t* reach = in.reach + j * c.steps;
      float* carried = carry + j * back * D;
      for (int64_t e = 0; e < own; e += LANES) {
        const Vec v = load(preact + e);
        const Sigmoid gate = sigmoid(v);
        store(dpreact + e, load(dpreact + e) * gate.value * (1.0f + v * gate.complement));
      }
      fill(dwindow, back * D, 0.0f);
      add_rows(carried, D, back, D, d + (c.steps - back) * D, D);
      convolve_back(dpreact, c.steps, D, -back, c.steps, D, p.conv, p.K, reach, d, D);
      convolve_sums(dpreact, window, D, c.steps, D, p.K, reach, sums.conv, sums.conv_bias);
      copy_rows(dwindow, D, back, D, carried, D);
    } else {
      add_rows(dpreact, D, c.steps, D, d, D);
    }
    norm_of(p).backward(p.x + at, D, c.steps, d, d, D, sums.norm);
    for (int64_t e = 0; e < own; e += LANES)
      store(dx + at + e, load(d + e) + load(dy + j * own + e));
  }
}
