// Whether a model's modules and parameters are still what they were, for whoever keeps addresses of
// their memory. It runs before every step, so it takes about a microsecond.
#define PY_SSIZE_T_CLEAN
#include "module.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "tensors.h"

namespace openxlstm {
namespace {

// Tensors, and where their memory was.
struct Watched {
  std::vector<Tensor> tensors;
  std::vector<const void*> addresses;
  bool is_unchanged() const {
    for (size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].const_data_ptr() != addresses[i]) return false;
    return true;
  }
};
constexpr const char* kCapsule = "openxlstm.watched";

// What `watch` made and `watched` has not taken yet.
std::mutex new_ones_mutex;
std::set<Watched*> new_ones;

// An operator, since only operators are given tensors; its result is for `watched` alone.
int64_t watch(std::vector<Tensor> tensors) {
  auto made = std::make_unique<Watched>();
  for (const Tensor& x : tensors) made->addresses.push_back(x.const_data_ptr());
  made->tensors = std::move(tensors);
  const std::lock_guard lock(new_ones_mutex);
  new_ones.insert(made.get());
  return reinterpret_cast<int64_t>(made.release());
}

// Calls same(first, second) for each pair of a tuple, which returns 1, 0 for a difference, or -1
// for an error.
template <class Same>
int all_pairs(PyObject* pairs, const Same& same) {
  const Py_ssize_t count = PyTuple_Size(pairs);
  if (count < 0) return -1;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* pair = PyTuple_GetItem(pairs, i);
    if (PyTuple_Size(pair) != 2) return -1;
    const int result = same(PyTuple_GetItem(pair, 0), PyTuple_GetItem(pair, 1));
    if (result != 1) return result;
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

int same_number(unsigned long long found, PyObject* expected) {
  const unsigned long long value = PyLong_AsUnsignedLongLong(expected);
  if (value == ~0ull && PyErr_Occurred()) return -1;
  return found == value;
}

int same_size(PyObject* dict, PyObject* expected) {
  const Py_ssize_t size = PyDict_Size(dict);
  return size < 0 ? -1 : same_number(static_cast<unsigned long long>(size), expected);
}

int same_type(PyObject* object, PyObject* type) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object)) == type;
}

// Triples of a dict, a key and the very object that it has to hold.
int same_items(PyObject* triples) {
  const Py_ssize_t count = PyTuple_Size(triples);
  if (count < 0) return -1;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* triple = PyTuple_GetItem(triples, i);
    if (PyTuple_Size(triple) != 3 || PyDict_Size(PyTuple_GetItem(triple, 0)) < 0) return -1;
    PyObject* found = PyDict_GetItem(PyTuple_GetItem(triple, 0), PyTuple_GetItem(triple, 1));
    if (found != PyTuple_GetItem(triple, 2)) return 0;
  }
  return 1;
}

// Bound `tensor.data_ptr` methods and what they returned.
int same_addresses(PyObject* methods, PyObject* addresses) {
  const Py_ssize_t count = PyTuple_Size(methods);
  if (count < 0 || PyTuple_Size(addresses) != count) return -1;
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
  if (PyTuple_Size(snapshot) != 5) return -1;
  int (*const checks[3])(PyObject*, PyObject*) = {same_values, same_size, same_type};
  for (int i = 0; i < 3; ++i)
    if (const int result = all_pairs(PyTuple_GetItem(snapshot, i), checks[i]); result != 1)
      return result;
  if (const int result = same_items(PyTuple_GetItem(snapshot, 3)); result != 1) return result;
  PyObject* last = PyTuple_GetItem(snapshot, 4);
  if (PyCapsule_IsValid(last, kCapsule))
    return static_cast<Watched*>(PyCapsule_GetPointer(last, kCapsule))->is_unchanged();
  if (PyTuple_Size(last) != 2) return -1;
  return same_addresses(PyTuple_GetItem(last, 0), PyTuple_GetItem(last, 1));
}

}  // namespace

PyObject* watched(PyObject*, PyObject* made_by_watch) {
  auto* made = static_cast<Watched*>(PyLong_AsVoidPtr(made_by_watch));
  {
    const std::lock_guard lock(new_ones_mutex);
    if (made == nullptr || new_ones.erase(made) == 0) {
      PyErr_SetString(PyExc_ValueError, "only a result of the operator `watch` can be taken, once");
      return nullptr;
    }
  }
  return PyCapsule_New(made, kCapsule, [](PyObject* capsule) {
    delete static_cast<Watched*>(PyCapsule_GetPointer(capsule, kCapsule));
  });
}

PyObject* is_unchanged(PyObject*, PyObject* snapshot) {
  const int result = unchanged(snapshot);
  if (result >= 0) return PyBool_FromLong(result);
  // Python's own complaint about an object that is no tuple is a SystemError.
  PyErr_SetString(PyExc_TypeError, "the snapshot is not of the form that is_unchanged documents");
  return nullptr;
}

}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) { m.def("watch(Tensor[] tensors) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) { m.impl("watch", TORCH_BOX(&openxlstm::watch)); }
