// The plan of one step through a whole model: sizes, and the addresses of weights, states and
// results. A language model reads tokens and ends with a head; a recurrent layer reads features and
// ends with its norm.
//
// Python packs these structs as 64-bit words (ops/native/step.py). The names below are exported,
// and Python refuses to start where its own differ. Weights stay where the model has them. States
// and results belong to the plan's owner and are overwritten. Matrices are all float or all
// bfloat16; everything else is float. The shapes of all weights stand in ops/native/step.py.
#pragma once

#include <cstdint>

namespace openxlstm {

// Declares an enum of slots, and their names in its order.
#define OPENXLSTM_SLOTS(Slots, ...)              \
  struct Slots {                                 \
    enum Slot : int { __VA_ARGS__, kCount };     \
    static constexpr const char* kNames = #__VA_ARGS__; \
  }

OPENXLSTM_SLOTS(ModelSlots, tokens, positions, proj, proj_bias, norm, norm_bias, head);

OPENXLSTM_SLOTS(MLSTMSlots, norm, conv, conv_bias, up, up_bias, q, k, v, q_bias, k_bias, v_bias, gate,
                gate_bias, head_norm, skip, down, down_bias);
OPENXLSTM_SLOTS(SLSTMSlots, norm, conv, conv_bias, input, bias, recurrent, head_norm, ff_norm, ff_up,
                ff_up_bias, ff_down, ff_down_bias);
OPENXLSTM_SLOTS(LargeSlots, norm, norm_bias, q, k, v, o, gate, q_bias, k_bias, v_bias, o_bias,
                gate_bias, head_norm, head_norm_bias, out, out_bias, ff_norm, ff_norm_bias, ff_gate,
                ff_up, ff_down, ff_gate_bias, ff_up_bias, ff_down_bias);
OPENXLSTM_SLOTS(BareMLSTMSlots, proj, proj_bias, qkvo, qkvo_bias, gate, gate_bias);
OPENXLSTM_SLOTS(BareSLSTMSlots, proj, proj_bias, input, bias, recurrent);

constexpr int kStepWeights = LargeSlots::kCount;

// The kinds of blocks, in the order of Python's table.
enum class BlockKind : int64_t { kMLSTM, kSLSTM, kLarge, kBareMLSTM, kBareSLSTM, kCount };
constexpr bool is_slstm(BlockKind kind) {
  return kind == BlockKind::kSLSTM || kind == BlockKind::kBareSLSTM;
}

// Declares members of one type, and their names in order.
#define OPENXLSTM_MEMBERS(type, names, ...) \
  type __VA_ARGS__;                         \
  static constexpr const char* names = #__VA_ARGS__

struct StepLayer {
  BlockKind kind;
  OPENXLSTM_MEMBERS(int64_t, kSizes,
                    inner,     // E of an mLSTM (D of a bare one); F of other kinds, 0 for none
                    DQK, DHV,  // widths of the cell's heads
                    K,         // steps that the convolution reads, 0 for none
                    side,      // of the blocks of an mLSTM's projections to q, k and v
                    exp_gate   // whether an sLSTM's forget gate is exp
  );
  OPENXLSTM_MEMBERS(double, kReals,
                    eps,  // of an mLSTM's denominator
                    cap   // of a large block's gates, 0 for none
  );
  const void* weight[kStepWeights];  // by the slots of the kind; null for a weight that is not there
  float* window;                     // (B, K-1, width)
  float* state[4];                   // C, n, m; or h, c, n, m

  const float* vector(int slot) const { return static_cast<const float*>(weight[slot]); }
};

struct Step {
  OPENXLSTM_MEMBERS(int64_t, kSizes, B, D, V, NH, num_layers, num_positions,
                    I,       // features of the input, 0 where it is tokens
                    narrow,  // whether matrices are bfloat16
                    rms      // whether norms of rows are those of large blocks
  );
  OPENXLSTM_MEMBERS(double, kReals, norm_eps,
                    cap  // of the result, 0 for none
  );
  const void* weight[ModelSlots::kCount];
  int64_t* position;  // (B): tokens read so far; null for features
  float* out;         // (B, V), without a head (B, D)

  const float* vector(int slot) const { return static_cast<const float*>(weight[slot]); }
};

}  // namespace openxlstm
