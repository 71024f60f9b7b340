// An sLSTM block on a CPU, fused. A task takes some samples through norm, convolution, scan, head
// norm and feed-forward, a chunk of steps at a time, so that everything between stays in the core's
// cache. What the backward of the scan and of the feed-forward reads is written to memory.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "block_parts.h"
#include "checks.h"
#include "conv_args.h"
#include "isa.h"
#include "packing.h"
#include "slstm_block_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "slstm_block_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

// The arguments of both directions, and the packed weights that they point to.
struct Whole {
  SLSTMBlock p;
  FeedForward ff;
  int64_t tiles, steps;  // number of tasks; steps per chunk
  PackedConv conv;
  Floats R, W, gate, value, down;

  Whole(const Checks& check, const Tensor& x, const Tensor& norm, const MaybeTensor& conv_weight,
        const MaybeTensor& conv_bias, const Tensor& W_, const Tensor& R_, const Tensor& bias,
        const Tensor& head_norm, const Tensor& ff_norm, const Tensor& up_, const Tensor& down_,
        const MaybeTensor& up_bias, const MaybeTensor& down_bias, const MaybeTensor& before,
        const MaybeTensor& reset, double eps, int64_t tiles_, int64_t steps_, bool backward)
      : tiles(tiles_), steps(steps_) {
    const int64_t B = check.size({"x", x}, 3, 0, 0), T = check.size({"x", x}, 3, 1, 0);
    const int64_t D = check.size({"x", x}, 3, 2), NH = check.size({"W", W_}, 4, 0), DH = D / NH;
    const int64_t F = check.size({"down", down_}, 2, 1);
    const int64_t K = conv_weight ? check.size({"conv_weight", *conv_weight}, 2, 1) : 0;
    check.multiple("the width", D, 16);
    check.multiple("the width", D, NH);
    check.in_range("the kernel size", K, 0, kMaxKernel);
    check.in_range("tiles", tiles, 1, std::max<int64_t>(B, 1));
    check.in_range("steps", steps, 1, std::max<int64_t>(T, 1));
    check.only_with({"conv_bias", conv_bias}, {"conv_weight", conv_weight});
    check.only_with({"before", before}, {"conv_weight", conv_weight});
    check.floats({B, T, D}, {{"x", x}});
    check.floats({D}, {{"norm", norm}, {"head_norm", head_norm}, {"ff_norm", ff_norm},
                       {"conv_bias", conv_bias}, {"down_bias", down_bias}});
    check.floats({D, K}, {{"conv_weight", conv_weight}});
    check.floats({NH, 4, DH, DH}, {{"W", W_}, {"R", R_}});
    check.floats({NH, 4, DH}, {{"bias", bias}});
    check.floats({2 * F, D}, {{"up", up_}});
    check.floats({D, F}, {{"down", down_}});
    check.floats({2 * F}, {{"up_bias", up_bias}});
    check.floats({B, K - 1, D}, {{"before", before}});
    check.mask({B, T}, {"reset", reset});
    R = slstm_packed_recurrent(R_, backward), W = slstm_packed_input(W_, backward);
    p = {B, T, D, NH, K, static_cast<float>(eps), data(x)};
    p.before = data(before), p.reset = mask(reset);
    p.norm = data(norm), p.head_norm = data(head_norm);
    if (K) conv.pack(*conv_weight, conv_bias, D);
    p.conv = conv.weight.data(), p.conv_bias = conv.bias.data();
    const auto pack = backward ? packed_backward : packed_forward;
    gate = pack(data(up_), F, D), value = pack(data(up_) + F * D, F, D);
    down = pack(data(down_), D, F);
    ff = {0, D, F, false, true, false, static_cast<float>(eps)};
    ff.norm = data(ff_norm);
    ff.gate = gate.data(), ff.value = value.data(), ff.down = down.data();
    ff.gate_bias = data(up_bias), ff.down_bias = data(down_bias);
    if (up_bias) ff.value_bias = ff.gate_bias + F;
  }
  // The feed-forward of a chunk; preact (B·T, 2F) are all rows' pre-activations, or null.
  FeedForward feedforward(const Chunk& c, float* preact) const {
    FeedForward of = ff;
    of.R = c.rows();
    if (preact != nullptr) of.gate_preact = preact + row(c) * 2 * ff.F;
    if (preact != nullptr) of.value_preact = of.gate_preact + ff.F;
    return of;
  }
  int64_t chunks() const { return (p.T + steps - 1) / steps; }
  int64_t back() const { return p.K > 0 ? p.K - 1 : 0; }
  int64_t first_sample(int64_t tile) const { return tile * p.B / tiles; }
  int64_t most_samples() const { return (p.B + tiles - 1) / tiles; }
  Chunk chunk(int64_t tile, int64_t index) const {
    const int64_t b0 = first_sample(tile), t0 = index * steps;
    return {b0, first_sample(tile + 1) - b0, t0, std::min(steps, p.T - t0)};
  }
  // The first row of a chunk where rows are ordered by task, then by chunk.
  int64_t row(const Chunk& c) const { return c.b0 * p.T + c.samples * c.t0; }
  // The same for the states before chunks.
  int64_t state_row(const Chunk& c) const { return c.b0 * chunks() + c.samples * (c.t0 / steps); }

