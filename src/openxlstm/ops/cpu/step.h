// What the extension offers Python besides torch's operators.
#pragma once

#include <Python.h>

namespace openxlstm {

PyObject* step(PyObject* module, PyObject* arguments);

}  // namespace openxlstm
