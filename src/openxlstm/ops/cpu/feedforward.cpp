// The gated feed-forward on a CPU: packs the weights and hands out tiles of rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "block_parts.h"
#include "feedforward_args.h"
#include "isa.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "feedforward_kernel.h"
#include "each_isa.h"
#include "packing.h"

namespace openxlstm {

Floats feedforward_packed_up(const Tensor& up, bool backward) {
  const int64_t rows = up.size(0), D = up.size(1);
  return backward ? packed(data(up), D, 1, rows, D) : packed(data(up), 1, D, D, rows);
}
Floats feedforward_packed_down(const Tensor& down, bool backward) {
  const int64_t D = down.size(0), F = down.size(1);
  return backward ? packed(data(down), F, 1, D, F) : packed(data(down), 1, F, F, D);
}

int64_t feedforward_tiles(int64_t rows) { return OPENXLSTM_CALL(tiles, rows); }
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

using MaybeTensor = std::optional<Tensor>;

FeedForward arguments(const Tensor& x, const Tensor& down, const MaybeTensor& norm,
                      const MaybeTensor& up_bias, const MaybeTensor& down_bias, bool silu,
                      bool residual, double eps) {
  FeedForward a{x.size(0), x.size(1), down.size(1), silu, residual, static_cast<float>(eps)};
  a.x = data(x), a.norm = data(norm), a.up_bias = data(up_bias), a.down_bias = data(down_bias);
  return a;
}

// x (R, D), norm (D), up (2F, D), down (D, F), biases (2F), (D) → y (R, D), and what the backward
// reads (R, 2F), which is empty unless `save`.
std::tuple<Tensor, Tensor> feedforward(Tensor x, MaybeTensor norm, Tensor up, Tensor down,
                                       MaybeTensor up_bias, MaybeTensor down_bias, bool silu,
                                       bool residual, double eps, bool save) {
  FeedForward a = arguments(x, down, norm, up_bias, down_bias, silu, residual, eps);
  const int64_t D = a.D, F = a.F;
  Tensor y = fresh(x, {a.R, D}), preact = fresh(x, {a.R, 2 * F}, save);
  const auto up_packed = feedforward_packed_up(up, false);
  const auto down_packed = feedforward_packed_down(down, false);
  a.up = up_packed.data(), a.down = down_packed.data();
  a.y = data(y), a.preact = save ? data(preact) : nullptr;
  for_each_task(feedforward_tiles(a.R), feedforward_forward_floats(D, F),
                [&](int64_t tile, float* scratch) { feedforward_forward_tile(a, tile, scratch); });
  return {y, preact};
}

// Gradients of x, norm, up, down and the biases, which are empty for what there is not.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> feedforward_grad(
    Tensor x, MaybeTensor norm, Tensor up, Tensor down, MaybeTensor up_bias,
    MaybeTensor down_bias, bool silu, bool residual, double eps, Tensor preact, Tensor dy) {
  FeedForward a = arguments(x, down, norm, up_bias, down_bias, silu, residual, eps);
  const int64_t D = a.D, F = a.F, DP = OPENXLSTM_CALL(padded, D), FP = OPENXLSTM_CALL(padded, F);
  const int64_t UP = OPENXLSTM_CALL(padded, 2 * F);
  Tensor dx = fresh(x, {a.R, D});
  const auto up_packed = feedforward_packed_up(up, true);
  const auto down_packed = feedforward_packed_down(down, true);
  a.up = up_packed.data(), a.down = down_packed.data();
  a.preact = data(preact), a.dy = data(dy), a.dx = data(dx);
  Sums sums(feedforward_tiles(a.R), {2 * F * DP, D * FP, UP, DP, DP});
  sums.for_each(feedforward_backward_floats(D, F),
                [&](int64_t tile, float* const* part, float* scratch) {
                  const FeedForwardSums s{part[0], part[1], part[2], part[3], part[4]};
                  feedforward_backward_tile(a, tile, s, scratch);
                });
  return {dx, sums.total(x, 4, {norm ? D : 0}, DP), sums.total(x, 0, {2 * F, D}, DP),
          sums.total(x, 1, {D, F}, FP), sums.total(x, 2, {up_bias ? 2 * F : 0}, UP),
          sums.total(x, 3, {down_bias ? D : 0}, DP)};
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "feedforward(Tensor x, Tensor? norm, Tensor up, Tensor down, Tensor? up_bias, "
      "Tensor? down_bias, bool silu, bool residual, float eps, bool save) -> (Tensor y, "
      "Tensor preact)");
  m.def(
      "feedforward_grad(Tensor x, Tensor? norm, Tensor up, Tensor down, Tensor? up_bias, "
      "Tensor? down_bias, bool silu, bool residual, float eps, Tensor preact, Tensor dy) -> "
      "(Tensor dx, Tensor d_norm, Tensor d_up, Tensor d_down, Tensor d_up_bias, "
      "Tensor d_down_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("feedforward", TORCH_BOX(&openxlstm::feedforward));
  m.impl("feedforward_grad", TORCH_BOX(&openxlstm::feedforward_grad));
}