  int64_t inputs_floats() const {
    const int64_t rows = most_samples() * steps;
    return 3 * rows * p.D + most_samples() * (back() + steps) * p.D + 3 * rows + 16 * 6;
  }
  ChunkInputs take_inputs(Arena& arena) const {
    const int64_t rows = most_samples() * steps;
    ChunkInputs in;
    in.raw = in.convolved = arena.take(rows * p.D);
    if (p.K == 0) return in;
    in.convolved = arena.take(rows * p.D);
    in.window = arena.take(most_samples() * (back() + steps) * p.D);
    in.preact = arena.take(rows * p.D);
    in.reach = reinterpret_cast<int64_t*>(arena.take(2 * rows));
    return in;
  }
  // The resets of a chunk, copied to scratch memory, or null.
  const bool* resets(const Chunk& c, float* scratch) const {
    if (p.reset == nullptr) return nullptr;
    bool* to = reinterpret_cast<bool*>(scratch);
    for (int64_t j = 0; j < c.samples; ++j)
      std::copy_n(p.reset + (c.b0 + j) * p.T + c.t0, c.steps, to + j * c.steps);
    return to;
  }
};

// Rows (4, samples, D) of a state (4, B, D), and back.
void take_state(const float* state, int64_t B, int64_t D, int64_t b0, int64_t samples, float* to) {
  for (int64_t part = 0; part < 4; ++part)
    std::copy_n(state + (part * B + b0) * D, samples * D, to + part * samples * D);
}
void put_state(const float* from, int64_t B, int64_t D, int64_t b0, int64_t samples, float* state) {
  for (int64_t part = 0; part < 4; ++part)
    std::copy_n(from + part * samples * D, samples * D, state + (part * B + b0) * D);
}
// Rows of a chunk (samples, steps, D) of x (B, T, D), and back.
void take_rows(const float* x, const SLSTMBlock& p, const Chunk& c, float* to) {
  for (int64_t j = 0; j < c.samples; ++j)
    std::copy_n(x + ((c.b0 + j) * p.T + c.t0) * p.D, c.steps * p.D, to + j * c.steps * p.D);
}
void put_rows(const float* from, const SLSTMBlock& p, const Chunk& c, float* x) {
  for (int64_t j = 0; j < c.samples; ++j)
    std::copy_n(from + j * c.steps * p.D, c.steps * p.D, x + ((c.b0 + j) * p.T + c.t0) * p.D);
}
// Prefetches the rows of the next chunk, which hardware does not.
void ask_for_rows(const float* x, const SLSTMBlock& p, const Chunk& c) {
  for (int64_t j = 0; j < c.samples; ++j)
    for (int64_t d = 0; d < c.steps * p.D; d += 16)
      __builtin_prefetch(x + ((c.b0 + j) * p.T + c.t0) * p.D + d, 0, 2);
}
void ask_for(const float* x, int64_t floats) {
  for (int64_t d = 0; d < floats; d += 16) __builtin_prefetch(x + d, 0, 2);
}

