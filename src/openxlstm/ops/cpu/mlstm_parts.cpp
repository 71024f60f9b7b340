// The ops before and after an mLSTM cell on a CPU: packs the weights and hands out the tasks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "conv_args.h"
#include "isa.h"
#include "mlstm_parts.h"

#define OPENXLSTM_KERNEL "mlstm_parts_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

// to (rows, E) += the rows of `from` times a block-diagonal map (E/4, out, in), or its transpose if
// `back`.
void through_blocks(const float* weight, bool back, const float* from, int64_t ld, int64_t rows,
                    int64_t E, float* to, int64_t ldt) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t e = 0; e < E; ++e)
      for (int64_t j = 0; j < kBlock; ++j) {
        const int64_t block = e / kBlock, lane = e % kBlock;
        const float w = weight[(block * kBlock + (back ? j : lane)) * kBlock + (back ? lane : j)];
        to[r * ldt + e] += w * from[r * ld + block * kBlock + j];
      }
}
// weight (E/4, out, in), the gradient of such a map, += the outer products of `out` and `in`.
void add_outer(const float* out, int64_t ldo, const float* in, int64_t ldi, int64_t rows, int64_t E,
               float* weight) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t e = 0; e < E; ++e)
      for (int64_t j = 0; j < kBlock; ++j)
        weight[e * kBlock + j] += out[r * ldo + e] * in[r * ldi + e / kBlock * kBlock + j];
}

}  // namespace

MLSTMInputWeights::MLSTMInputWeights(const Checks& check, const Tensor& x, const Tensor& up_,
                                     const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                     const Tensor& gate_, const Tensor& gate_bias,
                                     const MaybeTensor& conv_weight, const MaybeTensor& conv_bias,
                                     const MaybeTensor& before, const MaybeTensor& reset,
                                     bool backward) {
  const int64_t B = check.size({"x", x}, 3, 0, 0), T = check.size({"x", x}, 3, 1, 0);
  const int64_t D = check.size({"x", x}, 3, 2), E = check.size({"up", up_}, 2, 0, 2) / 2;
  const int64_t NH = check.size({"gate_bias", gate_bias}, 1, 0, 2) / 2, rows = 2 * NH;
  const int64_t K = conv_weight ? check.size({"conv_weight", *conv_weight}, 2, 1) : 0;
  check.multiple("the inner width", E, 16);
  check.multiple("the inner width", E, NH);
  check.in_range("the kernel size", K, 0, kMaxKernel);
  check.together({"conv_weight", conv_weight}, {"conv_bias", conv_bias});
  check.only_with({"before", before}, {"conv_weight", conv_weight});
  check.floats({B, T, D}, {{"x", x}});
  check.floats({2 * E, D}, {{"up", up_}});
  check.floats({E / kBlock, kBlock, kBlock}, {{"q", q_}, {"k", k_}, {"v", v_}});
  check.floats({rows, 3 * E}, {{"gate", gate_}});
  check.floats({rows}, {{"gate_bias", gate_bias}});
  check.floats({E, K}, {{"conv_weight", conv_weight}});
  check.floats({E}, {{"conv_bias", conv_bias}});
  check.floats({B, K - 1, E}, {{"before", before}});
  check.mask({B, T}, {"reset", reset});
  p = {B, T, D, E, NH, K};
  p.x = data(x), p.before = data(before), p.reset = mask(reset);
  up = (backward ? packed_backward : packed_forward)(data(up_), 2 * E, D);
  gate.assign(rows * 2 * E, 0.0f);
  through_blocks(data(q_), true, data(gate_), 3 * E, rows, E, gate.data(), 2 * E);
  through_blocks(data(k_), true, data(gate_) + E, 3 * E, rows, E, gate.data(), 2 * E);
  through_blocks(data(v_), true, data(gate_) + 2 * E, 3 * E, rows, E, gate.data() + E, 2 * E);
  p.gate_c = gate.data(), p.gate_a = gate.data() + E;
  if (!backward) {
    gate_c = packed(p.gate_c, 1, 2 * E, E, rows), gate_a = packed(p.gate_a, 1, 2 * E, E, rows);
    p.gate_c = gate_c.data(), p.gate_a = gate_a.data();
  }
  p.up = up.data(), p.gate_bias = data(gate_bias);
  pack(q_, q, p.q, backward), pack(k_, k, p.k, backward), pack(v_, v, p.v, backward);
  if (K) conv.pack(*conv_weight, conv_bias, E);
  p.conv = conv.weight.data(), p.conv_bias = conv.bias.data();
}

