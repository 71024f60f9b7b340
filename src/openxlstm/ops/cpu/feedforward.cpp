// The gated feed-forward on a CPU: packs the weights and hands out tiles of rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "block_parts.h"
#include "checks.h"
#include "feedforward_args.h"
#include "isa.h"
#include "packing.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "feedforward_kernel.h"
#include "each_isa.h"

namespace openxlstm {

int64_t feedforward_tiles(int64_t rows) { return OPENXLSTM_CALL(row_tiles, rows); }
int64_t feedforward_forward_floats(int64_t D, int64_t F) {
  return OPENXLSTM_CALL(forward_floats, D, F);
}
int64_t feedforward_backward_floats(int64_t D, int64_t F) {
  return OPENXLSTM_CALL(backward_floats, D, F);
}
void feedforward_forward_tile(const FeedForward& a, int64_t tile, float* scratch) {
  OPENXLSTM_CALL(forward_tile, a, tile, scratch);
}
void feedforward_backward_tile(const FeedForward& a, int64_t tile, const FeedForwardSums& sums,
                               float* scratch) {
  OPENXLSTM_CALL(backward_tile, a, tile, sums, scratch);
}

namespace {

// The arguments of both directions, and the packed weights that they point to.
struct Prepared {
  FeedForward a;
  Floats gate, value, down;

  Prepared(const Checks& check, const Tensor& x, const MaybeTensor& norm, const MaybeTensor& norm_bias,
           const Tensor& up, const MaybeTensor& value_, const Tensor& down_,
           const MaybeTensor& up_bias, const MaybeTensor& value_bias,
           const MaybeTensor& down_bias, bool silu, bool residual, bool rms, double eps,
           bool backward) {
    const int64_t R = check.size({"x", x}, 2, 0, 0), D = check.size({"x", x}, 2, 1);
    const int64_t F = check.size({"down", down_}, 2, 1), U = value_ ? F : 2 * F;
    check.only_with({"norm_bias", norm_bias}, {"norm", norm});
    check.only_with({"value_bias", value_bias}, {"value", value_});
    check.floats({R, D}, {{"x", x}});
    check.floats({D}, {{"norm", norm}, {"norm_bias", norm_bias}, {"down_bias", down_bias}});
    check.floats({U, D}, {{"up", up}});
    check.floats({F, D}, {{"value", value_}});
    check.floats({D, F}, {{"down", down_}});
    check.floats({U}, {{"up_bias", up_bias}});
    check.floats({F}, {{"value_bias", value_bias}});
    const auto pack = backward ? packed_backward : packed_forward;
    gate = pack(data(up), F, D), value = pack(value_ ? data(*value_) : data(up) + F * D, F, D);
    down = pack(data(down_), D, F);
    a = {R, D, F, silu, residual, rms, static_cast<float>(eps)};
    a.x = data(x), a.norm = data(norm), a.norm_bias = data(norm_bias);
    a.gate = gate.data(), a.value = value.data(), a.down = down.data();
    a.gate_bias = data(up_bias), a.value_bias = data(value_bias);
    if (!value_ && up_bias) a.value_bias = data(up_bias) + F;
    a.down_bias = data(down_bias);
  }
  void put_preact(const Tensor& preact) {
    a.gate_preact = data(preact), a.value_preact = data(preact) + a.F;
  }
};

// x (R, D), norm and its bias (D), up (2F, D) or up and value (F, D) each, down (D, F), biases
// alike → y (R, D), and the pre-activations for the backward (R, 2F), empty unless `save`.
std::tuple<Tensor, Tensor> feedforward(Tensor x, MaybeTensor norm, MaybeTensor norm_bias, Tensor up,
                                       MaybeTensor value, Tensor down, MaybeTensor up_bias,
                                       MaybeTensor value_bias, MaybeTensor down_bias, bool silu,
                                       bool residual, bool rms, double eps, bool save) {
  Prepared prepared(Checks("feedforward"), x, norm, norm_bias, up, value, down, up_bias, value_bias,
                    down_bias, silu, residual, rms, eps, false);
  FeedForward& a = prepared.a;
  Tensor y = fresh(x, {a.R, a.D}), preact = fresh(x, {a.R, 2 * a.F}, save);
  a.y = data(y);
  if (save) prepared.put_preact(preact);
  for_each_task(feedforward_tiles(a.R), feedforward_forward_floats(a.D, a.F),
                [&](int64_t tile, float* scratch) { feedforward_forward_tile(a, tile, scratch); });
  return {y, preact};
}

// Gradients of the forward's tensors in their order; empty for one that was not given.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> feedforward_grad(
    Tensor x, MaybeTensor norm, MaybeTensor norm_bias, Tensor up, MaybeTensor value, Tensor down,
    MaybeTensor up_bias, MaybeTensor value_bias, MaybeTensor down_bias, bool silu, bool residual,
    bool rms, double eps, Tensor preact, Tensor dy) {
  const Checks check("feedforward_grad");
  Prepared prepared(check, x, norm, norm_bias, up, value, down, up_bias, value_bias, down_bias, silu,
                    residual, rms, eps, true);
  FeedForward& a = prepared.a;
  check.floats({a.R, 2 * a.F}, {{"preact", preact}});
  check.floats({a.R, a.D}, {{"dy", dy}});
  const int64_t D = a.D, F = a.F, DP = OPENXLSTM_CALL(padded, D), FP = OPENXLSTM_CALL(padded, F);
  Tensor dx = fresh(x, {a.R, D});
  prepared.put_preact(preact);
  a.dy = data(dy), a.dx = data(dx);
  Sums sums(feedforward_tiles(a.R), {2 * F * DP, D * FP, 2 * FP, DP, DP, DP});
  sums.for_each(feedforward_backward_floats(D, F),
                [&](int64_t tile, float* const* part, float* scratch) {
                  const FeedForwardSums s{part[0], part[1], part[2], part[3], part[4], part[5]};
                  feedforward_backward_tile(a, tile, s, scratch);
                });
  return {dx, sums.total(x, 4, {norm ? D : 0}, DP), sums.total(x, 5, {norm_bias ? D : 0}, DP),
          sums.total(x, 0, {value ? F : 2 * F, D}, DP), value ? sums.total(x, 0, {F, D}, DP, F) : fresh(x, {0}),
          sums.total(x, 1, {D, F}, FP),
          sums.total(x, 2, {up_bias ? (value ? F : 2 * F) : 0}, 0),
          sums.total(x, 2, {value_bias ? F : 0}, F, 1), sums.total(x, 3, {down_bias ? D : 0}, DP)};
}

}  // namespace
}  // namespace openxlstm

#define OPERANDS \
  "Tensor x, Tensor? norm, Tensor? norm_bias, Tensor up, Tensor? value, Tensor down, " \
  "Tensor? up_bias, Tensor? value_bias, Tensor? down_bias, bool silu, bool residual, bool rms, " \
  "float eps"

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def("feedforward(" OPERANDS ", bool save) -> (Tensor y, Tensor preact)");
  m.def(
      "feedforward_grad(" OPERANDS ", Tensor preact, Tensor dy) -> (Tensor dx, Tensor d_norm, "
      "Tensor d_norm_bias, Tensor d_up, Tensor d_value, Tensor d_down, Tensor d_up_bias, "
      "Tensor d_value_bias, Tensor d_down_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("feedforward", TORCH_BOX(&openxlstm::feedforward));
  m.impl("feedforward_grad", TORCH_BOX(&openxlstm::feedforward_grad));
}
