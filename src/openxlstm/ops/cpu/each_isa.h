// Includes OPENXLSTM_KERNEL once per instruction set, in a namespace of that name, after simd.h
// with its number of LANES. One binary holds all of them, and OPENXLSTM_CALL chooses one at run
// time.
//
// A kernel's functions are in an anonymous namespace, so that two kernels may both have a
// forward_task. The standard library is included before this file, outside the pragmas.

#if defined(__x86_64__) || defined(_M_X64)
#define OPENXLSTM_X86 1
#endif

#ifdef OPENXLSTM_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
#endif
#define LANES 16
#define REGISTERS 32
namespace openxlstm::avx512 {
namespace {
#include "simd.h"
#include OPENXLSTM_KERNEL
}  // namespace
}  // namespace openxlstm::avx512
#undef LANES
#undef REGISTERS
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define REGISTERS 16
namespace openxlstm::avx2 {
namespace {
#include "simd.h"
#include OPENXLSTM_KERNEL
}  // namespace
}  // namespace openxlstm::avx2
#undef LANES
#undef REGISTERS
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // OPENXLSTM_X86

// The baseline of the architecture: SSE on x86, NEON on Arm.
#define LANES 4
#ifdef __aarch64__
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
namespace openxlstm::plain {
namespace {
#include "simd.h"
#include OPENXLSTM_KERNEL
}  // namespace
}  // namespace openxlstm::plain
#undef LANES
#undef REGISTERS

#ifdef OPENXLSTM_X86
#define OPENXLSTM_CALL(function, ...)                                       \
  (openxlstm::isa() == openxlstm::Isa::kAvx512 ? openxlstm::avx512::function(__VA_ARGS__) \
   : openxlstm::isa() == openxlstm::Isa::kAvx2 ? openxlstm::avx2::function(__VA_ARGS__)   \
                                               : openxlstm::plain::function(__VA_ARGS__))
#else
#define OPENXLSTM_CALL(function, ...) openxlstm::plain::function(__VA_ARGS__)
#endif
