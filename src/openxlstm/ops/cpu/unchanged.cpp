// Whether a model's modules and parameters are still what they were, for whoever keeps addresses of
// their memory. It runs before every step, so all that it compares is laid out beforehand.
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

// What must not change. Objects are kept alive by `owner`, so that no new one takes an identity over.
struct Watched {
  struct Values { PyObject* dict; std::vector<PyObject*> values; };
  struct Size { PyObject* dict; Py_ssize_t size; };
  struct Type { PyObject *object, *type; };
  struct Item { PyObject *dict, *key, *value; };
  std::vector<Tensor> tensors;
  std::vector<const void*> addresses;
  std::vector<Values> values;
  std::vector<Size> sizes;
  std::vector<Type> types;
  std::vector<Item> items;
  PyObject* owner = nullptr;

  bool is_unchanged() const {
    for (const Type& each : types)
      if (reinterpret_cast<PyObject*>(Py_TYPE(each.object)) != each.type) return false;
    for (const Size& each : sizes)
      if (PyDict_Size(each.dict) != each.size) return false;
    for (const Values& each : values) {
      if (PyDict_Size(each.dict) != static_cast<Py_ssize_t>(each.values.size())) return false;
      Py_ssize_t at = 0;
      size_t i = 0;
      for (PyObject* value = nullptr; PyDict_Next(each.dict, &at, nullptr, &value); ++i)
        if (value != each.values[i]) return false;
    }
    for (const Item& each : items)
      if (PyDict_GetItem(each.dict, each.key) != each.value) return false;
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

// Calls add(row) for each row of a tuple of tuples of `width`; false where it is of another form.
template <class Add>
bool for_rows(PyObject* rows, Py_ssize_t width, const Add& add) {
  const Py_ssize_t count = PyTuple_Size(rows);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* row = PyTuple_GetItem(rows, i);
    if (PyTuple_Size(row) != width || !add(row)) return false;
  }
  return count >= 0;
}
bool fill(Watched& to, PyObject* tables) {
  if (PyTuple_Size(tables) != 4) return false;
  const auto at = [](PyObject* row, Py_ssize_t i) { return PyTuple_GetItem(row, i); };
  return for_rows(at(tables, 0), 2, [&](PyObject* row) {
           Watched::Values each{at(row, 0), {}};
           const Py_ssize_t count = PyTuple_Size(at(row, 1));
           for (Py_ssize_t i = 0; i < count; ++i) each.values.push_back(at(at(row, 1), i));
           to.values.push_back(std::move(each));
           return count >= 0 && PyDict_Check(at(row, 0));
         }) &&
         for_rows(at(tables, 1), 2, [&](PyObject* row) {
           to.sizes.push_back({at(row, 0), PyLong_AsSsize_t(at(row, 1))});
           return PyDict_Check(at(row, 0)) && !PyErr_Occurred();
         }) &&
         for_rows(at(tables, 2), 2, [&](PyObject* row) {
           to.types.push_back({at(row, 0), at(row, 1)});
           return true;
         }) &&
         for_rows(at(tables, 3), 3, [&](PyObject* row) {
           to.items.push_back({at(row, 0), at(row, 1), at(row, 2)});
           return PyDict_Check(at(row, 0)) != 0;
         });
}

}  // namespace

PyObject* watched(PyObject*, PyObject* arguments) {
  PyObject *made_by_watch = nullptr, *tables = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO", &made_by_watch, &tables)) return nullptr;
  auto* made = static_cast<Watched*>(PyLong_AsVoidPtr(made_by_watch));
  {
    const std::lock_guard lock(new_ones_mutex);
    if (made == nullptr || new_ones.erase(made) == 0) {
      PyErr_SetString(PyExc_ValueError, "only a result of the operator `watch` can be taken, once");
      return nullptr;
    }
  }
  if (!fill(*made, tables)) {
    delete made;
    // Python's own complaint about an object that is no tuple is a SystemError.
    PyErr_SetString(PyExc_TypeError, "the tables are not of the form that `watched` documents");
    return nullptr;
  }
  Py_IncRef(made->owner = tables);
  return PyCapsule_New(made, kCapsule, [](PyObject* capsule) {
    auto* each = static_cast<Watched*>(PyCapsule_GetPointer(capsule, kCapsule));
    Py_DecRef(each->owner);
    delete each;
  });
}

PyObject* is_unchanged(PyObject*, PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kCapsule)) {
    PyErr_SetString(PyExc_TypeError, "is_unchanged takes a result of `watched`");
    return nullptr;
  }
  const auto* each = static_cast<Watched*>(PyCapsule_GetPointer(capsule, kCapsule));
  return PyBool_FromLong(each->is_unchanged());
}

}  // namespace openxlstm

STABLE_TORCH_LIBRARY_FRAGMENT(openxlstm, m) { m.def("watch(Tensor[] tensors) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(openxlstm, CPU, m) { m.impl("watch", TORCH_BOX(&openxlstm::watch)); }
