// What an mLSTM block (mlstm_block.cpp) uses of the ops before and after its cell
// (mlstm_parts.cpp): checked and packed weights, the kernels' tasks for the instruction set that
// runs, and their scratch memory in floats.
#pragma once

#include <tuple>
#include <vector>

#include "checks.h"
#include "mlstm_parts_args.h"
#include "packing.h"

namespace openxlstm {

// The checked arguments of the input, and the packed weights that they point to.
struct MLSTMInputWeights {
  MLSTMInput p;
  Floats up, q, k, v, gate_c, gate_a;
  std::vector<float> gate;  // (2·NH, 2E): the gates' joint map of c and a
  PackedConv conv;

  MLSTMInputWeights(const Checks& check, const Tensor& x, const Tensor& up_, const Tensor& q_,
                    const Tensor& k_, const Tensor& v_, const Tensor& gate_,
                    const Tensor& gate_bias, const MaybeTensor& conv_weight,
                    const MaybeTensor& conv_bias, const MaybeTensor& before,
                    const MaybeTensor& reset, bool backward);
  // Packs a block-diagonal map (E/4, out, in), or its transpose.
  void pack(const Tensor& from, Floats& to, const float*& pointer, bool transposed) const;
};

int64_t mlstm_tiles(int64_t T);
int64_t mlstm_input_forward_floats(const MLSTMInput& p);
void mlstm_input_forward_task(const MLSTMInput& p, int64_t task, float* scratch);
int64_t mlstm_branches_floats(const MLSTMInput& p);
void mlstm_branches_task(const MLSTMInput& p, int64_t task, float* scratch);
int64_t mlstm_input_backward_floats(const MLSTMInput& p);
void mlstm_input_backward_task(const MLSTMInput& p, const MLSTMInputGrads& g, int64_t task,
                               const MLSTMInputSums& sums, float* scratch);
int64_t mlstm_output_forward_floats(const MLSTMOutput& p);
void mlstm_output_forward_task(const MLSTMOutput& p, int64_t task, float* scratch);
int64_t mlstm_output_backward_floats(const MLSTMOutput& p);
void mlstm_output_backward_task(const MLSTMOutput& p, int64_t task, const MLSTMOutputSums& sums,
                                float* scratch);

// Sizes of the sums over tasks, in the order of MLSTMInputSums and of MLSTMOutputSums.
std::vector<int64_t> mlstm_sums(const MLSTMInput& p);
std::vector<int64_t> mlstm_sums(const MLSTMOutput& p);
inline MLSTMInputSums mlstm_input_sums(float* const* part) {
  return {part[0], part[1], part[2], part[3], part[4], part[5], part[6], part[7]};
}
inline MLSTMOutputSums mlstm_output_sums(float* const* part) { return {part[0], part[1], part[2]}; }

// The gradients of the input's parameters from those sums, in the order of the forward's arguments.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_parameter_grads(
    Sums& sums, const MLSTMInput& p, const Tensor& x, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& gate);

}  // namespace openxlstm

// The arguments of the input, as a schema names them.
#define MLSTM_WEIGHTS \
  "Tensor x, Tensor up, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor gate_bias, " \
  "Tensor? conv_weight, Tensor? conv_bias, Tensor? before, Tensor? reset"
