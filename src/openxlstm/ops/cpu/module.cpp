// The extension module. Importing it registers torch's operators.
#define PY_SSIZE_T_CLEAN
#include "module.h"

#include "conv_args.h"
#include "mlstm_args.h"

PyMODINIT_FUNC PyInit__native() {
  static PyMethodDef methods[] = {
      {"step", openxlstm::step, METH_VARARGS,
       "step(plan, address): one step of a whole model, as openxlstm.ops.native.step packs it."},
      {"step_layout", openxlstm::step_layout, METH_NOARGS,
       "step_layout(): names and sizes of a step's plan, in the order of its 64-bit words."},
      {"watched", openxlstm::watched, METH_VARARGS,
       "watched(torch.ops.openxlstm.watch(tensors), tables): what `is_unchanged` compares.\n\n"
       "tables is a tuple of four:\n"
       "((dict, (value, ...)), ...): each dict's values are these very objects, in this order;\n"
       "((dict, size), ...): each dict has so many entries;\n"
       "((object, type), ...): each object's class is exactly this type;\n"
       "((dict, key, value), ...): each dict holds this very object under the key.\n\n"
       "It holds references: while it lives, torch.utils.swap_tensors refuses to swap the tensors.\n"
       "Raises TypeError for tables of another form."},
      {"is_unchanged", openxlstm::is_unchanged, METH_O,
       "is_unchanged(watched): whether all is as it was, and the tensors are in the same memory."},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0,      methods,
                                   nullptr,               nullptr,   nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr || PyModule_AddIntConstant(module, "MAX_CHUNK", openxlstm::kMaxChunk) != 0 ||
      PyModule_AddIntConstant(module, "MAX_KERNEL", openxlstm::kMaxKernel) != 0)
    return nullptr;
  return module;
}