// x (B, T, D), weights as in the unfused ops, before (B, K-1, D), state (4, B, NH, DH), reset (B,
// T) → y (B, T, D), the convolution's and the scan's state after it, and the tensors for the
// backward, empty unless `save`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> slstm_block(
    Tensor x, Tensor norm, MaybeTensor conv_weight, MaybeTensor conv_bias, Tensor W, Tensor R,
    Tensor bias, Tensor head_norm, Tensor ff_norm, Tensor up, Tensor down, MaybeTensor up_bias,
    MaybeTensor down_bias, MaybeTensor before, Tensor state, MaybeTensor reset, bool exp_gate,
    double eps, int64_t tiles, int64_t steps, bool save) {
  const Checks check("slstm_block");
  const Whole w(check, x, norm, conv_weight, conv_bias, W, R, bias, head_norm, ff_norm, up, down,
                up_bias, down_bias, before, reset, eps, tiles, steps, false);
  const SLSTMBlock& p = w.p;
  const int64_t B = p.B, T = p.T, D = p.D, F = w.ff.F, NH = p.NH, DH = D / NH;
  check.floats({4, B, NH, DH}, {{"state", state}});
  Tensor y = fresh(x, {B, T, D}), final = torch::stable::clone(state);
  Tensor after = fresh(x, {B, w.back(), D}, p.K > 0);
  Tensor h = fresh(x, {B * T, D}, save), saved = fresh(x, {B * T, kSaved, D}, save);
  Tensor preact = fresh(x, {B * T, 2 * F}, save);
  Tensor states = fresh(x, {B * w.chunks(), 4, D}, save);
  const int64_t rows = w.most_samples() * steps, samples = w.most_samples();
  const int64_t floats = w.inputs_floats() + 4 * samples * D + 3 * rows * D + rows + 16 * 5 +
                         std::max(slstm_forward_floats(DH), feedforward_forward_floats(D, F));
  for_each_task(tiles, floats, [&](int64_t tile, float* scratch) {
    Arena arena{scratch};
    const ChunkInputs in = w.take_inputs(arena);
    float *carried = arena.take(4 * samples * D), *h_chunk = arena.take(rows * D);
    float *x_layer = arena.take(rows * D), *y_chunk = arena.take(rows * D);
    float* reset_chunk = arena.take(rows);
    const int64_t b0 = w.first_sample(tile), count = w.first_sample(tile + 1) - b0;
    take_state(data(final), B, D, b0, count, carried);
    for (int64_t index = 0; index < w.chunks(); ++index) {
      const Chunk c = w.chunk(tile, index);
      const int64_t row = w.row(c);
      OPENXLSTM_CALL(norm_and_convolve, p, c, in);
      if (index + 1 < w.chunks()) ask_for_rows(p.x, p, w.chunk(tile, index + 1));
      SLSTMForward f{count, c.steps, NH, DH, exp_gate, nullptr};
      f.convolved = in.convolved, f.raw = in.raw, f.input = w.W.data(), f.bias = data(bias);
      f.reset = w.resets(c, reset_chunk), f.state = carried;
      f.h = save ? data(h) + row * D : h_chunk;
      f.saved = save ? data(saved) + row * kSaved * D : nullptr;
      if (save) std::copy_n(carried, 4 * count * D, data(states) + w.state_row(c) * 4 * D);
      for (int64_t task = 0; task < slstm_num_tasks(count, NH); ++task)
        slstm_forward_task(f, task, w.R.data(), arena.next);

      OPENXLSTM_CALL(add_head_norm, p, c, f.h, x_layer);
      FeedForward ff = w.feedforward(c, save ? data(preact) : nullptr);
      ff.x = x_layer, ff.y = y_chunk;
      for (int64_t part = 0; part < feedforward_tiles(ff.R); ++part)
        feedforward_forward_tile(ff, part, arena.next);
      put_rows(y_chunk, p, c, data(y));
    }
    put_state(carried, B, D, b0, count, data(final));
    for (int64_t b = b0; b < b0 + count && p.K > 0; ++b)
      OPENXLSTM_CALL(last_inputs, p, b, data(after) + b * w.back() * D);
  });
  return {y, after, final, h, saved, preact, states};
}

