// The instruction set that runs: the processor's best, or a lesser one that the environment
// variable OPENXLSTM_ISA (avx512, avx2, plain) names.
#pragma once

#include <cstdlib>
#include <string_view>

namespace openxlstm {

enum class Isa { kPlain, kAvx2, kAvx512 };

inline Isa isa() {
  static const Isa chosen = [] {
    Isa best = Isa::kPlain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::kAvx2;
    if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
      best = Isa::kAvx512;
#endif
    const char* wanted = std::getenv("OPENXLSTM_ISA");
    const std::string_view name = wanted ? wanted : "";
    if (name == "plain") return Isa::kPlain;
    if (name == "avx2" && best != Isa::kPlain) return Isa::kAvx2;
    return best;
  }();
  return chosen;
}

}  // namespace openxlstm
