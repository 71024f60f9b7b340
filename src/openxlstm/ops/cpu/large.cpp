// The ops before and after the cell of a large block on a CPU: packs the weights and hands out the
// tasks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "checks.h"
#include "isa.h"
#include "large_args.h"
#include "packing.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "large_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

// The arguments of both directions, and the packed weights that they point to.
struct Prepared {
  LargeInput p;
  Floats weight[kProjections];

  Prepared(const Checks& check, const Tensor& x, const Tensor& norm, const MaybeTensor& norm_bias,
           std::initializer_list<Tensor> weights, std::initializer_list<MaybeTensor> biases,
           double eps, double cap, bool backward) {
    static constexpr const char* kNames[][2] = {
        {"q", "q_bias"}, {"k", "k_bias"}, {"v", "v_bias"}, {"o", "o_bias"}, {"gates", "gate_bias"}};
    const Tensor &q = weights.begin()[0], &v = weights.begin()[2], &gates = weights.begin()[kGates];
    const int64_t B = check.size({"x", x}, 3, 0, 0), T = check.size({"x", x}, 3, 1, 0);
    const int64_t D = check.size({"x", x}, 3, 2);
    p = {B, T, D, check.size({"q", q}, 2, 0), check.size({"v", v}, 2, 0),
         check.size({"gates", gates}, 2, 0, 2) / 2, static_cast<float>(eps), static_cast<float>(cap)};
    check.floats({B, T, D}, {{"x", x}});
    check.floats({D}, {{"norm", norm}, {"norm_bias", norm_bias}});
    for (int part = 0; part < kProjections; ++part) {
      check.floats({p.width(part), D}, {{kNames[part][0], weights.begin()[part]}});
      check.floats({p.width(part)}, {{kNames[part][1], biases.begin()[part]}});
    }
    p.x = data(x), p.norm = data(norm), p.norm_bias = data(norm_bias);
    for (int part = 0; part < kProjections; ++part) {
      const float* from = data(weights.begin()[part]);
      const int64_t width = p.width(part);
      weight[part] = (backward ? packed_backward : packed_forward)(from, width, D);
      p.weight[part] = weight[part].data(), p.bias[part] = data(biases.begin()[part]);
    }
  }
  int64_t tasks() const { return p.B * OPENXLSTM_CALL(tiles, p.T); }
};

// x (B, T, D), norm and its bias (D), q and k (QK, D), v and o (V, D), gates (2·NH, D), their
// biases → q, k (B, T, QK), v, õ (B, T, V), log_i, log_f, and f̃ capped (B, NH, T).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> large_input(
    Tensor x, Tensor norm, MaybeTensor norm_bias, Tensor q, Tensor k, Tensor v, Tensor o,
    Tensor gates, MaybeTensor q_bias, MaybeTensor k_bias, MaybeTensor v_bias, MaybeTensor o_bias,
    Tensor gate_bias, double eps, double cap) {
  Prepared prepared(Checks("large_input"), x, norm, norm_bias, {q, k, v, o, gates},
                    {q_bias, k_bias, v_bias, o_bias, gate_bias}, eps, cap, false);
  LargeInput& p = prepared.p;
  Tensor wide[kGates], narrow[3];
  for (int part = 0; part < kGates; ++part) {
    wide[part] = fresh(x, {p.B, p.T, p.width(part)});
    p.out[part] = data(wide[part]);
  }
  for (Tensor& each : narrow) each = fresh(x, {p.B, p.NH, p.T});
  p.log_i = data(narrow[0]), p.log_f = data(narrow[1]), p.f = data(narrow[2]);
  for_each_task(prepared.tasks(), OPENXLSTM_CALL(input_forward_floats, p),
                [&](int64_t task, float* scratch) { OPENXLSTM_CALL(input_forward_task, p, task, scratch); });
  return {wide[0], wide[1], wide[2], wide[3], narrow[0], narrow[1], narrow[2]};
}

