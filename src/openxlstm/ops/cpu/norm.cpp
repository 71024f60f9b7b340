// Layer norm on a CPU: hands out tiles of rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "isa.h"
#include "norm_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "norm_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

Norm arguments(const Tensor& x, const Tensor& weight, int64_t groups, double eps) {
  return {x.size(0), groups, x.size(1) / groups, static_cast<float>(eps), data(x), data(weight)};
}
// x (R, G·W), weight (G·W) → y (R, G·W).
Tensor norm(Tensor x, Tensor weight, int64_t groups, double eps) {
  Norm a = arguments(x, weight, groups, eps);
  Tensor y = fresh(x, {x.size(0), x.size(1)});
  a.y = data(y);
  for_each_task(OPENXLSTM_CALL(tiles, a.R), 0,
                [&](int64_t tile, float*) { OPENXLSTM_CALL(forward_tile, a, tile); });
  return y;
}

std::tuple<Tensor, Tensor> norm_grad(Tensor x, Tensor weight, int64_t groups, double eps,
                                     Tensor dy) {
  Norm a = arguments(x, weight, groups, eps);
  Tensor dx = fresh(x, {x.size(0), x.size(1)});
  a.dy = data(dy), a.dx = data(dx);
  Sums sums(OPENXLSTM_CALL(tiles, a.R), {x.size(1)});
  sums.for_each(0, [&](int64_t tile, float* const* part, float*) {
    OPENXLSTM_CALL(backward_tile, a, tile, part[0]);
  });
  return {dx, sums.total(x, 0, {x.size(1)}, 0)};
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def("norm(Tensor x, Tensor weight, int groups, float eps) -> Tensor");
  m.def(
      "norm_grad(Tensor x, Tensor weight, int groups, float eps, Tensor dy) -> (Tensor dx, "
      "Tensor d_weight)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("norm", TORCH_BOX(&openxlstm::norm));
  m.impl("norm_grad", TORCH_BOX(&openxlstm::norm_grad));
}
