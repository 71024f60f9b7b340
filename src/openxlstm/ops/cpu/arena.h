// Scratch memory of one thread, handed out in pieces.
#pragma once

#include <cstdint>

#ifdef OPENXLSTM_SANITIZE
#include <limits>
#include <vector>

#include <sanitizer/asan_interface.h>
#endif

namespace openxlstm {

#ifndef OPENXLSTM_SANITIZE

// Each piece is on a cache line of its own.
struct Arena {
  float* next;
  float* take(int64_t floats) {
    float* p = next;
    next += (floats + 15) / 16 * 16;
    return p;
  }
};

// What is left free between the pieces of an allocation, and may not be touched.
constexpr int64_t kGap = 0;
inline void forbid(float*, int64_t) {}

#else

// For `make sanitize` each piece is an allocation of its own, NaN until it is written: who runs over
// the end of one is stopped, and who adds up what nobody wrote has NaN for an answer. That the pieces
// would have had room in the scratch memory is checked as well.
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
