// The extension itself. Importing it registers torch's operators.
#include <Python.h>

#include "step.h"

PyMODINIT_FUNC PyInit__native() {
  static PyMethodDef methods[] = {
      {"step", openxlstm::step, METH_VARARGS, "One token through a language model: (plan, ids)."},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0,      methods,
                               nullptr,               nullptr,   nullptr, nullptr};
  return PyModule_Create(&module);
}
