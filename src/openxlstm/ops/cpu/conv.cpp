// The causal convolution on a CPU: hands out tiles of rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "checks.h"
#include "conv_args.h"
#include "isa.h"
#include "packing.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "conv_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

// The arguments of both directions, and the packed weights that they point to.
struct Prepared {
  Conv a;
  PackedConv packed;
  int64_t ld;

  Prepared(const Checks& check, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
           const MaybeTensor& before, const MaybeTensor& reset, bool silu) {
    const int64_t B = check.size({"x", x}, 3, 0, 0), T = check.size({"x", x}, 3, 1, 0);
    const int64_t D = check.size({"x", x}, 3, 2), K = check.size({"weight", weight}, 2, 1);
    check.in_range("the kernel size", K, 1, kMaxKernel);
    check.floats({B, T, D}, {{"x", x}});
    check.floats({D, K}, {{"weight", weight}});
    check.floats({D}, {{"bias", bias}});
    check.floats({B, K - 1, D}, {{"before", before}});
    check.mask({B, T}, {"reset", reset});
    a = {B, T, D, K, silu, data(x), data(before), mask(reset)};
    ld = OPENXLSTM_CALL(row_floats, D);
    packed.pack(weight, bias, ld);
    a.weight = packed.weight.data(), a.bias = packed.bias.data();
  }
  int64_t tasks() const { return a.B * OPENXLSTM_CALL(tiles, a.T); }
};

// x (B, T, D), weight (D, K), bias (D), before (B, K-1, D), reset (B, T) → y (B, T, D).
Tensor conv(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor before, MaybeTensor reset,
            bool silu) {
  Prepared p(Checks("conv"), x, weight, bias, before, reset, silu);
  Tensor y = fresh(x, {p.a.B, p.a.T, p.a.D});
  p.a.y = data(y);
  for_each_task(p.tasks(), OPENXLSTM_CALL(forward_floats, p.a.D, p.a.K),
                [&](int64_t task, float* scratch) { OPENXLSTM_CALL(forward_task, p.a, task, scratch); });
  return y;
}

// Gradients of x, weight, bias and before; empty for an input that was not given.
std::tuple<Tensor, Tensor, Tensor, Tensor> conv_grad(Tensor x, Tensor weight, MaybeTensor bias,
                                                     MaybeTensor before, MaybeTensor reset,
                                                     bool silu, Tensor dy) {
  const Checks check("conv_grad");
  Prepared p(check, x, weight, bias, before, reset, silu);
  const int64_t D = p.a.D, K = p.a.K;
  check.floats({p.a.B, p.a.T, D}, {{"dy", dy}});
  Tensor dx = fresh(x, {p.a.B, p.a.T, D}), dbefore = fresh(x, {p.a.B, K - 1, D}, before.has_value());
  p.a.dy = data(dy), p.a.dx = data(dx), p.a.dbefore = before ? data(dbefore) : nullptr;
  Sums sums(p.tasks(), {K * p.ld, p.ld});
  sums.for_each(OPENXLSTM_CALL(backward_floats, D, K),
                [&](int64_t task, float* const* part, float* scratch) {
                  OPENXLSTM_CALL(backward_task, p.a, task, part[0], part[1], scratch);
                });
  return {dx, transposed(sums.total(x, 0, {K, D}, p.ld)), sums.total(x, 1, {bias ? D : 0}, p.ld),
          dbefore};
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "conv(Tensor x, Tensor weight, Tensor? bias, Tensor? before, Tensor? reset, bool silu) "
      "-> Tensor");
  m.def(
      "conv_grad(Tensor x, Tensor weight, Tensor? bias, Tensor? before, Tensor? reset, bool silu, "
      "Tensor dy) -> (Tensor dx, Tensor d_weight, Tensor d_bias, Tensor d_before)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("conv", TORCH_BOX(&openxlstm::conv));
  m.impl("conv_grad", TORCH_BOX(&openxlstm::conv_grad));
}
