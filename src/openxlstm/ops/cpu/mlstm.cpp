// The chunkwise mLSTM on a CPU: chooses the instruction set and hands out the tasks.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "checks.h"
#include "isa.h"
#include "mlstm_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "mlstm_kernel.h"
#include "each_isa.h"

namespace openxlstm {

int64_t mlstm_forward_floats(const MLSTMForward& a) {
  return OPENXLSTM_CALL(forward_floats, a.DQK, a.DHV, a.L);
}
void mlstm_forward_task(const MLSTMForward& a, int64_t task, float* scratch) {
  OPENXLSTM_CALL(forward_task, a, task, scratch);
}
int64_t mlstm_backward_floats(const MLSTMBackward& a) {
  return OPENXLSTM_CALL(backward_floats, a.DQK, a.DHV, a.L);
}
void mlstm_backward_task(const MLSTMBackward& a, int64_t task, float* scratch) {
  OPENXLSTM_CALL(backward_task, a, task, scratch);
}

namespace {

Rows rows(const Tensor& x) { return {data(x), x.stride(0), x.stride(1), x.stride(2)}; }
RowsOf<float> rows_out(const Tensor& x) {
  return {data(x), x.stride(0), x.stride(1), x.stride(2)};
}
// An uninitialised tensor of x's shape, with x's order of heads and steps in memory.
Tensor fresh_like(const Tensor& x) {
  if (x.stride(1) >= x.stride(2)) return fresh(x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  return torch::stable::transpose(fresh(x, {x.size(0), x.size(2), x.size(1), x.size(3)}), 1, 2);
}

// Checks the arguments that both directions read.
void check_inputs(const Checks& check, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& log_i, const Tensor& log_f, const Tensor& m_0,
                  const MaybeTensor& reset, int64_t chunk_size) {
  const int64_t B = check.size({"q", q}, 4, 0, 0), NH = check.size({"q", q}, 4, 1);
  const int64_t T = check.size({"q", q}, 4, 2, 0), DQK = check.size({"q", q}, 4, 3);
  check.rows({B, NH, T, DQK}, {{"q", q}, {"k", k}});
  check.rows({B, NH, T, check.size({"v", v}, 4, 3)}, {{"v", v}});
  check.floats({B, NH, T}, {{"log_i", log_i}, {"log_f", log_f}});
  check.floats({B, NH}, {{"m_0", m_0}});
  check.mask({B, T}, {"reset", reset});
  check.in_range("chunk_size", chunk_size, 1, kMaxChunk);
}

// q, k, v as in ops.mlstm, the rest contiguous → h, the state after the last step, and for the
// backward the state before each chunk and m and the normalizer of each step, empty unless `save`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm(
    Tensor q, Tensor k, Tensor v, Tensor log_i, Tensor log_f, Tensor C_0, Tensor n_0, Tensor m_0,
    MaybeTensor reset, double eps, int64_t chunk_size, bool save) {
  const Checks check("mlstm");
  check_inputs(check, q, k, v, log_i, log_f, m_0, reset, chunk_size);
  const int64_t B = q.size(0), NH = q.size(1), T = q.size(2), DQK = q.size(3), DHV = v.size(3);
  const int64_t NC = (T + chunk_size - 1) / chunk_size;
  check.floats({B, NH, DQK, DHV}, {{"C_0", C_0}});
  check.floats({B, NH, DQK}, {{"n_0", n_0}});
  Tensor h = fresh(q, {B, NH, T, DHV}), C = torch::stable::clone(C_0);
  Tensor n = torch::stable::clone(n_0), m = torch::stable::clone(m_0);
  Tensor C_chunks = fresh(q, {B, NH, NC, DQK, DHV}, save), n_chunks = fresh(q, {B, NH, NC, DQK}, save);
  Tensor m_steps = fresh(q, {B, NH, T}, save), normalizer = fresh(q, {B, NH, T}, save);
  MLSTMForward a{B, NH, T, DQK, DHV, chunk_size, static_cast<float>(eps), rows(q), rows(k), rows(v)};
  a.log_i = data(log_i), a.log_f = data(log_f), a.reset = mask(reset);
  a.h = data(h), a.C = data(C), a.n = data(n), a.m = data(m);
  if (save) {
    a.C_chunks = data(C_chunks), a.n_chunks = data(n_chunks);
    a.m_steps = data(m_steps), a.normalizer = data(normalizer);
  }
  for_each_task(B * NH, mlstm_forward_floats(a),
                [&](int64_t task, float* scratch) { mlstm_forward_task(a, task, scratch); });
  return {h, C, n, m, C_chunks, n_chunks, m_steps, normalizer};
}

// Gradients of q, k, v, log_i, log_f and of the initial C and n, with m held constant. The last two
// are valid only if `initial`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_grad(
    Tensor q, Tensor k, Tensor v, Tensor log_i, Tensor log_f, Tensor m_0,
    MaybeTensor reset, double eps, int64_t chunk_size, Tensor h, Tensor C_chunks,
    Tensor n_chunks, Tensor m_steps, Tensor normalizer, Tensor dh, Tensor dC_T, Tensor dn_T,
    bool initial) {
  const Checks check("mlstm_grad");
  check_inputs(check, q, k, v, log_i, log_f, m_0, reset, chunk_size);
  const int64_t B = q.size(0), NH = q.size(1), T = q.size(2), DQK = q.size(3), DHV = v.size(3);
  const int64_t NC = (T + chunk_size - 1) / chunk_size;
  check.rows({B, NH, T, DHV}, {{"h", h}, {"dh", dh}});
  check.floats({B, NH, NC, DQK, DHV}, {{"C_chunks", C_chunks}});
  check.floats({B, NH, NC, DQK}, {{"n_chunks", n_chunks}});
  check.floats({B, NH, T}, {{"m_steps", m_steps}, {"normalizer", normalizer}});
  check.floats({B, NH, DQK, DHV}, {{"dC_T", dC_T}});
  check.floats({B, NH, DQK}, {{"dn_T", dn_T}});
  Tensor dq = fresh_like(q), dk = fresh_like(k), dv = fresh_like(v);
  Tensor dlog_i = fresh(q, {B, NH, T});
  Tensor dlog_f = fresh(q, {B, NH, T});
  Tensor dC = torch::stable::clone(dC_T), dn = torch::stable::clone(dn_T);
  MLSTMBackward a{B, NH, T, DQK, DHV, chunk_size, static_cast<float>(eps),
                  rows(q), rows(k), rows(v), rows(h), rows(dh)};
  a.log_i = data(log_i), a.log_f = data(log_f), a.reset = mask(reset), a.m_0 = data(m_0);
  a.C_chunks = data(C_chunks), a.n_chunks = data(n_chunks);
  a.m_steps = data(m_steps), a.normalizer = data(normalizer);
  a.dq = rows_out(dq), a.dk = rows_out(dk), a.dv = rows_out(dv), a.dlog_i = data(dlog_i);
  a.dlog_f = data(dlog_f), a.dC = data(dC), a.dn = data(dn), a.wants_initial = initial;
  for_each_task(B * NH, mlstm_backward_floats(a),
                [&](int64_t task, float* scratch) { mlstm_backward_task(a, task, scratch); });
  return {dq, dk, dv, dlog_i, dlog_f, dC, dn};
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "mlstm(Tensor q, Tensor k, Tensor v, Tensor log_i, Tensor log_f, Tensor C_0, Tensor n_0, "
      "Tensor m_0, Tensor? reset, float eps, int chunk_size, bool save) -> (Tensor h, Tensor C, "
      "Tensor n, Tensor m, Tensor C_chunks, Tensor n_chunks, Tensor m_steps, Tensor normalizer)");
  m.def(
      "mlstm_grad(Tensor q, Tensor k, Tensor v, Tensor log_i, Tensor log_f, Tensor m_0, "
      "Tensor? reset, float eps, int chunk_size, Tensor h, Tensor C_chunks, Tensor n_chunks, "
      "Tensor m_steps, Tensor normalizer, Tensor dh, Tensor dC_T, Tensor dn_T, bool initial) -> "
      "(Tensor dq, Tensor dk, Tensor dv, Tensor dlog_i, Tensor dlog_f, Tensor dC, Tensor dn)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("mlstm", TORCH_BOX(&openxlstm::mlstm));
  m.impl("mlstm_grad", TORCH_BOX(&openxlstm::mlstm_grad));
}
