// One step of a whole model on a CPU: a token of a language model, or the features of a stream.
//
// It is a function of Python's and no operator of torch's: it is called for every step, overwrites
// the states that its plan points to, and has no gradient.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "arena.h"
#include "isa.h"
#include "module.h"
#include "step_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "step_kernel.h"
#include "each_isa.h"

namespace openxlstm {
namespace {

constexpr int64_t kLargest = int64_t{1} << 40;  // products of two sizes fit in 64 bits
constexpr bool is_size(int64_t x) { return 0 < x && x < kLargest; }
constexpr bool is_size_or_none(int64_t x) { return 0 <= x && x < kLargest; }
bool is_rate(double x) { return std::isfinite(x) && x >= 0; }

// Why a plan makes no sense, or null. It cannot check addresses; Python checks the tensors.
const char* mistake(const Step& s) {
  if (!is_size(s.B) || !is_size(s.D) || !is_size(s.NH) || s.D % s.NH != 0)
    return "the plan's batch size, width and number of heads do not fit together";
  if (s.I < 0 || s.I >= kLargest || s.num_positions < 0 || !is_rate(s.norm_eps) || !is_rate(s.cap))
    return "a number of the plan is out of range";
  if (s.I == 0 && (!is_size(s.V) || s.position == nullptr))
    return "a plan that reads tokens needs a vocabulary and positions";
  return s.out == nullptr ? "the plan has nowhere to write to" : nullptr;
}
const char* mistake(const Step& s, const StepLayer& layer) {
  if (layer.kind < BlockKind{} || layer.kind >= BlockKind::kCount) return "a block is of no kind";
  if (layer.inner < 0 || layer.inner >= kLargest || layer.K < 0 || layer.K >= kLargest ||
      !is_rate(layer.eps) || !is_rate(layer.cap))
    return "a number of a block is out of range";
  if (layer.K > 1 && layer.window == nullptr) return "a convolution has no window";
  for (int part = 0; part < 4; ++part)
    if (layer.state[part] == nullptr && (part < 3 || is_slstm(layer.kind)))
      return "a part of a state is missing";
  if (is_slstm(layer.kind)) return nullptr;
  const bool is_large = layer.kind == BlockKind::kLarge;
  if (!is_size(layer.DQK) || !is_size(layer.DHV)) return "an mLSTM's heads have no width";
  if (!is_large && (layer.inner != s.NH * layer.DHV || layer.DQK != layer.DHV))
    return "an mLSTM's width is not that of its heads";
  if (layer.kind == BlockKind::kMLSTM && (layer.side <= 0 || layer.inner % layer.side != 0))
    return "an mLSTM's width is not a multiple of its blocks";
  return nullptr;
}

}  // namespace

// step(plan, address): the plan is bytes, a Step and its StepLayers; the address is that of tokens
// (B) int64 or features (B, I) float.
PyObject* step(PyObject*, PyObject* arguments) {
  const char* plan = nullptr;
  Py_ssize_t size = 0;
  unsigned long long address = 0;
  if (!PyArg_ParseTuple(arguments, "y#K", &plan, &size, &address)) return nullptr;
  const auto fail = [](PyObject* kind, const char* message) -> PyObject* {
    PyErr_SetString(kind, message);
    return nullptr;
  };
  const auto* s = reinterpret_cast<const Step*>(plan);
  const size_t bytes = static_cast<size_t>(size);
  if (bytes < sizeof(Step) || (bytes - sizeof(Step)) % sizeof(StepLayer) != 0 ||
      static_cast<int64_t>((bytes - sizeof(Step)) / sizeof(StepLayer)) != s->num_layers)
    return fail(PyExc_ValueError, "the plan has another size than its layers");
  const auto* layers = reinterpret_cast<const StepLayer*>(plan + sizeof(Step));
  const char* wrong = address == 0 ? "there is no input" : mistake(*s);
  for (int64_t l = 0; wrong == nullptr && l < s->num_layers; ++l) wrong = mistake(*s, layers[l]);
  if (wrong != nullptr) return fail(PyExc_ValueError, wrong);
  const auto* tokens = reinterpret_cast<const int64_t*>(address);
  for (int64_t b = 0; s->I == 0 && b < s->B; ++b) {
    if (tokens[b] < 0 || tokens[b] >= s->V)
      return fail(PyExc_IndexError, "a token is not one of the model's");
    if (s->position[b] < 0) return fail(PyExc_IndexError, "a position is negative");
  }
  float* scratch = scratch_of_thread(OPENXLSTM_CALL(step_floats, *s, layers));
  OPENXLSTM_CALL(step_model, *s, layers, reinterpret_cast<const void*>(address), scratch);
  Py_RETURN_NONE;
}

// What Python compares its own order of words with: for each struct the names of its integers,
// reals and slots, and its size in bytes; slots of the blocks are in the order of their kinds.
PyObject* step_layout(PyObject*, PyObject*) {
  return Py_BuildValue(
      "{s(sssn)s(ssin)s(sssss)}", "Step", Step::kSizes, Step::kReals, ModelSlots::kNames,
      static_cast<Py_ssize_t>(sizeof(Step)), "StepLayer", StepLayer::kSizes, StepLayer::kReals,
      kStepWeights, static_cast<Py_ssize_t>(sizeof(StepLayer)), "blocks", MLSTMSlots::kNames,
      SLSTMSlots::kNames, LargeSlots::kNames, BareMLSTMSlots::kNames, BareSLSTMSlots::kNames);
}

}  // namespace openxlstm
