// The sLSTM scan on a CPU: packs the weights and hands out the tasks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>

#include "arena.h"
#include "block_parts.h"
#include "checks.h"
#include "isa.h"
#include "slstm_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "slstm_kernel.h"
#include "each_isa.h"

namespace openxlstm {

Floats slstm_packed_recurrent(const Tensor& R, bool backward) {
  const int64_t NH = R.size(0), DH = R.size(3), size = OPENXLSTM_CALL(packed_floats, DH);
  Floats packed(NH * size);
  for (int64_t head = 0; head < NH; ++head) {
    const float* from = data(R) + head * 4 * DH * DH;
    float* to = packed.data() + head * size;
    if (backward) OPENXLSTM_CALL(pack_backward, from, DH, to);
    else OPENXLSTM_CALL(pack_forward, from, DH, to);
  }
  return packed;
}
// Packs the gates of each head in pairs: i and f, z and o.
Floats slstm_packed_input(const Tensor& W, bool backward) {
  const int64_t NH = W.size(0), DH = W.size(3), size = OPENXLSTM_CALL(half_floats, DH, backward);
  Floats packed(NH * 2 * size);
  for (int64_t half = 0; half < NH * 2; ++half)
    OPENXLSTM_CALL(pack_half, data(W) + half * 2 * DH * DH, DH, backward, packed.data() + half * size);
  return packed;
}

int64_t slstm_num_tasks(int64_t B, int64_t NH) { return OPENXLSTM_CALL(num_tasks, B, NH); }
int64_t slstm_forward_floats(int64_t DH) { return OPENXLSTM_CALL(forward_floats, DH); }
int64_t slstm_backward_floats(int64_t DH) { return OPENXLSTM_CALL(backward_floats, DH); }
void slstm_forward_task(const SLSTMForward& a, int64_t task, const float* packed, float* scratch) {
  OPENXLSTM_CALL(forward_task, a, task, packed, scratch);
}
void slstm_backward_task(const SLSTMBackward& a, int64_t task, const float* packed,
                         const SLSTMSums& sums, float* scratch) {
  OPENXLSTM_CALL(backward_task, a, task, packed, sums, scratch);
}

namespace {

using Named = Checks::Named;

void check_weights(const Checks& check, int64_t NH, int64_t DH, std::initializer_list<Named> weights,
                   const MaybeTensor& bias) {
  check.floats({NH, 4, DH, DH}, weights);
  check.floats({NH, 4, DH}, {{"bias", bias}});
}
void check_scan(const Checks& check, int64_t B, int64_t T, int64_t NH, int64_t DH,
                std::initializer_list<Named> states, const MaybeTensor& reset) {
  check.floats({4, B, NH, DH}, states);
  check.mask({B, T}, {"reset", reset});
}

void run(SLSTMForward& a, const Tensor& R) {
  const auto packed = slstm_packed_recurrent(R, false);
  for_each_task(slstm_num_tasks(a.B, a.NH), slstm_forward_floats(a.DH),
                [&](int64_t task, float* scratch) {
                  slstm_forward_task(a, task, packed.data(), scratch);
                });
}

// x (B, T, NH, 4, DH), R (NH, 4, DH, DH), bias (NH, 4, DH), state (4, B, NH, DH) → h (B, T, NH,
// DH), the state after the last step, and the tensor for the backward, empty unless `save`.
std::tuple<Tensor, Tensor, Tensor> slstm(Tensor x, Tensor R, MaybeTensor bias, Tensor state,
                                         MaybeTensor reset, bool exp_gate, bool save) {
  const Checks check("slstm");
  const int64_t B = check.size({"x", x}, 5, 0, 0), T = check.size({"x", x}, 5, 1, 0);
  const int64_t NH = check.size({"x", x}, 5, 2), DH = check.size({"x", x}, 5, 4);
  check.rows({B, T, NH, 4, DH}, {{"x", x}});
  check_weights(check, NH, DH, {{"R", R}}, bias);
  check_scan(check, B, T, NH, DH, {{"state", state}}, reset);
  Tensor h = fresh(x, {B, T, NH, DH}), saved = fresh(x, {NH, B, T, kSaved, DH}, save);
  Tensor final = torch::stable::clone(state);
  SLSTMForward a{B, T, NH, DH, exp_gate, data(x)};
  for (int d = 0; d < 4; ++d) a.x_stride[d] = x.stride(d);
  a.bias = data(bias), a.reset = mask(reset), a.h = data(h), a.state = data(final);
  a.saved = save ? data(saved) : nullptr;
  run(a, R);
  return {h, final, saved};
}

// The same with x projected from convolved (i, f) and raw (z, o), (B, T, NH·DH), by W (NH, 4, DH,
// DH).
std::tuple<Tensor, Tensor, Tensor> slstm_layer(Tensor convolved, Tensor raw, Tensor W, Tensor R,
                                               Tensor bias, Tensor state, MaybeTensor reset,
                                               bool exp_gate, bool save) {
  const Checks check("slstm_layer");
  const int64_t B = check.size({"raw", raw}, 3, 0, 0), T = check.size({"raw", raw}, 3, 1, 0);
  const int64_t NH = check.size({"W", W}, 4, 0), DH = check.size({"W", W}, 4, 3);
  check.floats({B, T, NH * DH}, {{"convolved", convolved}, {"raw", raw}});
  check_weights(check, NH, DH, {{"W", W}, {"R", R}}, bias);
  check_scan(check, B, T, NH, DH, {{"state", state}}, reset);
  Tensor h = fresh(raw, {B, T, NH, DH}), saved = fresh(raw, {NH, B, T, kSaved, DH}, save);
  Tensor final = torch::stable::clone(state);
  const auto input = slstm_packed_input(W, false);
  SLSTMForward a{B, T, NH, DH, exp_gate, nullptr};
  a.convolved = data(convolved), a.raw = data(raw), a.input = input.data();
  a.bias = data(bias), a.reset = mask(reset), a.h = data(h), a.state = data(final);
  a.saved = save ? data(saved) : nullptr;
  run(a, R);
  return {h, final, saved};
}

SLSTMBackward backward_arguments(const Checks& check, const Tensor& R, const Tensor& state,
                                 const MaybeTensor& reset, const Tensor& h, const Tensor& final,
                                 const Tensor& saved, const Tensor& dh, const Tensor& d_final) {
  const int64_t NH = R.size(0), DH = R.size(3);
  const int64_t B = check.size({"h", h}, 4, 0, 0), T = check.size({"h", h}, 4, 1, 0);
  check.floats({B, T, NH, DH}, {{"h", h}, {"dh", dh}});
  check.floats({NH, B, T, kSaved, DH}, {{"saved", saved}});
  check_scan(check, B, T, NH, DH, {{"state", state}, {"final", final}, {"d_final", d_final}}, reset);
  SLSTMBackward a{B, T, NH, DH};
  a.reset = mask(reset), a.h = data(h), a.saved = data(saved), a.before = data(state);
  a.after = data(final), a.dh = data(dh);
  return a;
}
Sums run_grad(const SLSTMBackward& a, const Tensor& R, bool bias, bool input) {
  const int64_t NH = a.NH, DH = a.DH;
  const int64_t DP = OPENXLSTM_CALL(padded, DH), GP = OPENXLSTM_CALL(padded, 4 * DH);
  const auto packed = slstm_packed_recurrent(R, true);
  const int64_t weights = NH * 4 * DH * DP;
  Sums sums(slstm_num_tasks(a.B, NH), {weights, bias ? NH * GP : 0, input ? weights : 0});
  sums.for_each(slstm_backward_floats(DH),
                [&](int64_t task, float* const* part, float* scratch) {
                  const SLSTMSums s{part[0], bias ? part[1] : nullptr, input ? part[2] : nullptr};
                  slstm_backward_task(a, task, packed.data(), s, scratch);
                });
  return sums;
}

// Gradients of x, R, the bias (empty if it was not given) and the initial state, from those of h
// and of the final state. The gradient of m follows the argument that won each maximum; c and n are
// taken as they are stored, scaled by exp(-m).
std::tuple<Tensor, Tensor, Tensor, Tensor> slstm_grad(Tensor R, MaybeTensor bias, Tensor state,
                                                      MaybeTensor reset, Tensor h, Tensor final,
                                                      Tensor saved, Tensor dh, Tensor d_final) {
  const Checks check("slstm_grad");
  const int64_t NH = check.size({"R", R}, 4, 0), DH = check.size({"R", R}, 4, 3);
  const int64_t DP = OPENXLSTM_CALL(padded, DH), GP = OPENXLSTM_CALL(padded, 4 * DH);
  check_weights(check, NH, DH, {{"R", R}}, bias);
  SLSTMBackward a = backward_arguments(check, R, state, reset, h, final, saved, dh, d_final);
  Tensor d_state = torch::stable::clone(d_final);
  a.dstate = data(d_state);
  Tensor dx = fresh(h, {a.B, a.T, NH, 4, DH});
  a.dx = data(dx);
  Sums sums = run_grad(a, R, bias.has_value(), false);
  return {dx, sums.total(h, 0, {NH, 4, DH, DH}, DP), sums.total(h, 1, {bias ? NH : 0, 4 * DH}, GP),
          d_state};
}

// Gradients of convolved and raw, empty unless `inputs`; of W, R, bias and the initial state.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> slstm_layer_grad(
    Tensor convolved, Tensor raw, Tensor W, Tensor R, Tensor state, MaybeTensor reset, Tensor h,
    Tensor final, Tensor saved, Tensor dh, Tensor d_final, bool inputs) {
  const Checks check("slstm_layer_grad");
  const int64_t NH = check.size({"R", R}, 4, 0), DH = check.size({"R", R}, 4, 3);
  const int64_t DP = OPENXLSTM_CALL(padded, DH), GP = OPENXLSTM_CALL(padded, 4 * DH);
  check_weights(check, NH, DH, {{"W", W}, {"R", R}}, std::nullopt);
  SLSTMBackward a = backward_arguments(check, R, state, reset, h, final, saved, dh, d_final);
  Tensor d_state = torch::stable::clone(d_final);
  a.dstate = data(d_state);
  const int64_t B = a.B, T = a.T;
  check.floats({B, T, NH * DH}, {{"convolved", convolved}, {"raw", raw}});
  Tensor dconvolved = fresh(raw, {B, T, NH * DH}, inputs), draw = fresh(raw, {B, T, NH * DH}, inputs);
  const auto input = slstm_packed_input(W, true);
  a.convolved = data(convolved), a.raw = data(raw), a.input = input.data();
  if (inputs) a.dconvolved = data(dconvolved), a.draw = data(draw);
  Sums sums = run_grad(a, R, true, true);
  return {dconvolved, draw, sums.total(h, 2, {NH, 4, DH, DH}, DP),
          sums.total(h, 0, {NH, 4, DH, DH}, DP), sums.total(h, 1, {NH, 4 * DH}, GP), d_state};
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
  m.def(
      "slstm_layer(Tensor convolved, Tensor raw, Tensor W, Tensor R, Tensor bias, Tensor state, "
      "Tensor? reset, bool exp_gate, bool save) -> (Tensor h, Tensor final, Tensor saved)");
  m.def(
      "slstm_layer_grad(Tensor convolved, Tensor raw, Tensor W, Tensor R, Tensor state, "
      "Tensor? reset, Tensor h, Tensor final, Tensor saved, Tensor dh, Tensor d_final, "
      "bool inputs) -> (Tensor dconvolved, Tensor draw, Tensor dW, Tensor dR, Tensor dbias, Tensor d_state)");
  m.def("lanes() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("slstm", TORCH_BOX(&openxlstm::slstm));
  m.impl("slstm_grad", TORCH_BOX(&openxlstm::slstm_grad));
  m.impl("slstm_layer", TORCH_BOX(&openxlstm::slstm_layer));
  m.impl("slstm_layer_grad", TORCH_BOX(&openxlstm::slstm_layer_grad));
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CompositeExplicitAutograd, m) {
  m.impl("lanes", TORCH_BOX(&openxlstm::isa_lanes));
}
