// Tensors of torch's stable ABI as the kernels see them: addresses, strides and fresh memory.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace openxlstm {

using torch::stable::Tensor;

inline float* data(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

inline const bool* data(const std::optional<Tensor>& mask) {
  return mask ? static_cast<const bool*>(mask->data_ptr()) : nullptr;
}

// Asks for large pages under memory that was not touched yet: a first touch costs a fault a page,
// and with small pages the faults of a large tensor take longer than computing what fills it.
inline void use_large_pages(void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLarge = 1 << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(start) + kLarge - 1) / kLarge * kLarge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(start) + bytes) / kLarge * kLarge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// An uninitialised float tensor. One that is not wanted has no elements.
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, bool wanted = true) {
  const std::vector<int64_t> empty(sizes.size(), 0);
  if (!wanted) return torch::stable::new_empty(like, {empty.data(), empty.size()});
  Tensor x = torch::stable::new_empty(like, {sizes.begin(), sizes.size()});
  use_large_pages(x.data_ptr(), x.numel() * static_cast<int64_t>(sizeof(float)));
  return x;
}

// Runs tasks on torch's threads; each thread has `floats` of scratch memory, on a cache line.
template <class Task>
void for_each_task(int64_t tasks, int64_t floats, const Task& task) {
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(floats + 16);
    const auto past = reinterpret_cast<uintptr_t>(scratch.data()) % 64 / sizeof(float);
    float* aligned = scratch.data() + (16 - past) % 16;
    for (int64_t t = begin; t < end; ++t) task(t, aligned);
  });
}

}  // namespace openxlstm
