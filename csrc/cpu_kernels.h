// The CPU library's native ops, and what their kernels share. A kernel computes a range of the work items of its task.
// It is compiled once per instruction set, into a namespace of that name, and must not include anything that emits code
// which the instruction sets would share.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "scalar.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

// Every native op of the CPU library and the task of its kernel: X(op, Task). To add one, add a line here, Task to
// <op>.h, the kernel to <op>.cpp and op_boxed to <op>_library.cpp.
#define CPU_OPS(X)                               \
  X(upfirdn2d, Upfirdn2dTask)                    \
  X(bias_act, BiasActTask)                       \
  X(modulated_weight, ModulatedWeightTask)       \
  X(prologue2d, Prologue2dTask)                  \
  X(epilogue2d, Epilogue2dTask)                  \
  X(epilogue2d_backward, Epilogue2dBackwardTask) \
  X(winograd3x3, WinogradTask)                   \
  X(winograd3x3_weight, WinogradWeightTask)      \
  X(winograd3x3_gradient, WinogradGradientTask)

namespace posgan_fast {

#define PF_DECLARE_TASK(op, Task) struct Task;
CPU_OPS(PF_DECLARE_TASK)
#undef PF_DECLARE_TASK

#define PF_DECLARE_KERNEL(op, Task) void op(const Task& task, int64_t begin, int64_t end);
namespace baseline {
CPU_OPS(PF_DECLARE_KERNEL)
}
namespace avx2 {
CPU_OPS(PF_DECLARE_KERNEL)
}
namespace avx512 {
CPU_OPS(PF_DECLARE_KERNEL)
}
#undef PF_DECLARE_KERNEL

namespace {

// Calls body with a value of the storage type.
template <typename Body>
inline void dispatch_dtype(Dtype dtype, const Body& body) {
  if (dtype == Dtype::kHalf) return body(Half());
  if (dtype == Dtype::kBFloat16) return body(BFloat16());
  if (dtype == Dtype::kFloat) return body(float());
  body(double());
}

// Uninitialised memory for count values.
template <typename A>
struct Scratch {
  A* const data;

  explicit Scratch(int64_t count) : data(static_cast<A*>(std::malloc(size_t(count) * sizeof(A)))) {
    if (data == nullptr && count > 0) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// Copies with non-temporal stores where the types are equal and the hardware has them; otherwise returns false.
template <typename T, typename A>
inline bool nontemporal_copy(T* out, const A* in, int64_t n) {
  return false;
}

#ifdef __AVX512F__
inline bool nontemporal_copy(float* out, const float* in, int64_t n) {
  int64_t i = 0;
  while (i < n && (reinterpret_cast<uintptr_t>(out + i) & 63u) != 0) {
    out[i] = in[i];
    ++i;
  }
  for (; i + 16 <= n; i += 16) _mm512_stream_ps(out + i, _mm512_loadu_ps(in + i));
  for (; i < n; ++i) out[i] = in[i];
  return true;
}
#endif

template <typename T, typename A>
void store_row(T* __restrict out, const A* __restrict row, int64_t n, bool nontemporal) {
  if (nontemporal && nontemporal_copy(out, row, n)) return;
  for (int64_t i = 0; i < n; ++i) from_acc(out + i, row[i]);
}

}  // namespace
}  // namespace posgan_fast
