// The CPU library: registers its native ops with LibTorch's stable ABI and chooses the instruction set. A native op
// checks its tensors, prepares the task and runs the kernel on torch's threads; it knows no autograd and no policy.
#include "library.hpp"

#include <cstdlib>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define PF_X86 1
#endif

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CPU, m) {
#define PF_REGISTER(op, Task) m.impl(#op, posgan_fast::cpu::op##_boxed);
  CPU_OPS(PF_REGISTER)
#undef PF_REGISTER
}

extern "C" __attribute__((visibility("default"))) const char* posgan_fast_instruction_set() {
  return posgan_fast::cpu::kernels().instruction_set;
}

namespace posgan_fast {

#define PF_KERNEL_ADDRESS(op, Task) op,
#define PF_KERNELS(isa)                                             \
  namespace isa {                                                   \
  const cpu::Kernels kKernels = {#isa, CPU_OPS(PF_KERNEL_ADDRESS)}; \
  }
PF_KERNELS(baseline)
#ifdef PF_X86
PF_KERNELS(avx2)
PF_KERNELS(avx512)
#endif

namespace cpu {

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#ifdef PF_X86
    // POSGAN_FAST_ISA asks for a narrower set, for tests and for comparing results across machines.
    const char* wish = std::getenv("POSGAN_FAST_ISA");
    const std::string cap = wish != nullptr ? wish : "avx512";
    STD_TORCH_CHECK(cap == "avx512" || cap == "avx2" || cap == "baseline",
                    "POSGAN_FAST_ISA: expected avx512, avx2 or baseline, got ", cap);
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (cap == "avx512" && has_avx2 && has_avx512) return avx512::kKernels;
    if (cap != "baseline" && has_avx2) return avx2::kKernels;
#endif
    return baseline::kKernels;
  }();
  return chosen;
}

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Dtype::kHalf;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::Double:
      return Dtype::kDouble;
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

bool prepare_result(void* y, const void* x, int64_t bytes) {
  constexpr int64_t kLarge = int64_t(4) << 20;  // no cache near the core keeps so many bytes until they are read
  if (bytes < kLarge) return false;
#ifdef MADV_HUGEPAGE
  // A large result is a fresh mapping; with huge pages its first touch costs one page fault in 512.
  const uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(y) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(y) + uintptr_t(bytes)) / page * page;
  if (y != x && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return true;
}

}  // namespace cpu
}  // namespace posgan_fast
