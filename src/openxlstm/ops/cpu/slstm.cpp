// The sLSTM scan on a CPU: chooses the instruction set, packs the weights, hands out the tasks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>

#include "isa.h"
#include "slstm_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "slstm_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

template <class Pack>
std::vector<float> pack_heads(const Tensor& R, Pack pack) {
  const int64_t NH = R.size(0), DH = R.size(3), size = OPENXLSTM_CALL(packed_floats, DH);
  std::vector<float> packed(NH * size);
  for (int64_t head = 0; head < NH; ++head)
    pack(data(R) + head * 4 * DH * DH, packed.data() + head * size);
  return packed;
}

// x (B, T, NH, 4, DH), R (NH, 4, DH, DH), bias (NH, 4, DH), state (4, B, NH, DH) → h (B, T, NH, DH),
// the state after the last step, and what the backward reads, which is empty unless `save`.
std::tuple<Tensor, Tensor, Tensor> slstm(Tensor x, Tensor R, std::optional<Tensor> bias,
                                         Tensor state, std::optional<Tensor> reset, bool exp_gate,
                                         bool save) {
  const int64_t B = x.size(0), T = x.size(1), NH = x.size(2), DH = x.size(4);
  Tensor h = fresh(x, {B, T, NH, DH}), saved = fresh(x, {NH, B, T, kSaved, DH}, save);
  Tensor final = torch::stable::clone(state);
  SLSTMForward a{B, T, NH, DH, exp_gate, data(x)};
  for (int d = 0; d < 4; ++d) a.x_stride[d] = x.stride(d);
  a.bias = data(bias), a.reset = mask(reset), a.h = data(h), a.state = data(final);
  a.saved = save ? data(saved) : nullptr;
  const auto packed = pack_heads(
      R, [&](const float* from, float* to) { OPENXLSTM_CALL(pack_forward, from, DH, to); });
  for_each_task(OPENXLSTM_CALL(num_tasks, B, NH), OPENXLSTM_CALL(forward_floats, DH),
                [&](int64_t task, float* scratch) {
                  OPENXLSTM_CALL(forward_task, a, task, packed.data(), scratch);
                });
  return {h, final, saved};
}

// Gradients of x, R, the bias (empty where there is none) and the initial state, from those of h and
// of the final state. That of m is taken along the path that won each maximum; c and n count as they
// are stored.
std::tuple<Tensor, Tensor, Tensor, Tensor> slstm_grad(Tensor R, std::optional<Tensor> bias,
                                                      Tensor state, std::optional<Tensor> reset,
                                                      Tensor h, Tensor final, Tensor saved,
                                                      Tensor dh, Tensor d_final) {
  const int64_t B = h.size(0), T = h.size(1), NH = h.size(2), DH = h.size(3);
  const int64_t DP = OPENXLSTM_CALL(padded, DH), GP = OPENXLSTM_CALL(padded, 4 * DH);
  Tensor dx = fresh(h, {B, T, NH, 4, DH}), d_state = torch::stable::clone(d_final);
  SLSTMBackward a{B, T, NH, DH};
  a.reset = mask(reset), a.h = data(h), a.saved = data(saved), a.before = data(state);
  a.after = data(final), a.dh = data(dh), a.dstate = data(d_state), a.dx = data(dx);
  const auto packed = pack_heads(
      R, [&](const float* from, float* to) { OPENXLSTM_CALL(pack_backward, from, DH, to); });
  Sums sums(OPENXLSTM_CALL(num_tasks, B, NH), {NH * 4 * DH * DP, NH * GP});
  sums.for_each(OPENXLSTM_CALL(backward_floats, DH),
                [&](int64_t task, float* const* part, float* scratch) {
                  OPENXLSTM_CALL(backward_task, a, task, packed.data(), part[0],
                                 bias ? part[1] : nullptr, scratch);
                });
  return {dx, sums.total(h, 0, {NH, 4, DH, DH}, DP), sums.total(h, 1, {bias ? NH : 0, 4 * DH}, GP),
          d_state};
}

int64_t isa_lanes() { return OPENXLSTM_CALL(lanes); }

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "slstm(Tensor x, Tensor R, Tensor? bias, Tensor state, Tensor? reset, bool exp_gate, "
      "bool save) -> (Tensor h, Tensor final, Tensor saved)");
  m.def(
      "slstm_grad(Tensor R, Tensor? bias, Tensor state, Tensor? reset, Tensor h, Tensor final, "
      "Tensor saved, Tensor dh, Tensor d_final) -> (Tensor dx, Tensor dR, Tensor dbias, "
      "Tensor d_state)");
  m.def("lanes() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("slstm", TORCH_BOX(&openxlstm::slstm));
  m.impl("slstm_grad", TORCH_BOX(&openxlstm::slstm_grad));
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CompositeExplicitAutograd, m) {
  m.impl("lanes", TORCH_BOX(&openxlstm::isa_lanes));
}
