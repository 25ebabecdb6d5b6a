// Shared by the native ops of the CPU library (<op>_library.cpp): the kernels of this machine, torch's threads, the
// memory of results.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu_kernels.h"
#include "tensors.hpp"

namespace posgan_fast::cpu {

// A native op as torch's dispatcher calls it.
using BoxedOp = void(StableIValue* stack, uint64_t arguments, uint64_t results);
#define PF_DECLARE_BOXED(op, Task) extern BoxedOp* const op##_boxed;
CPU_OPS(PF_DECLARE_BOXED)
#undef PF_DECLARE_BOXED

struct Kernels {
  const char* instruction_set;
#define PF_KERNEL_POINTER(op, Task) void (*op)(const Task&, int64_t, int64_t);
  CPU_OPS(PF_KERNEL_POINTER)
#undef PF_KERNEL_POINTER
};

// The kernels of the widest instruction set that the machine has and POSGAN_FAST_ISA allows.
const Kernels& kernels();

Dtype dtype_of(const Tensor& t);

inline int64_t itemsize(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2; }

// Returns whether to store a result past the caches. Large results get huge pages, unless they replace the input x.
bool prepare_result(void* y, const void* x, int64_t bytes);

// Runs a kernel on torch's threads, with at least `grain` items for each.
template <typename Task>
void parallel_for(void (*kernel)(const Task&, int64_t, int64_t), const Task& task, int64_t items, int64_t grain) {
  torch::stable::parallel_for(0, items, std::max<int64_t>(grain, 1),
                              [&](int64_t begin, int64_t end) { kernel(task, begin, end); });
}

}  // namespace posgan_fast::cpu