// Gradients of the arguments of `slstm_block`, empty for one that was not given; the state's
// gradients are as in slstm_grad.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensor, Tensor, Tensor, Tensor>
slstm_block_grad(Tensor x, Tensor norm, MaybeTensor conv_weight, MaybeTensor conv_bias, Tensor W,
                 Tensor R, Tensor bias, Tensor head_norm, Tensor ff_norm, Tensor up, Tensor down,
                 MaybeTensor up_bias, MaybeTensor down_bias, MaybeTensor before, MaybeTensor reset,
                 double eps, int64_t tiles, int64_t steps, Tensor final, Tensor h, Tensor saved,
                 Tensor preact, Tensor states, Tensor dy, MaybeTensor d_after, Tensor d_final) {
  const Checks check("slstm_block_grad");
  const Whole w(check, x, norm, conv_weight, conv_bias, W, R, bias, head_norm, ff_norm, up, down,
                up_bias, down_bias, before, reset, eps, tiles, steps, true);
  const SLSTMBlock& p = w.p;
  const int64_t B = p.B, T = p.T, D = p.D, F = w.ff.F, K = p.K, NH = p.NH, DH = D / NH;
  check.floats({4, B, NH, DH}, {{"final", final}, {"d_final", d_final}});
  check.floats({B * T, D}, {{"h", h}});
  check.floats({B * T, kSaved, D}, {{"saved", saved}});
  check.floats({B * T, 2 * F}, {{"preact", preact}});
  check.floats({B * w.chunks(), 4, D}, {{"states", states}});
  check.floats({B, T, D}, {{"dy", dy}});
  check.only_with({"d_after", d_after}, {"conv_weight", conv_weight});
  check.floats({B, K - 1, D}, {{"d_after", d_after}});
  const int64_t DP = OPENXLSTM_CALL(padded, DH), GP = OPENXLSTM_CALL(padded, 4 * DH);
  const int64_t FP = OPENXLSTM_CALL(padded, F), UP = 2 * FP;
  Tensor dx = fresh(x, {B, T, D}), d_state = torch::stable::clone(d_final);
  Tensor dbefore = fresh(x, {B, w.back(), D}, before.has_value());
  const int64_t rows = w.most_samples() * steps, samples = w.most_samples();
  const int64_t floats = w.inputs_floats() + samples * (12 + w.back()) * D + 6 * rows * D +
                         (w.back() + steps) * D + rows + 16 * 12 +
                         std::max(slstm_backward_floats(DH), feedforward_backward_floats(D, F));
  const int64_t weights = NH * 4 * DH * DP;
  Sums sums(tiles, {weights, NH * GP, weights, K * D, D, D, D, 2 * F * D, D * FP, UP, D, D});
  sums.for_each(floats, [&](int64_t tile, float* const* part, float* scratch) {
    const SLSTMSums of_scan{part[0], part[1], part[2]};
    const SLSTMBlockSums own{part[5], part[6], part[3], part[4]};
    const FeedForwardSums of_ff{part[7], part[8], part[9], part[10], part[11], nullptr};
    Arena arena{scratch};
    const ChunkInputs in = w.take_inputs(arena);
    float *d_carried = arena.take(4 * samples * D), *last = arena.take(4 * samples * D);
    float *carry = arena.take(samples * w.back() * D), *dwindow = arena.take((w.back() + steps) * D);
    float *x_layer = arena.take(rows * D), *dy_chunk = arena.take(rows * D);
    float *dx_layer = arena.take(rows * D), *dh = arena.take(rows * D);
    float *draw = arena.take(rows * D), *dconvolved = arena.take(rows * D);
    float* reset_chunk = arena.take(rows);
    const int64_t b0 = w.first_sample(tile), count = w.first_sample(tile + 1) - b0;
    take_state(data(d_state), B, D, b0, count, d_carried);
    take_state(data(final), B, D, b0, count, last);
    if (d_after)
      for (int64_t j = 0; j < count; ++j)
        OPENXLSTM_CALL(last_inputs_back, p, b0 + j, data(*d_after) + (b0 + j) * w.back() * D,
                       carry + j * w.back() * D);
    else std::fill_n(carry, count * w.back() * D, 0.0f);
    for (int64_t index = w.chunks() - 1; index >= 0; --index) {
      const Chunk c = w.chunk(tile, index);
      const int64_t row = w.row(c);
      const float* h_chunk = data(h) + row * D;
      OPENXLSTM_CALL(norm_and_convolve, p, c, in);
      OPENXLSTM_CALL(add_head_norm, p, c, h_chunk, x_layer);
      take_rows(data(dy), p, c, dy_chunk);
      FeedForward ff = w.feedforward(c, data(preact));
      ff.x = x_layer, ff.dy = dy_chunk, ff.dx = dx_layer;
      for (int64_t each = 0; each < feedforward_tiles(ff.R); ++each)
        feedforward_backward_tile(ff, each, of_ff, arena.next);
      if (index > 0) {
        const Chunk next = w.chunk(tile, index - 1);
        ask_for_rows(p.x, p, next);
        ask_for_rows(data(dy), p, next);
        ask_for(data(h) + w.row(next) * D, next.rows() * D);
      }
      OPENXLSTM_CALL(head_norm_back, p, c, h_chunk, dx_layer, dh, own);

      SLSTMBackward f{count, c.steps, NH, DH};
      f.reset = w.resets(c, reset_chunk), f.h = h_chunk, f.saved = data(saved) + row * kSaved * D;
      f.before = data(states) + w.state_row(c) * 4 * D;
      f.after = index + 1 < w.chunks() ? f.before + 4 * count * D : last;
      f.dh = dh, f.dstate = d_carried, f.convolved = in.convolved, f.raw = in.raw;
      f.input = w.W.data(), f.dconvolved = dconvolved, f.draw = draw;
      for (int64_t task = 0; task < slstm_num_tasks(count, NH); ++task)
        slstm_backward_task(f, task, w.R.data(), of_scan, arena.next);
      OPENXLSTM_CALL(inputs_back, p, c, in, dx_layer, draw, dconvolved, dwindow, carry, data(dx), own);
    }
    put_state(d_carried, B, D, b0, count, data(d_state));
    if (before) std::copy_n(carry, count * w.back() * D, data(dbefore) + b0 * w.back() * D);
  });
  return {dx,
          sums.total(x, 5, {D}, 0),
          transposed(sums.total(x, 3, {K, D}, D)),
          sums.total(x, 4, {conv_bias ? D : 0}, D),
          sums.total(x, 2, {NH, 4, DH, DH}, DP),
          sums.total(x, 0, {NH, 4, DH, DH}, DP),
          sums.total(x, 1, {NH, 4 * DH}, GP),
          sums.total(x, 6, {D}, 0),
          sums.total(x, 11, {D}, 0),
          sums.total(x, 7, {2 * F, D}, D),
          sums.total(x, 8, {D, F}, FP),
          sums.total(x, 9, {up_bias ? 2 * F : 0}, UP),
          sums.total(x, 10, {down_bias ? D : 0}, D),
          dbefore,
          d_state};
}

}  // namespace
}  // namespace openxlstm