// Gradients of the forward's tensors in their order; empty for one that was not given.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensor, Tensor>
large_input_grad(Tensor x, Tensor norm, MaybeTensor norm_bias, Tensor q, Tensor k, Tensor v,
                 Tensor o, Tensor gates, MaybeTensor q_bias, MaybeTensor k_bias,
                 MaybeTensor v_bias, MaybeTensor o_bias, Tensor gate_bias, double eps, double cap,
                 Tensor log_i, Tensor f, Tensor dq, Tensor dk, Tensor dv, Tensor d_o,
                 Tensor dlog_i, Tensor dlog_f) {
  const Checks check("large_input_grad");
  Prepared prepared(check, x, norm, norm_bias, {q, k, v, o, gates},
                    {q_bias, k_bias, v_bias, o_bias, gate_bias}, eps, cap, true);
  LargeInput& p = prepared.p;
  check.floats({p.B, p.NH, p.T},
               {{"log_i", log_i}, {"f", f}, {"dlog_i", dlog_i}, {"dlog_f", dlog_f}});
  check.floats({p.B, p.T, p.QK}, {{"dq", dq}, {"dk", dk}});
  check.floats({p.B, p.T, p.V}, {{"dv", dv}, {"d_o", d_o}});
  p.log_i = data(log_i), p.f = data(f);
  const int64_t D = p.D, DP = OPENXLSTM_CALL(padded, D);
  Tensor dx = fresh(x, {p.B, p.T, D});
  const LargeInputGrads g{{data(dq), data(dk), data(dv), data(d_o)}, data(dlog_i), data(dlog_f),
                          data(dx)};
  std::vector<int64_t> sizes;
  for (int part = 0; part < kProjections; ++part) sizes.push_back(p.width(part) * DP);
  for (int part = 0; part < kProjections; ++part)
    sizes.push_back(OPENXLSTM_CALL(padded, p.width(part)));
  sizes.push_back(DP), sizes.push_back(DP);
  Sums sums(prepared.tasks(), sizes);
  sums.for_each(OPENXLSTM_CALL(input_backward_floats, p),
                [&](int64_t task, float* const* part, float* scratch) {
                  LargeInputSums s;
                  std::copy(part, part + kProjections, s.weight);
                  std::copy(part + kProjections, part + 2 * kProjections, s.bias);
                  s.norm = part[2 * kProjections], s.norm_bias = part[2 * kProjections + 1];
                  OPENXLSTM_CALL(input_backward_task, p, g, task, s, scratch);
                });
  const auto weight = [&](int part) { return sums.total(x, part, {p.width(part), D}, DP); };
  const auto bias = [&](int part) {
    return sums.total(x, kProjections + part, {p.bias[part] ? p.width(part) : 0}, 0);
  };
  const auto of_norm = [&](int64_t part, bool there) {
    return sums.total(x, 2 * kProjections + part, {there ? D : 0}, 0);
  };
  return {dx,        of_norm(0, true), of_norm(1, norm_bias.has_value()),
          weight(0), weight(1),        weight(2),
          weight(3), weight(4),        bias(0),
          bias(1),   bias(2),          bias(3),
          bias(4)};
}

LargeOutput output_arguments(const Checks& check, const Tensor& h, const Tensor& o,
                             const Tensor& norm, const MaybeTensor& norm_bias, const Tensor& down,
                             const MaybeTensor& down_bias, double eps) {
  const int64_t B = check.size({"h", h}, 4, 0, 0), NH = check.size({"h", h}, 4, 1);
  const int64_t T = check.size({"h", h}, 4, 2, 0), DHV = check.size({"h", h}, 4, 3);
  const int64_t V = NH * DHV, D = check.size({"down", down}, 2, 0);
  check.floats({B, NH, T, DHV}, {{"h", h}});
  check.floats({B, T, V}, {{"o", o}});
  check.floats({V}, {{"norm", norm}, {"norm_bias", norm_bias}});
  check.floats({D, V}, {{"down", down}});
  check.floats({D}, {{"down_bias", down_bias}});
  LargeOutput p{B, T, D, V, NH, static_cast<float>(eps)};
  p.h = data(h), p.o = data(o), p.norm = data(norm), p.norm_bias = data(norm_bias);
  return p;
}

