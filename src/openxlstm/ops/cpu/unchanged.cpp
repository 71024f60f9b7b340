// Whether a model's modules and parameters are still what they were, for whoever keeps addresses of
// their memory. It runs before every step, so it is written against Python's limited API.
#define PY_SSIZE_T_CLEAN
#include "module.h"

#include <cstdint>

namespace openxlstm {
namespace {

// A tuple of pairs, looked at one by one. `same` returns 1, 0 for a difference, -1 for an error.
template <class Same>
int all_pairs(PyObject* pairs, const Same& same) {
  const Py_ssize_t count = PyTuple_Size(pairs);
  if (count < 0) return -1;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* pair = PyTuple_GetItem(pairs, i);
    PyObject* first = PyTuple_GetItem(pair, 0);
    PyObject* second = first == nullptr ? nullptr : PyTuple_GetItem(pair, 1);
    if (second == nullptr) return -1;
    if (const int result = same(first, second); result != 1) return result;
  }
  return 1;
}

int same_values(PyObject* dict, PyObject* values) {
  const Py_ssize_t count = PyTuple_Size(values), size = PyDict_Size(dict);
  if (count < 0 || size < 0) return -1;
  if (count != size) return 0;
  Py_ssize_t at = 0, i = 0;
  for (PyObject* value = nullptr; PyDict_Next(dict, &at, nullptr, &value); ++i)
    if (value != PyTuple_GetItem(values, i)) return 0;
  return 1;
}

// `wanted` is an int, kept as an int of the same value.
int same_number(uint64_t found, PyObject* wanted) {
  const unsigned long long value = PyLong_AsUnsignedLongLong(wanted);
  if (value == ~0ull && PyErr_Occurred()) return -1;
  return found == value;
}

int same_size(PyObject* dict, PyObject* wanted) {
  const Py_ssize_t size = PyDict_Size(dict);
  return size < 0 ? -1 : same_number(static_cast<uint64_t>(size), wanted);
}

int same_type(PyObject* object, PyObject* type) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object)) == type;
}

int same_addresses(PyObject* methods, PyObject* addresses) {
  const Py_ssize_t count = PyTuple_Size(methods);
  if (count < 0) return -1;
  if (const Py_ssize_t others = PyTuple_Size(addresses); others != count) {
    if (others >= 0) PyErr_SetString(PyExc_TypeError, "an address is wanted for each method");
    return -1;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* address = PyObject_CallNoArgs(PyTuple_GetItem(methods, i));
    if (address == nullptr) return -1;
    const unsigned long long found = PyLong_AsUnsignedLongLong(address);
    Py_DecRef(address);
    if (found == ~0ull && PyErr_Occurred()) return -1;
    if (const int result = same_number(found, PyTuple_GetItem(addresses, i)); result != 1)
      return result;
  }
  return 1;
}

int unchanged(PyObject* snapshot) {
  const Py_ssize_t count = PyTuple_Size(snapshot);
  if (count != 4) return -1;
  int (*const checks[3])(PyObject*, PyObject*) = {same_values, same_size, same_type};
  for (int i = 0; i < 3; ++i)
    if (const int result = all_pairs(PyTuple_GetItem(snapshot, i), checks[i]); result != 1)
      return result;
  PyObject* last = PyTuple_GetItem(snapshot, 3);
  if (PyTuple_Size(last) != 2) return -1;
  return same_addresses(PyTuple_GetItem(last, 0), PyTuple_GetItem(last, 1));
}

}  // namespace

PyObject* is_unchanged(PyObject*, PyObject* snapshot) {
  const int result = unchanged(snapshot);
  if (result >= 0) return PyBool_FromLong(result);
  // Python's own complaint about a tuple that is none is a SystemError.
  PyErr_SetString(PyExc_TypeError, "the snapshot is not of the form that is_unchanged documents");
  return nullptr;
}

}  // namespace openxlstm
