// Tensors of torch's stable ABI for the kernels: addresses and new memory; tasks on torch's
// threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "arena.h"

namespace openxlstm {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline float* data(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

// Null for a tensor that was not given.
inline const float* data(const MaybeTensor& x) { return x ? data(*x) : nullptr; }
inline const bool* mask(const MaybeTensor& x) {
  return x ? static_cast<const bool*>(x->data_ptr()) : nullptr;
}

// Requests large pages for new memory: the first touch of a page costs a fault, and with small
// pages the faults of a large tensor take longer than computing its contents.
inline void use_large_pages(void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLarge = 1 << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(start) + kLarge - 1) / kLarge * kLarge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(start) + bytes) / kLarge * kLarge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// An uninitialised float tensor; one without elements if it is not wanted.
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, bool wanted = true) {
  const std::vector<int64_t> empty(sizes.size(), 0);
  if (!wanted) return torch::stable::new_empty(like, {empty.data(), empty.size()});
  Tensor x = torch::stable::new_empty(like, {sizes.begin(), sizes.size()});
  use_large_pages(x.data_ptr(), x.numel() * static_cast<int64_t>(sizeof(float)));
  return x;
}

// An uninitialised array, for memory that is written before it is read.
class Floats {
 public:
  explicit Floats(int64_t size = 0) : floats_(size ? new float[size] : nullptr), size_(size) {}
  float* data() { return floats_.get(); }
  const float* data() const { return floats_.get(); }
  int64_t size() const { return size_; }

 private:
  std::unique_ptr<float[]> floats_;
  int64_t size_;
};

// This thread's scratch memory: at least `floats`, beginning on a cache line. The thread keeps it
// for its lifetime, as large as its largest request.
inline float* scratch_of_thread(int64_t floats) {
  thread_local Floats scratch;
#ifdef OPENXLSTM_SANITIZE
  scratch = Floats(floats + 16);  // exactly the request, so that too small a request is noticed
#else
  if (scratch.size() < floats + 16) scratch = Floats(floats + 16);
#endif
  const auto past = reinterpret_cast<uintptr_t>(scratch.data()) % 64 / sizeof(float);
  return scratch.data() + (16 - past) % 16;
}

// Runs tasks on torch's threads, each with `floats` of scratch memory.
template <class Task>
void for_each_task(int64_t tasks, int64_t floats, const Task& task) {
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_of_thread(floats);
    for (int64_t t = begin; t < end; ++t) task(t, scratch);
  });
}

// Sums over tasks, such as gradients of parameters. The tasks are divided into slices, one per
// thread. Each slice has sums of its own, which are added at the end in the order of the slices.
class Sums {
 public:
  // sizes: the floats of each part.
  Sums(int64_t tasks, std::vector<int64_t> sizes)
      : tasks_(tasks),
        slices_(std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(tasks, 1))) {
    for (int64_t size : sizes) starts_.push_back(slice_), slice_ += (size + 15) / 16 * 16 + kGap;
    sums_.assign(slices_ * slice_, 0.0f);
    for (int64_t slice = 0; kGap > 0 && slice < slices_; ++slice)
      for (size_t part = 0; part < sizes.size(); ++part) {
        const int64_t next = part + 1 < sizes.size() ? starts_[part + 1] : slice_;
        const int64_t end = starts_[part] + sizes[part];
        forbid(sums_.data() + slice * slice_ + end, next - end);
      }
  }

  // Calls task(t, parts, scratch) for every task.
  template <class Task>
  void for_each(int64_t floats, const Task& task) {
    for_each_task(slices_, floats, [&](int64_t slice, float* scratch) {
      std::vector<float*> parts;
      for (int64_t start : starts_) parts.push_back(sums_.data() + slice * slice_ + start);
      for (int64_t t = slice * tasks_ / slices_; t < (slice + 1) * tasks_ / slices_; ++t)
        task(t, parts.data(), scratch);
    });
  }

  // One part as a tensor of `sizes`, from rows of `ld` floats, beginning with row `first`.
  Tensor total(const Tensor& like, int64_t part, std::initializer_list<int64_t> sizes, int64_t ld,
               int64_t first = 0) {
    Tensor x = torch::stable::new_empty(like, {sizes.begin(), sizes.size()});
    const int64_t width = *(sizes.end() - 1), rows = width ? x.numel() / width : 0;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = sums_.data() + starts_[part] + (first + r) * ld;
      float* to = data(x) + r * width;
      std::copy(from, from + width, to);
      for (int64_t slice = 1; slice < slices_; ++slice)
        for (int64_t d = 0; d < width; ++d) to[d] += from[slice * slice_ + d];
    }
    return x;
  }

 private:
  int64_t tasks_, slices_, slice_ = 0;
  std::vector<int64_t> starts_;
  std::vector<float> sums_;
};

}  // namespace openxlstm