// h (B, NH, T, DHV), o (B, T, V), norm and its bias (V), down (D, V), its bias (D), residual (B, T,
// D) → y (B, T, D).
Tensor large_output(Tensor h, Tensor o, Tensor norm, MaybeTensor norm_bias, Tensor down,
                    MaybeTensor down_bias, MaybeTensor residual, double eps) {
  const Checks check("large_output");
  LargeOutput p = output_arguments(check, h, o, norm, norm_bias, down, down_bias, eps);
  const int64_t D = p.D;
  check.floats({p.B, p.T, D}, {{"residual", residual}});
  const auto down_packed = packed_forward(data(down), D, p.V);
  Tensor y = fresh(h, {p.B, p.T, D});
  p.down = down_packed.data(), p.down_bias = data(down_bias), p.residual = data(residual);
  p.y = data(y);
  for_each_task(p.B * OPENXLSTM_CALL(tiles, p.T), OPENXLSTM_CALL(output_forward_floats, D, p.V),
                [&](int64_t task, float* scratch) { OPENXLSTM_CALL(output_forward_task, p, task, scratch); });
  return y;
}

// Gradients of h, o, norm, its bias, down and its bias; empty for one that was not given. The
// residual's gradient is dy.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> large_output_grad(
    Tensor h, Tensor o, Tensor norm, MaybeTensor norm_bias, Tensor down, MaybeTensor down_bias,
    double eps, Tensor dy) {
  const Checks check("large_output_grad");
  LargeOutput p = output_arguments(check, h, o, norm, norm_bias, down, down_bias, eps);
  check.floats({p.B, p.T, p.D}, {{"dy", dy}});
  const int64_t D = p.D, V = p.V, VP = OPENXLSTM_CALL(padded, V), DP = OPENXLSTM_CALL(padded, D);
  const auto down_packed = packed_backward(data(down), D, V);
  Tensor dh = fresh(h, {p.B, p.NH, p.T, V / p.NH}), d_o = fresh(h, {p.B, p.T, V});
  p.down = down_packed.data(), p.dy = data(dy), p.dh = data(dh), p.d_o = data(d_o);
  Sums sums(p.B * OPENXLSTM_CALL(tiles, p.T), {VP, VP, D * VP, DP});
  sums.for_each(OPENXLSTM_CALL(output_backward_floats, D, V),
                [&](int64_t task, float* const* part, float* scratch) {
                  const LargeOutputSums s{part[0], part[1], part[2], part[3]};
                  OPENXLSTM_CALL(output_backward_task, p, task, s, scratch);
                });
  return {dh,
          d_o,
          sums.total(h, 0, {V}, 0),
          sums.total(h, 1, {norm_bias ? V : 0}, 0),
          sums.total(h, 2, {D, V}, VP),
          sums.total(h, 3, {down_bias ? D : 0}, 0)};
}

}  // namespace
}  // namespace openxlstm

#define OPERANDS                                                                                \
  "Tensor x, Tensor norm, Tensor? norm_bias, Tensor q, Tensor k, Tensor v, Tensor o, "          \
  "Tensor gates, Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor? o_bias, "              \
  "Tensor gate_bias, float eps, float cap"

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "large_input(" OPERANDS ") -> (Tensor out_q, Tensor out_k, Tensor out_v, Tensor out_o, "
      "Tensor log_i, Tensor log_f, Tensor f)");
  m.def(
      "large_input_grad(" OPERANDS ", Tensor log_i, Tensor f, Tensor dq, Tensor dk, Tensor dv, "
      "Tensor d_o, Tensor dlog_i, Tensor dlog_f) -> (Tensor dx, Tensor d_norm, "
      "Tensor d_norm_bias, Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_o_weight, Tensor d_gates, "
      "Tensor d_q_bias, Tensor d_k_bias, Tensor d_v_bias, Tensor d_o_bias, Tensor d_gate_bias)");
  m.def(
      "large_output(Tensor h, Tensor o, Tensor norm, Tensor? norm_bias, Tensor down, "
      "Tensor? down_bias, Tensor? residual, float eps) -> Tensor");
  m.def(
      "large_output_grad(Tensor h, Tensor o, Tensor norm, Tensor? norm_bias, Tensor down, "
      "Tensor? down_bias, float eps, Tensor dy) -> (Tensor dh, Tensor d_o, Tensor d_norm, "
      "Tensor d_norm_bias, Tensor d_down, Tensor d_down_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("large_input", TORCH_BOX(&openxlstm::large_input));
  m.impl("large_input_grad", TORCH_BOX(&openxlstm::large_input_grad));
  m.impl("large_output", TORCH_BOX(&openxlstm::large_output));
  m.impl("large_output_grad", TORCH_BOX(&openxlstm::large_output_grad));
}