void MLSTMInputWeights::pack(const Tensor& from, Floats& to, const float*& pointer,
                             bool transposed) const {
  to = Floats(kBlock * p.E);
  OPENXLSTM_CALL(pack_blocks, data(from), p.E, transposed, to.data());
  pointer = to.data();
}

int64_t mlstm_tiles(int64_t T) { return OPENXLSTM_CALL(tiles, T); }
int64_t mlstm_input_forward_floats(const MLSTMInput& p) {
  return OPENXLSTM_CALL(input_forward_floats, p.D, p.E, p.NH, p.K);
}
void mlstm_input_forward_task(const MLSTMInput& p, int64_t task, float* scratch) {
  OPENXLSTM_CALL(input_forward_task, p, task, scratch);
}
int64_t mlstm_branches_floats(const MLSTMInput& p) {
  return OPENXLSTM_CALL(branches_floats, p.E, p.K);
}
void mlstm_branches_task(const MLSTMInput& p, int64_t task, float* scratch) {
  OPENXLSTM_CALL(branches_task, p, task, scratch);
}
int64_t mlstm_input_backward_floats(const MLSTMInput& p) {
  return OPENXLSTM_CALL(input_backward_floats, p.D, p.E, p.NH, p.K);
}
void mlstm_input_backward_task(const MLSTMInput& p, const MLSTMInputGrads& g, int64_t task,
                               const MLSTMInputSums& sums, float* scratch) {
  OPENXLSTM_CALL(input_backward_task, p, g, task, sums, scratch);
}
int64_t mlstm_output_forward_floats(const MLSTMOutput& p) {
  return OPENXLSTM_CALL(output_forward_floats, p.D, p.E);
}
void mlstm_output_forward_task(const MLSTMOutput& p, int64_t task, float* scratch) {
  OPENXLSTM_CALL(output_forward_task, p, task, scratch);
}
int64_t mlstm_output_backward_floats(const MLSTMOutput& p) {
  return OPENXLSTM_CALL(output_backward_floats, p.D, p.E);
}
void mlstm_output_backward_task(const MLSTMOutput& p, int64_t task, const MLSTMOutputSums& sums,
                                float* scratch) {
  OPENXLSTM_CALL(output_backward_task, p, task, sums, scratch);
}

