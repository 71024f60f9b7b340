// One token through a whole language model on a CPU, for generation.
//
// A function of Python's rather than an operator of torch's: it is called for every token, changes
// what it is given, and has no gradient.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "arena.h"
#include "isa.h"
#include "step.h"
#include "step_args.h"
#include "tensors.h"

#define OPENXLSTM_KERNEL "step_kernel.h"
#include "each_isa.h"

namespace openxlstm {

// step(plan, ids): plan is bytes, a Step and its StepLayers; ids the address of (B) int64 tokens.
PyObject* step(PyObject*, PyObject* arguments) {
  const char* plan = nullptr;
  Py_ssize_t size = 0;
  unsigned long long ids = 0;
  if (!PyArg_ParseTuple(arguments, "y#K", &plan, &size, &ids)) return nullptr;
  const auto* s = reinterpret_cast<const Step*>(plan);
  const auto expected = [&] { return sizeof(Step) + s->num_layers * sizeof(StepLayer); };
  if (static_cast<size_t>(size) < sizeof(Step) || static_cast<size_t>(size) != expected()) {
    PyErr_SetString(PyExc_ValueError, "the plan has another size than its layers");
    return nullptr;
  }
  const auto* tokens = reinterpret_cast<const int64_t*>(ids);
  for (int64_t b = 0; b < s->B; ++b)
    if (tokens[b] < 0 || tokens[b] >= s->V) {
      PyErr_SetString(PyExc_IndexError, "a token is not one of the model's");
      return nullptr;
    }
  const auto* layers = reinterpret_cast<const StepLayer*>(plan + sizeof(Step));
  float* scratch = scratch_of_thread(OPENXLSTM_CALL(step_floats, *s, layers));
  OPENXLSTM_CALL(step_model, *s, layers, tokens, scratch);
  Py_RETURN_NONE;
}

}  // namespace openxlstm
