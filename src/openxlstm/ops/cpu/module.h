// The functions that the extension offers Python besides torch's operators.
#pragma once

#include <Python.h>

namespace openxlstm {

PyObject* step(PyObject* module, PyObject* arguments);        // step.cpp
PyObject* step_layout(PyObject* module, PyObject* nothing);   // step.cpp
PyObject* watched(PyObject* module, PyObject* arguments);     // unchanged.cpp
PyObject* is_unchanged(PyObject* module, PyObject* watched);  // unchanged.cpp

}  // namespace openxlstm