std::vector<int64_t> mlstm_sums(const MLSTMInput& p) {
  const int64_t E = p.E, rows = 2 * p.NH;
  return {2 * E * OPENXLSTM_CALL(padded, p.D), kBlock * E, kBlock * E, kBlock * E, rows * 2 * E,
          OPENXLSTM_CALL(padded, rows), p.K * E, E};
}
std::vector<int64_t> mlstm_sums(const MLSTMOutput& p) {
  return {p.E, p.E, p.D * OPENXLSTM_CALL(padded, p.E)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_parameter_grads(
    Sums& sums, const MLSTMInput& p, const Tensor& x, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& gate) {
  const int64_t D = p.D, E = p.E, K = p.K, rows = 2 * p.NH;
  const int64_t DP = OPENXLSTM_CALL(padded, D), GP = OPENXLSTM_CALL(padded, rows);
  // The gradient of the gates' joint map of c and a, split into those of its factors.
  const Tensor joint = sums.total(x, 4, {rows, 2 * E}, 2 * E);
  Tensor dgate = fresh(x, {rows, 3 * E}), dweight[3];
  std::fill_n(data(dgate), dgate.numel(), 0.0f);
  const Tensor* weights[] = {&q, &k, &v};
  for (int64_t part = 0; part < 3; ++part) {
    const float* in = data(joint) + (part < 2 ? 0 : E);
    const Tensor& weight = *weights[part];
    dweight[part] = transposed(sums.total(x, part + 1, {kBlock, E}, E));
    through_blocks(data(weight), false, in, 2 * E, rows, E, data(dgate) + part * E, 3 * E);
    add_outer(data(gate) + part * E, 3 * E, in, 2 * E, rows, E, data(dweight[part]));
  }
  return {sums.total(x, 0, {2 * E, D}, DP), dweight[0], dweight[1], dweight[2], dgate,
          sums.total(x, 5, {rows}, GP), transposed(sums.total(x, 6, {K, E}, E)),
          sums.total(x, 7, {K ? E : 0}, E)};
}

namespace {

// x (B, T, D), up (2E, D), q, k, v (E/4, 4, 4), gate (2·NH, 3E) and (2·NH), conv (E, K) and (E),
// before (B, K-1, E) → a, z, c, q, k, v (B, T, E), log_i, log_f, and f̃ (B, NH, T).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_input(
    Tensor x, Tensor up, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor gate_bias,
    MaybeTensor conv_weight, MaybeTensor conv_bias, MaybeTensor before, MaybeTensor reset) {
  MLSTMInputWeights weights(Checks("mlstm_input"), x, up, q, k, v, gate, gate_bias, conv_weight,
                            conv_bias, before, reset, false);
  MLSTMInput& p = weights.p;
  Tensor wide[6], narrow[3];
  for (Tensor& each : wide) each = fresh(x, {p.B, p.T, p.E});
  for (Tensor& each : narrow) each = fresh(x, {p.B, p.NH, p.T});
  p.a = data(wide[0]), p.z = data(wide[1]), p.c = data(wide[2]);
  p.out_q = data(wide[3]), p.out_k = data(wide[4]), p.out_v = data(wide[5]);
  p.log_i = data(narrow[0]), p.log_f = data(narrow[1]), p.f_preact = data(narrow[2]);
  for_each_task(p.B * mlstm_tiles(p.T), mlstm_input_forward_floats(p),
                [&](int64_t task, float* scratch) { mlstm_input_forward_task(p, task, scratch); });
  return {wide[0], wide[1], wide[2], wide[3], wide[4], wide[5], narrow[0], narrow[1], narrow[2]};
}

// Gradients of x and the parameters, in the order of the forward's arguments, and of before; empty
// for one that was not given.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
mlstm_input_grad(Tensor x, Tensor up, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor gate_bias,
                 MaybeTensor conv_weight, MaybeTensor conv_bias, MaybeTensor before,
                 MaybeTensor reset, Tensor a, Tensor f_preact, Tensor dz, Tensor dc, Tensor dq,
                 Tensor dk, Tensor dv, Tensor dlog_i, Tensor dlog_f) {
  const Checks check("mlstm_input_grad");
  MLSTMInputWeights weights(check, x, up, q, k, v, gate, gate_bias, conv_weight, conv_bias, before,
                            reset, true);
  MLSTMInput& p = weights.p;
  check.floats({p.B, p.T, p.E}, {{"a", a}, {"dz", dz}, {"dc", dc}, {"dq", dq}, {"dk", dk}, {"dv", dv}});
  check.floats({p.B, p.NH, p.T},
               {{"f_preact", f_preact}, {"dlog_i", dlog_i}, {"dlog_f", dlog_f}});
  p.a = data(a), p.f_preact = data(f_preact);
  Tensor dx = fresh(x, {p.B, p.T, p.D});
  Tensor dbefore = fresh(x, {p.B, p.K - 1, p.E}, before.has_value());
  const MLSTMInputGrads g{data(dz), data(dc), data(dq), data(dk), data(dv), data(dlog_i),
                          data(dlog_f), data(dx), before ? data(dbefore) : nullptr};
  Sums sums(p.B * mlstm_tiles(p.T), mlstm_sums(p));
  sums.for_each(mlstm_input_backward_floats(p), [&](int64_t task, float* const* part, float* scratch) {
    mlstm_input_backward_task(p, g, task, mlstm_input_sums(part), scratch);
  });
  return std::tuple_cat(std::tuple(dx), mlstm_parameter_grads(sums, p, x, q, k, v, gate),
                        std::tuple(dbefore));
}

MLSTMOutput output_arguments(const Checks& check, const Tensor& h, const Tensor& c,
                             const Tensor& z, const Tensor& norm, const Tensor& skip,
                             const Tensor& down, double eps) {
  const int64_t B = check.size({"h", h}, 4, 0, 0), NH = check.size({"h", h}, 4, 1);
  const int64_t T = check.size({"h", h}, 4, 2, 0), DH = check.size({"h", h}, 4, 3), E = NH * DH;
  const int64_t D = check.size({"down", down}, 2, 0);
  check.multiple("the inner width", E, 16);
  check.floats({B, NH, T, DH}, {{"h", h}});
  check.floats({B, T, E}, {{"c", c}, {"z", z}});
  check.floats({E}, {{"norm", norm}, {"skip", skip}});
  check.floats({D, E}, {{"down", down}});
  MLSTMOutput p{B, T, D, E, NH, static_cast<float>(eps)};
  p.h = data(h), p.c = data(c), p.z = data(z), p.norm = data(norm), p.skip = data(skip);
  return p;
}

// h (B, NH, T, DH), c and z (B, T, E), norm and skip (E), down (D, E) → y (B, T, D).
Tensor mlstm_output(Tensor h, Tensor c, Tensor z, Tensor norm, Tensor skip, Tensor down,
                    double eps) {
  MLSTMOutput p = output_arguments(Checks("mlstm_output"), h, c, z, norm, skip, down, eps);
  const auto down_packed = packed_forward(data(down), p.D, p.E);
  Tensor y = fresh(h, {p.B, p.T, p.D});
  p.down = down_packed.data(), p.y = data(y);
  for_each_task(p.B * mlstm_tiles(p.T), mlstm_output_forward_floats(p),
                [&](int64_t task, float* scratch) { mlstm_output_forward_task(p, task, scratch); });
  return y;
}

// Gradients of h, c, z, norm, skip and down.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_output_grad(
    Tensor h, Tensor c, Tensor z, Tensor norm, Tensor skip, Tensor down, double eps, Tensor dy) {
  const Checks check("mlstm_output_grad");
  MLSTMOutput p = output_arguments(check, h, c, z, norm, skip, down, eps);
  check.floats({p.B, p.T, p.D}, {{"dy", dy}});
  const auto down_packed = packed_backward(data(down), p.D, p.E);
  Tensor dh = fresh(h, {p.B, p.NH, p.T, p.E / p.NH}), dc = fresh(h, {p.B, p.T, p.E});
  Tensor dz = fresh(h, {p.B, p.T, p.E});
  p.down = down_packed.data(), p.dy = data(dy), p.dh = data(dh), p.dc = data(dc), p.dz = data(dz);
  Sums sums(p.B * mlstm_tiles(p.T), mlstm_sums(p));
  sums.for_each(mlstm_output_backward_floats(p), [&](int64_t task, float* const* part, float* scratch) {
    mlstm_output_backward_task(p, task, mlstm_output_sums(part), scratch);
  });
  return {dh, dc, dz, sums.total(h, 0, {p.E}, 0), sums.total(h, 1, {p.E}, 0),
          sums.total(h, 2, {p.D, p.E}, p.E)};
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "mlstm_input(" MLSTM_WEIGHTS ") -> (Tensor a, Tensor z, Tensor c, Tensor out_q, Tensor out_k, "
      "Tensor out_v, Tensor log_i, Tensor log_f, Tensor f_preact)");
  m.def(
      "mlstm_input_grad(" MLSTM_WEIGHTS ", Tensor a, Tensor f_preact, Tensor dz, Tensor dc, Tensor dq, "
      "Tensor dk, Tensor dv, Tensor dlog_i, Tensor dlog_f) -> (Tensor dx, Tensor d_up, Tensor d_q, Tensor d_k, Tensor d_v, "
      "Tensor d_gate, Tensor d_gate_bias, Tensor d_conv_weight, Tensor d_conv_bias, "
      "Tensor d_before)");
  m.def(
      "mlstm_output(Tensor h, Tensor c, Tensor z, Tensor norm, Tensor skip, Tensor down, "
      "float eps) -> Tensor");
  m.def(
      "mlstm_output_grad(Tensor h, Tensor c, Tensor z, Tensor norm, Tensor skip, Tensor down, "
      "float eps, Tensor dy) -> (Tensor dh, Tensor dc, Tensor dz, Tensor d_norm, Tensor d_skip, "
      "Tensor d_down)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("mlstm_input", TORCH_BOX(&openxlstm::mlstm_input));
  m.impl("mlstm_input_grad", TORCH_BOX(&openxlstm::mlstm_input_grad));
  m.impl("mlstm_output", TORCH_BOX(&openxlstm::mlstm_output));
  m.impl("mlstm_output_grad", TORCH_BOX(&openxlstm::mlstm_output_grad));
}
