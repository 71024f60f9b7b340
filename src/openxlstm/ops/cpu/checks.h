// What every operator checks before it touches memory: device, dtype, sizes and layout of its
// tensors, and the range of its integers. A mistake raises a RuntimeError of one line that names
// the operator and the argument.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/headeronly/core/ScalarType.h>

#include "tensors.h"

namespace openxlstm {

class Checks {
 public:
  using Sizes = std::initializer_list<int64_t>;
  struct Named {
    const char* name;
    const Tensor* x;  // null for an optional tensor that was left out
    Named(const char* name_, const Tensor& tensor) : name(name_), x(&tensor) {}
    Named(const char* name_, const MaybeTensor& tensor)
        : name(name_), x(tensor ? &*tensor : nullptr) {}
  };

  explicit Checks(const char* op) : op_(op) {}

  // One size of a tensor that must have `rank` dimensions; `least` or more.
  int64_t size(Named named, int64_t rank, int64_t dim, int64_t least = 1) const {
    const Tensor& x = *named.x;
    if (x.dim() != rank)
      fail(named.name, "must have ", rank, " dimensions, and has ", x.dim());
    const int64_t size = x.sizes()[dim];
    if (size < least)
      fail(named.name, "must have at least ", least, " in dimension ", dim, ", and has ", size);
    return size;
  }

  // Contiguous float32 tensors of these sizes; optional ones that were left out pass.
  void floats(Sizes sizes, std::initializer_list<Named> tensors) const {
    for (const Named& named : tensors)
      if (named.x != nullptr)
        expect(named, sizes, ScalarType::Float, "contiguous", named.x->is_contiguous());
  }
  // The same with any strides but the last, which is 1.
  void rows(Sizes sizes, std::initializer_list<Named> tensors) const {
    for (const Named& named : tensors) {
      const int64_t last = named.x->dim() - 1;
      const bool dense = last >= 0 && (named.x->sizes()[last] <= 1 || named.x->stride(last) == 1);
      expect(named, sizes, ScalarType::Float, "dense in its last dimension", dense);
    }
  }
  // A contiguous mask, if there is one.
  void mask(Sizes sizes, Named named) const {
    if (named.x != nullptr)
      expect(named, sizes, ScalarType::Bool, "contiguous", named.x->is_contiguous());
  }
  // An optional tensor that only makes sense with another one.
  void only_with(Named named, Named other) const {
    if (named.x != nullptr && other.x == nullptr) fail(named.name, "is given without ", other.name);
  }
  void together(Named one, Named other) const { only_with(one, other), only_with(other, one); }

  void in_range(const char* name, int64_t value, int64_t least, int64_t most) const {
    if (value < least || value > most)
      fail(name, "must be from ", least, " to ", most, ", and is ", value);
  }
  void multiple(const char* name, int64_t value, int64_t of) const {
    if (value % of != 0) fail(name, "must be a multiple of ", of, ", and is ", value);
  }

 private:
  using ScalarType = torch::headeronly::ScalarType;

  void expect(const Named& named, Sizes sizes, ScalarType dtype, const char* layout,
              bool has_layout) const {
    const Tensor& x = *named.x;
    const auto found = x.sizes();
    const bool same = found.size() == sizes.size() &&
                      std::equal(sizes.begin(), sizes.end(), found.begin());
    if (same && has_layout && x.scalar_type() == dtype && x.is_cpu()) [[likely]] return;
    fail(named.name, "must be ", words(sizes), ' ', torch::headeronly::toString(dtype), ", ", layout,
         " and on the CPU, and is ", words(found), ' ', torch::headeronly::toString(x.scalar_type()),
         ", ", has_layout ? "" : "not ", layout, " and ", x.is_cpu() ? "" : "not ", "on the CPU");
  }

  template <class List>
  static std::string words(const List& sizes) {
    std::ostringstream out;
    const char* separator = "(";
    for (int64_t size : sizes) out << separator << size, separator = ", ";
    out << (sizes.size() == 0 ? "()" : ")");
    return out.str();
  }

  template <class... Words>
  [[noreturn]] void fail(const char* argument, const Words&... words) const {
    std::ostringstream out;
    out << "openxlstm." << op_ << ": " << argument << ' ';
    (out << ... << words);
    throw std::runtime_error(out.str());
  }

  const char* op_;
};

}  // namespace openxlstm
