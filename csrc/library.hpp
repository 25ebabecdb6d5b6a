// What the CPU leaves (<op>_library.cpp) share: the list of them, the kernels of this machine, torch's threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu_kernels.h"
#include "tensors.hpp"

namespace posgan_fast::cpu {

// A leaf as the dispatcher calls it.
using Leaf = void(StableIValue* stack, uint64_t arguments, uint64_t results);
extern Leaf* const upfirdn2d_leaf;
extern Leaf* const bias_act_leaf;
extern Leaf* const modulated_weight_leaf;
extern Leaf* const prologue2d_leaf;
extern Leaf* const epilogue2d_leaf;

struct Kernels {
  decltype(&baseline::upfirdn2d) upfirdn2d;
  decltype(&baseline::bias_act) bias_act;
  decltype(&baseline::modulated_weight) modulated_weight;
  decltype(&baseline::prologue2d) prologue2d;
  decltype(&baseline::epilogue2d) epilogue2d;
  const char* name;
};

// Of the widest instruction set that the machine has, or POSGAN_FAST_ISA allows.
const Kernels& kernels();

Type type_of(const Tensor& t);

inline int64_t bytes_of(Type type) { return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2; }

// Returns whether to write a result past the caches. Gives it huge pages, unless it replaces the input x.
bool prepare_result(void* y, const void* x, int64_t bytes);

template <typename Task>
void spread(void (*kernel)(const Task&, int64_t, int64_t), const Task& task, int64_t items, int64_t grain) {
  torch::stable::parallel_for(0, items, std::max<int64_t>(grain, 1),
                              [&](int64_t begin, int64_t end) { kernel(task, begin, end); });
}

}  // namespace posgan_fast::cpu
