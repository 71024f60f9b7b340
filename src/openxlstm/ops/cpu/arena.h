// Scratch memory of one thread, handed out in pieces.
#pragma once

#include <cstdint>

namespace openxlstm {

// Each piece is on a cache line of its own.
struct Arena {
  float* next;
  float* take(int64_t floats) {
    float* p = next;
    next += (floats + 15) / 16 * 16;
    return p;
  }
};

}  // namespace openxlstm
