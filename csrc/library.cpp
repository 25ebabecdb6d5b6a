// The CPU library: its leaves behind LibTorch's stable ABI, and the choice of the instruction set. A leaf guards
// memory, prepares the task and spreads the work over torch's threads. No Python, no autograd, no policy; works with
// every torch from 2.10 on.
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
  using namespace posgan_fast::cpu;
  m.impl("upfirdn2d", upfirdn2d_leaf);
  m.impl("bias_act", bias_act_leaf);
  m.impl("modulated_weight", modulated_weight_leaf);
  m.impl("prologue2d", prologue2d_leaf);
  m.impl("epilogue2d", epilogue2d_leaf);
}

extern "C" __attribute__((visibility("default"))) const char* posgan_fast_instruction_set() {
  return posgan_fast::cpu::kernels().name;
}

namespace posgan_fast::cpu {

#define PF_KERNELS(isa) \
  (Kernels{isa::upfirdn2d, isa::bias_act, isa::modulated_weight, isa::prologue2d, isa::epilogue2d, #isa})

const Kernels& kernels() {
  static const Kernels chosen = [] {
#ifdef PF_X86
    // POSGAN_FAST_ISA asks for a narrower set, for tests and for comparing results across machines.
    const char* wish = std::getenv("POSGAN_FAST_ISA");
    const std::string cap = wish != nullptr ? wish : "avx512";
    STD_TORCH_CHECK(cap == "avx512" || cap == "avx2" || cap == "baseline",
                    "POSGAN_FAST_ISA: expected avx512, avx2 or baseline, got ", cap);
    const bool fused =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (cap == "avx512" && fused && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return PF_KERNELS(avx512);
    }
    if (cap != "baseline" && fused) return PF_KERNELS(avx2);
#endif
    return PF_KERNELS(baseline);
  }();
  return chosen;
}

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Double:
      return Type::kDouble;
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

bool prepare_result(void* y, const void* x, int64_t bytes) {
  // Bytes from which a result is worth huge pages, and too much to be found in a cache near the core again.
  constexpr int64_t kLarge = int64_t(4) << 20;
  if (bytes < kLarge) return false;
#ifdef MADV_HUGEPAGE
  // A large result is a fresh mapping: with huge pages its first touch costs one fault in 512.
  const uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(y) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(y) + uintptr_t(bytes)) / page * page;
  if (y != x && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return true;
}

}  // namespace posgan_fast::cpu