#define WEIGHTS                                                                                  \
  "Tensor x, Tensor norm, Tensor? conv_weight, Tensor? conv_bias, Tensor W, Tensor R, "          \
  "Tensor bias, Tensor head_norm, Tensor ff_norm, Tensor up, Tensor down, Tensor? up_bias, " \
  "Tensor? down_bias, Tensor? before, "

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "slstm_block(" WEIGHTS "Tensor state, Tensor? reset, bool exp_gate, float eps, int tiles, "
      "int steps, bool save) -> (Tensor y, Tensor after, Tensor final, Tensor h, Tensor saved, "
      "Tensor preact, Tensor states)");
  m.def(
      "slstm_block_grad(" WEIGHTS "Tensor? reset, float eps, int tiles, int steps, Tensor final, "
      "Tensor h, Tensor saved, Tensor preact, Tensor states, Tensor dy, Tensor? d_after, "
      "Tensor d_final) -> (Tensor dx, Tensor d_norm, Tensor d_conv_weight, Tensor d_conv_bias, "
      "Tensor dW, Tensor dR, Tensor dbias, Tensor d_head_norm, Tensor d_ff_norm, Tensor d_up, "
      "Tensor d_down, Tensor d_up_bias, Tensor d_down_bias, Tensor d_before, Tensor d_state)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("slstm_block", TORCH_BOX(&openxlstm::slstm_block));
  m.impl("slstm_block_grad", TORCH_BOX(&openxlstm::slstm_block_grad));
}
