// One step of a whole model on a CPU: a token of a language model, or the features of a stream.
//
// A function of Python's rather than an operator of torch's: it is called for every step, changes
// what it is given, and has no gradient.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "arena.h"
#include "isa.h"
#include "step.h"
#include "step_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "step_kernel.h"
#include "each_isa.h"

namespace openxlstm {

// step(plan, input): plan is bytes, a Step and its StepLayers; input the address of tokens (B) int64
// or features (B, I) float.
PyObject* step(PyObject*, PyObject* arguments) {
  const char* plan = nullptr;
  Py_ssize_t size = 0;
  unsigned long long input = 0;
  if (!PyArg_ParseTuple(arguments, "y#K", &plan, &size, &input)) return nullptr;
  const auto* s = reinterpret_cast<const Step*>(plan);
  const auto expected = [&] { return sizeof(Step) + s->num_layers * sizeof(StepLayer); };
  if (static_cast<size_t>(size) < sizeof(Step) || static_cast<size_t>(size) != expected()) {
    PyErr_SetString(PyExc_ValueError, "the plan has another size than its layers");
    return nullptr;
  }
  const auto* tokens = reinterpret_cast<const int64_t*>(input);
  for (int64_t b = 0; b < s->B && s->I == 0; ++b)
    if (tokens[b] < 0 || tokens[b] >= s->V) {
      PyErr_SetString(PyExc_IndexError, "a token is not one of the model's");
      return nullptr;
    }
  const auto* layers = reinterpret_cast<const StepLayer*>(plan + sizeof(Step));
  float* scratch = scratch_of_thread(OPENXLSTM_CALL(step_floats, *s, layers));
  OPENXLSTM_CALL(step_model, *s, layers, reinterpret_cast<const void*>(input), scratch);
  Py_RETURN_NONE;
}

}  // namespace openxlstm
