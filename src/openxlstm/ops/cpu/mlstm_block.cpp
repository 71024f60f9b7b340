// An mLSTM block on a CPU: input, cell and output fused. A task is one sample, so that its E-wide
// buffers that the backward does not need never leave the core's cache.
#include <algorithm>
#include <cstdint>
#include <tuple>

#include "arena.h"
#include "mlstm_args.h"
#include "mlstm_parts.h"

namespace openxlstm {
namespace {

// The arguments of one sample's tasks, as a batch of one.
struct Sample {
  MLSTMInput in;
  MLSTMOutput out;
  Rows q, k, v;
  int64_t b, tiles;

  Sample(const MLSTMInput& all, const MLSTMOutput& output, int64_t sample)
      : in(all), out(output), b(sample) {
    const int64_t T = in.T, E = in.E, heads = in.NH * T;
    tiles = mlstm_tiles(T);
    in.B = out.B = 1;
    in.x += b * T * in.D;
    if (in.before != nullptr) in.before += b * (in.K - 1) * E;
    if (in.reset != nullptr) in.reset += b * T;
    in.log_i += b * heads, in.log_f += b * heads, in.f_preact += b * heads;
    if (out.y != nullptr) out.y += b * T * in.D;
    if (out.dy != nullptr) out.dy += b * T * in.D;
  }
  // Takes buffers for c, q, k and v.
  void put_branches(Arena& arena) {
    const int64_t wide = in.T * in.E, DH = in.E / in.NH;
    in.c = arena.take(wide), in.out_q = arena.take(wide), in.out_k = arena.take(wide);
    in.out_v = arena.take(wide), out.c = in.c;
    q = {in.out_q, 0, DH, in.E}, k = {in.out_k, 0, DH, in.E}, v = {in.out_v, 0, DH, in.E};
  }
  void put_kept(float* a, float* z, float* h) { in.a = a, in.z = z, out.z = z, out.h = h; }
};

// Checks the arguments that both directions read besides those of the input.
void check_block(const Checks& check, const MLSTMInput& p, const Tensor& m_0, const Tensor& norm,
                 const Tensor& skip, const Tensor& down, int64_t chunk_size) {
  check.floats({p.B, p.NH}, {{"m_0", m_0}});
  check.floats({p.E}, {{"norm", norm}, {"skip", skip}});
  check.floats({p.D, p.E}, {{"down", down}});
  check.in_range("chunk_size", chunk_size, 1, kMaxChunk);
}

// The arguments of mlstm_input, mlstm and mlstm_output → y, the state after the last step, and the
// tensors for the backward; those other than the gates are empty unless `save`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensor, Tensor, Tensor>
mlstm_block(Tensor x, Tensor up, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor gate_bias,
            MaybeTensor conv_weight, MaybeTensor conv_bias, MaybeTensor before, MaybeTensor reset,
            Tensor C_0, Tensor n_0, Tensor m_0, Tensor norm, Tensor skip, Tensor down, double eps,
            int64_t chunk_size, bool save) {
  const Checks check("mlstm_block");
  MLSTMInputWeights weights(check, x, up, q, k, v, gate, gate_bias, conv_weight, conv_bias, before,
                            reset, false);
  MLSTMInput& p = weights.p;
  check_block(check, p, m_0, norm, skip, down, chunk_size);
  const int64_t B = p.B, T = p.T, D = p.D, E = p.E, NH = p.NH, DH = E / NH, wide = T * E;
  const int64_t NC = (T + chunk_size - 1) / chunk_size;
  check.floats({B, NH, DH, DH}, {{"C_0", C_0}});
  check.floats({B, NH, DH}, {{"n_0", n_0}});
  Tensor y = fresh(x, {B, T, D}), a = fresh(x, {B, T, E}, save), z = fresh(x, {B, T, E}, save);
  Tensor h = fresh(x, {B, NH, T, DH}, save), f_preact = fresh(x, {B, NH, T});
  Tensor log_i = fresh(x, {B, NH, T}), log_f = fresh(x, {B, NH, T});
  Tensor C = torch::stable::clone(C_0), n = torch::stable::clone(n_0), m = torch::stable::clone(m_0);
  Tensor C_chunks = fresh(x, {B, NH, NC, DH, DH}, save), n_chunks = fresh(x, {B, NH, NC, DH}, save);
  Tensor m_steps = fresh(x, {B, NH, T}, save), normalizer = fresh(x, {B, NH, T}, save);
  p.log_i = data(log_i), p.log_f = data(log_f), p.f_preact = data(f_preact);
  const auto down_packed = packed_forward(data(down), D, E);
  MLSTMOutput out{1, T, D, E, NH, static_cast<float>(eps)};
  out.norm = data(norm), out.skip = data(skip), out.down = down_packed.data(), out.y = data(y);
  const MLSTMForward cell{1, NH, T, DH, DH, chunk_size};
  const int64_t floats = std::max({mlstm_input_forward_floats(p), mlstm_forward_floats(cell),
                                   mlstm_output_forward_floats(out)});
  for_each_task(B, (save ? 4 : 7) * (wide + 16) + floats, [&](int64_t b, float* scratch) {
    Arena arena{scratch};
    Sample one(p, out, b);
    one.put_branches(arena);
    const auto place = [&](const Tensor& kept) {
      return save ? data(kept) + b * wide : arena.take(wide);
    };
    float *a_b = place(a), *z_b = place(z), *h_b = place(h);
    one.put_kept(a_b, z_b, h_b);
    for (int64_t tile = 0; tile < one.tiles; ++tile)
      mlstm_input_forward_task(one.in, tile, arena.next);
    MLSTMForward f = cell;
    f.q = one.q, f.k = one.k, f.v = one.v, f.log_i = one.in.log_i, f.log_f = one.in.log_f;
    f.reset = one.in.reset, f.h = h_b;
    f.C = data(C) + b * NH * DH * DH, f.n = data(n) + b * NH * DH, f.m = data(m) + b * NH;
    if (save) {
      f.C_chunks = data(C_chunks) + b * NH * NC * DH * DH;
      f.n_chunks = data(n_chunks) + b * NH * NC * DH;
      f.m_steps = data(m_steps) + b * NH * T, f.normalizer = data(normalizer) + b * NH * T;
    }
    for (int64_t head = 0; head < NH; ++head) mlstm_forward_task(f, head, arena.next);
    for (int64_t tile = 0; tile < one.tiles; ++tile)
      mlstm_output_forward_task(one.out, tile, arena.next);
  });
  return {y, C, n, m, a, z, h, f_preact, log_i, log_f, C_chunks, n_chunks, m_steps, normalizer};
}

// Gradients of the arguments of `mlstm_block`, with m held constant. more_i and more_f, which come
// from the final state's m, are added to the gradients of log_i and log_f. The initial state's
// gradients are valid only if `initial`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensor, Tensor, Tensor, Tensor>
mlstm_block_grad(Tensor x, Tensor up, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor gate_bias,
                 MaybeTensor conv_weight, MaybeTensor conv_bias, MaybeTensor before,
                 MaybeTensor reset, Tensor m_0, Tensor norm, Tensor skip, Tensor down, double eps,
                 int64_t chunk_size, Tensor a, Tensor z, Tensor h, Tensor f_preact, Tensor log_i,
                 Tensor log_f, Tensor C_chunks, Tensor n_chunks, Tensor m_steps, Tensor normalizer,
                 Tensor dy, Tensor dC_T, Tensor dn_T, MaybeTensor more_i, MaybeTensor more_f,
                 bool initial) {
  const Checks check("mlstm_block_grad");
  MLSTMInputWeights weights(check, x, up, q, k, v, gate, gate_bias, conv_weight, conv_bias, before,
                            reset, true);
  MLSTMInput& p = weights.p;
  check_block(check, p, m_0, norm, skip, down, chunk_size);
  const int64_t B = p.B, T = p.T, D = p.D, E = p.E, NH = p.NH, DH = E / NH, wide = T * E;
  const int64_t NC = (T + chunk_size - 1) / chunk_size, heads = NH * T;
  check.floats({B, T, E}, {{"a", a}, {"z", z}});
  check.floats({B, NH, T, DH}, {{"h", h}});
  check.floats({B, NH, T}, {{"f_preact", f_preact}, {"log_i", log_i}, {"log_f", log_f},
                            {"m_steps", m_steps}, {"normalizer", normalizer},
                            {"more_i", more_i}, {"more_f", more_f}});
  check.floats({B, NH, NC, DH, DH}, {{"C_chunks", C_chunks}});
  check.floats({B, NH, NC, DH}, {{"n_chunks", n_chunks}});
  check.floats({B, T, D}, {{"dy", dy}});
  check.floats({B, NH, DH, DH}, {{"dC_T", dC_T}});
  check.floats({B, NH, DH}, {{"dn_T", dn_T}});
  check.together({"more_i", more_i}, {"more_f", more_f});
  Tensor dx = fresh(x, {B, T, D}), dbefore = fresh(x, {B, p.K - 1, E}, before.has_value());
  Tensor dC = torch::stable::clone(dC_T), dn = torch::stable::clone(dn_T);
  p.log_i = data(log_i), p.log_f = data(log_f), p.f_preact = data(f_preact);
  const auto down_packed = packed_backward(data(down), D, E);
  MLSTMOutput out{1, T, D, E, NH, static_cast<float>(eps)};
  out.norm = data(norm), out.skip = data(skip), out.down = down_packed.data(), out.dy = data(dy);
  const MLSTMBackward cell{1, NH, T, DH, DH, chunk_size};
  // The forward's maps to q, k and v, whose results are recomputed.
  Floats q_map, k_map, v_map;
  MLSTMInput again = p;
  weights.pack(q, q_map, again.q, false), weights.pack(k, k_map, again.k, false);
  weights.pack(v, v_map, again.v, false);

  std::vector<int64_t> sizes = mlstm_sums(p);
  const int64_t first_of_output = static_cast<int64_t>(sizes.size());
  for (int64_t size : mlstm_sums(out)) sizes.push_back(size);
  const int64_t floats = std::max({mlstm_branches_floats(p), mlstm_output_backward_floats(out),
                                   mlstm_backward_floats(cell), mlstm_input_backward_floats(p)});
  Sums sums(B, sizes);
  sums.for_each(6 * (wide + 16) + 2 * (heads + 16) + floats, [&](int64_t b, float* const* part,
                                                                 float* scratch) {
    Arena arena{scratch};
    Sample one(again, out, b);
    one.put_branches(arena);
    one.put_kept(data(a) + b * wide, data(z) + b * wide, data(h) + b * wide);
    float *dh = arena.take(wide), *dz = arena.take(wide);
    float *dlog_i = arena.take(heads), *dlog_f = arena.take(heads);
    for (int64_t tile = 0; tile < one.tiles; ++tile)
      mlstm_branches_task(one.in, tile, arena.next);

    // Gradients overwrite what is no longer read: c, and chunk by chunk q, k and v.
    one.out.dh = dh, one.out.dc = one.in.c, one.out.dz = dz;
    for (int64_t tile = 0; tile < one.tiles; ++tile)
      mlstm_output_backward_task(one.out, tile, mlstm_output_sums(part + first_of_output), arena.next);
    MLSTMBackward f = cell;
    f.q = one.q, f.k = one.k, f.v = one.v;
    f.h = {one.out.h, 0, T * DH, DH}, f.dh = {dh, 0, T * DH, DH};
    f.log_i = one.in.log_i, f.log_f = one.in.log_f, f.reset = one.in.reset;
    f.m_0 = data(m_0) + b * NH, f.C_chunks = data(C_chunks) + b * NH * NC * DH * DH;
    f.n_chunks = data(n_chunks) + b * NH * NC * DH;
    f.m_steps = data(m_steps) + b * heads, f.normalizer = data(normalizer) + b * heads;
    f.dq = {one.in.out_q, 0, DH, E}, f.dk = {one.in.out_k, 0, DH, E};
    f.dv = {one.in.out_v, 0, DH, E};
    f.dlog_i = dlog_i, f.dlog_f = dlog_f;
    f.dC = data(dC) + b * NH * DH * DH, f.dn = data(dn) + b * NH * DH, f.wants_initial = initial;
    for (int64_t head = 0; head < NH; ++head) mlstm_backward_task(f, head, arena.next);
    for (int64_t j = 0; j < heads && more_i; ++j)
      dlog_i[j] += data(more_i)[b * heads + j], dlog_f[j] += data(more_f)[b * heads + j];

    one.in.q = p.q, one.in.k = p.k, one.in.v = p.v;
    const MLSTMInputGrads g{dz, one.in.c, one.in.out_q, one.in.out_k, one.in.out_v, dlog_i, dlog_f,
                            data(dx) + b * T * D, before ? data(dbefore) + b * (p.K - 1) * E : nullptr};
    for (int64_t tile = 0; tile < one.tiles; ++tile)
      mlstm_input_backward_task(one.in, g, tile, mlstm_input_sums(part), arena.next);
  });
  return std::tuple_cat(std::tuple(dx), mlstm_parameter_grads(sums, p, x, q, k, v, gate),
                        std::tuple(dbefore, dC, dn, sums.total(x, first_of_output, {E}, 0),
                                   sums.total(x, first_of_output + 1, {E}, 0),
                                   sums.total(x, first_of_output + 2, {D, E}, E)));
}

}  // namespace
}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) {
  m.def(
      "mlstm_block(" MLSTM_WEIGHTS ", Tensor C_0, Tensor n_0, Tensor m_0, Tensor norm, Tensor skip, "
      "Tensor down, float eps, int chunk_size, bool save) -> (Tensor y, Tensor C, Tensor n, "
      "Tensor m, Tensor a, Tensor z, Tensor h, Tensor f_preact, Tensor log_i, Tensor log_f, "
      "Tensor C_chunks, Tensor n_chunks, Tensor m_steps, Tensor normalizer)");
  m.def(
      "mlstm_block_grad(" MLSTM_WEIGHTS ", Tensor m_0, Tensor norm, Tensor skip, Tensor down, float eps, "
      "int chunk_size, Tensor a, Tensor z, Tensor h, Tensor f_preact, Tensor log_i, Tensor log_f, "
      "Tensor C_chunks, Tensor n_chunks, Tensor m_steps, Tensor normalizer, Tensor dy, "
      "Tensor dC_T, Tensor dn_T, Tensor? more_i, Tensor? more_f, bool initial) -> (Tensor dx, "
      "Tensor d_up, "
      "Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_gate, Tensor d_gate_bias, "
      "Tensor d_conv_weight, Tensor d_conv_bias, Tensor d_before, Tensor dC, Tensor dn, "
      "Tensor d_norm, Tensor d_skip, Tensor d_down)");
}

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) {
  m.impl("mlstm_block", TORCH_BOX(&openxlstm::mlstm_block));
  m.impl("mlstm_block_grad", TORCH_BOX(&openxlstm::mlstm_block_grad));
}
