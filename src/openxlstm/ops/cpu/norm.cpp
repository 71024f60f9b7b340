// Norms on a CPU: hands out tiles of rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "checks.h"
#include "isa.h"
#include "norm_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "norm_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

Norm arguments(const Checks& check, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
               int64_t groups, bool rms, double eps) {
  const int64_t R = check.size({"x", x}, 2, 0, 0), width = check.size({"x", x}, 2, 1);
  check.floats({R, width}, {{"x", x}});
  check.floats({width}, {{"weight", weight}, {"bias", bias}});
  check.in_range("groups", groups, 1, width);
  check.multiple("the width", width, groups);
  return {R, groups, width / groups, static_cast<float>(eps), rms, data(x), data(weight), data(bias)};
}
// x (R, G·W), weight and bias (G·W) → y (R, G·W).
Tensor norm(Tensor x, Tensor weight, MaybeTensor bias, int64_t groups, bool rms, double eps) {
  Norm a = arguments(Checks("norm"), x, weight, bias, groups, rms, eps);
  Tensor y = fresh(x, {x.size(0), x.size(1)});
  a.y = data(y);
  for_each_task(OPENXLSTM_CALL(tiles, a.R), 0,
                [&](int64_t tile, float*) { OPENXLSTM_CALL(forward_tile, a, tile); });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> norm_grad(Tensor x, Tensor weight, MaybeTensor bias,
                                             int64_t groups, bool rms, double eps, Tensor dy) {
  const Checks check("norm_grad");
  Norm a = arguments(check, x, weight, bias, groups, rms, eps);
  const int64_t width = x.size(1);
  check.floats({a.R, width}, {{"dy", dy}});
  Tensor dx = fresh(x, {x.size(0), width});
  a.dy = data(dy), a.dx = data(dx);
  Sums sums(OPENXLSTM_CALL(tiles, a.R), {width, width});
  sums.for_each(0, [&](int64_t tile, float* const* part, float*) {
    OPENXLSTM_CALL(backward_tile, a, tile, part[0], part[1]);
  });
  return {dx, sums.total(x, 0, {width}, 0), sums.total(x, 1, {bias ? width : 0}, 0)};
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "norm(Tensor x, Tensor weight, Tensor? bias, int groups, bool rms, float eps) -> Tensor");
  m.def(
      "norm_grad(Tensor x, Tensor weight, Tensor? bias, int groups, bool rms, float eps, "
      "Tensor dy) -> (Tensor dx, Tensor d_weight, Tensor d_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("norm", TORCH_BOX(&openxlstm::norm));
  m.impl("norm_grad", TORCH_BOX(&openxlstm::norm_grad));
}
