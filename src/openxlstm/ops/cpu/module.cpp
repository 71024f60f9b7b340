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
      {"is_unchanged", openxlstm::is_unchanged, METH_O,
       "is_unchanged(snapshot): whether modules and parameters are still what they were.\n\n"
       "A snapshot is a tuple of four tuples:\n"
       "(dict, (value, ...)), ...: the dict's values are these very objects, in this order;\n"
       "(dict, size), ...: the dict has so many entries;\n"
       "(object, type), ...: the object's class is exactly this type;\n"
       "(methods, addresses): each of these bound `tensor.data_ptr` returns its address.\n\n"
       "Raises TypeError for a snapshot of another form. It holds strong references, so that an\n"
       "identity cannot be taken over by a new object."},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0,      methods,
                                   nullptr,               nullptr,   nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr || PyModule_AddIntConstant(module, "MAX_CHUNK", openxlstm::kMaxChunk) != 0 ||
      PyModule_AddIntConstant(module, "MAX_KERNEL", openxlstm::kMaxKernel) != 0)
    return nullptr;
  return module;
}
