// What an sLSTM block (slstm_block.cpp) uses of the scan (slstm.cpp) and the feed-forward
// (feedforward.cpp): tasks for the instruction set that runs, their scratch memory in floats, and
// packed weights.
#pragma once

#include "feedforward_args.h"
#include "slstm_args.h"
#include "tensors.h"

namespace openxlstm {

// slstm.cpp. Weights are (NH, 4, DH, DH).
Floats slstm_packed_recurrent(const Tensor& R, bool backward);
Floats slstm_packed_input(const Tensor& W, bool backward);
int64_t slstm_num_tasks(int64_t B, int64_t NH);
int64_t slstm_forward_floats(int64_t DH);
int64_t slstm_backward_floats(int64_t DH);
void slstm_forward_task(const SLSTMForward& a, int64_t task, const float* packed, float* scratch);
void slstm_backward_task(const SLSTMBackward& a, int64_t task, const float* packed,
                         const SLSTMSums& sums, float* scratch);

// feedforward.cpp. A tile is up to 96 rows.
int64_t feedforward_tiles(int64_t rows);
int64_t feedforward_forward_floats(int64_t D, int64_t F);
int64_t feedforward_backward_floats(int64_t D, int64_t F);
void feedforward_forward_tile(const FeedForward& a, int64_t tile, float* scratch);
void feedforward_backward_tile(const FeedForward& a, int64_t tile, const FeedForwardSums& sums,
                               float* scratch);

}  // namespace openxlstm
