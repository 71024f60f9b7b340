// The sLSTM's input on a CPU: packs the weights and hands out the tasks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "isa.h"
#include "slstm_input_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "slstm_input_kernel.h"
#include "each_isa.h"
#include "packing.h"

namespace openxlstm {
namespace {

// The arguments of both directions, and the packed weights that they point to.
struct Prepared {
  SLSTMInput a;
  std::vector<float> weight;
  PackedConv conv;
  int64_t ld;

  Prepared(const Tensor& x, const Tensor& weight_, const Tensor& bias,
           const std::optional<Tensor>& conv_weight, const std::optional<Tensor>& conv_bias,
           const std::optional<Tensor>& before, const std::optional<Tensor>& reset, bool backward)
      : ld(OPENXLSTM_CALL(row_floats, x.size(2))) {
    const int64_t NH = weight_.size(0), DH = weight_.size(3), K = conv_weight ? conv_weight->size(1) : 0;
    a = {x.size(0), x.size(1), NH, DH, K, data(x), data(before), mask(reset)};
    const int64_t size = OPENXLSTM_CALL(half_floats, DH, backward);
    weight.resize(NH * 2 * size);
    for_each_task(NH * 2, 0, [&](int64_t half, float*) {
      OPENXLSTM_CALL(pack_half, data(weight_) + half * 2 * DH * DH, DH, backward,
                     weight.data() + half * size);
    });
    if (K) conv.pack(*conv_weight, *conv_bias, ld);
    a.weight = weight.data(), a.bias = data(bias);
    a.conv = conv.weight.data(), a.conv_bias = conv.bias.data();
  }
  int64_t tasks() const { return a.B * OPENXLSTM_CALL(tiles, a.T); }
};

// x (B, T, D), weight (NH, 4, DH, DH), bias (NH, 4, DH), conv (D, K) and (D), before (B, K-1, D) →
// gates (B, T, NH, 4, DH).
Tensor slstm_input(Tensor x, Tensor weight, Tensor bias, std::optional<Tensor> conv_weight,
                   std::optional<Tensor> conv_bias, std::optional<Tensor> before,
                   std::optional<Tensor> reset) {
  Prepared p(x, weight, bias, conv_weight, conv_bias, before, reset, false);
  Tensor gates = fresh(x, {p.a.B, p.a.T, p.a.NH, 4, p.a.DH});
  p.a.gates = data(gates);
  for_each_task(p.tasks(), OPENXLSTM_CALL(forward_floats, p.a.NH, p.a.DH, p.a.K),
                [&](int64_t task, float* scratch) { OPENXLSTM_CALL(forward_task, p.a, task, scratch); });
  return gates;
}

// Gradients of x, weight, bias, conv_weight, conv_bias and before; empty for what there is not.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> slstm_input_grad(
    Tensor x, Tensor weight, Tensor bias, std::optional<Tensor> conv_weight,
    std::optional<Tensor> conv_bias, std::optional<Tensor> before, std::optional<Tensor> reset,
    Tensor dgates) {
  Prepared p(x, weight, bias, conv_weight, conv_bias, before, reset, true);
  const int64_t NH = p.a.NH, DH = p.a.DH, K = p.a.K, D = NH * DH;
  const int64_t WP = OPENXLSTM_CALL(padded, DH), GP = OPENXLSTM_CALL(padded, 4 * DH);
  Tensor dx = fresh(x, {p.a.B, p.a.T, D});
  Tensor dbefore = fresh(x, {p.a.B, K - 1, D}, before.has_value());
  p.a.dgates = data(dgates), p.a.dx = data(dx), p.a.dbefore = before ? data(dbefore) : nullptr;
  Sums sums(p.tasks(), {NH * 4 * DH * WP, NH * GP, K * p.ld, p.ld});
  sums.for_each(OPENXLSTM_CALL(backward_floats, NH, DH, K),
                [&](int64_t task, float* const* part, float* scratch) {
                  OPENXLSTM_CALL(backward_task, p.a, task, {part[0], part[1], part[2], part[3]},
                                 scratch);
                });
  return {dx, sums.total(x, 0, {NH, 4, DH, DH}, WP), sums.total(x, 1, {NH, 4 * DH}, GP),
          transposed(sums.total(x, 2, {K, D}, p.ld)), sums.total(x, 3, {K ? D : 0}, p.ld), dbefore};
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "slstm_input(Tensor x, Tensor weight, Tensor bias, Tensor? conv_weight, Tensor? conv_bias, "
      "Tensor? before, Tensor? reset) -> Tensor");
  m.def(
      "slstm_input_grad(Tensor x, Tensor weight, Tensor bias, Tensor? conv_weight, "
      "Tensor? conv_bias, Tensor? before, Tensor? reset, Tensor dgates) -> (Tensor dx, "
      "Tensor d_weight, Tensor d_bias, Tensor d_conv_weight, Tensor d_conv_bias, Tensor d_before)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("slstm_input", TORCH_BOX(&openxlstm::slstm_input));
  m.impl("slstm_input_grad", TORCH_BOX(&openxlstm::slstm_input_grad));
}
