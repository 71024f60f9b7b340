// Scratch memory of one thread, divided into buffers.
#pragma once

#include <cstdint>

#ifdef OPENXLSTM_SANITIZE
#include <limits>
#include <vector>

#include <sanitizer/asan_interface.h>
#endif

namespace openxlstm {

#ifndef OPENXLSTM_SANITIZE

// Each buffer begins on a cache line.
struct Arena {
  float* next;
  float* take(int64_t floats) {
    float* p = next;
    next += (floats + 15) / 16 * 16;
    return p;
  }
};

// Floats between the buffers of an allocation that may not be touched.
constexpr int64_t kGap = 0;
inline void forbid(float*, int64_t) {}

#else

// For `make sanitize` each buffer is an allocation of its own, filled with NaN: a write past its
// end stops the program, and a sum of floats that were never written is NaN. It is also checked
// that all buffers would have fitted into the scratch memory.
struct Arena {
  float* next;
  std::vector<std::vector<float>> pieces = {};
  float* take(int64_t floats) {
    if (floats > 0) next[floats - 1] = 0.0f;
    next += (floats + 15) / 16 * 16;
    return pieces.emplace_back(floats, std::numeric_limits<float>::quiet_NaN()).data();
  }
};

constexpr int64_t kGap = 64;
inline void forbid(float* from, int64_t floats) {
  ASAN_POISON_MEMORY_REGION(from, floats * sizeof(float));
}

#endif

}  // namespace openxlstm
