// Shared by the CUDA kernels over consecutive elements: fast division, predicated vector loads and stores, the launch
// table.
#pragma once

#include "host_device.h"
#include "launch_overrides.h"

namespace posgan_fast {

// Divides 0 <= n < 2^31 by a constant 1 <= d < 2^31 by a multiplication and a shift.
struct FastDivmod {
  uint32_t divisor, magic, shift;

  static FastDivmod by(int64_t d) {
    uint32_t shift = 0;
    while ((int64_t(1) << shift) < d) ++shift;
    const uint64_t one = 1;
    return {uint32_t(d), uint32_t(((one << 32) * ((one << shift) - uint64_t(d))) / uint64_t(d) + 1), shift};
  }

  PF_DEVICE uint32_t quotient(uint32_t n) const {
#ifdef __CUDACC__
    const uint32_t high = __umulhi(n, magic);
#else
    const uint32_t high = uint32_t((uint64_t(n) * magic) >> 32);
#endif
    return (high + n) >> shift;
  }
};

// Loads elements i, i + 1, ... in one access where all exist and are aligned, otherwise one by one.
template <typename T>
PF_DEVICE AlignedVector<T, kVectorSize<T>> load_predicated(const T* from, int64_t i, int64_t numel, bool aligned) {
  if (aligned && i + kVectorSize<T> <= numel) return load_vector<kVectorSize<T>>(from + i);
  T elements[kVectorSize<T>];
#pragma unroll
  for (int e = 0; e < kVectorSize<T>; ++e) elements[e] = i + e < numel ? from[i + e] : T{};
  AlignedVector<T, kVectorSize<T>> vector;
  memcpy(vector.words, elements, sizeof vector);
  return vector;
}

template <typename T>
PF_DEVICE void store_predicated(T* to, int64_t i, int64_t numel, bool aligned,
                                const AlignedVector<T, kVectorSize<T>>& vector) {
  if (aligned && i + kVectorSize<T> <= numel) {
    store_vector(to + i, vector);
    return;
  }
  T elements[kVectorSize<T>];
  memcpy(elements, vector.words, sizeof vector);
#pragma unroll
  for (int e = 0; e < kVectorSize<T>; ++e) {
    if (i + e < numel) to[i + e] = elements[e];
  }
}

// Loads kCount consecutive values by aligned vectors.
template <typename T, int kCount>
PF_DEVICE void load_to_acc(const T* from, acc_t<T> (&v)[kCount]) {
  constexpr int kSize = kVectorSize<T> < kCount ? kVectorSize<T> : kCount;
#pragma unroll
  for (int k = 0; k < kCount; k += kSize) {
    acc_t<T> part[kSize];
    to_acc(load_vector_readonly<kSize>(from + k), part);
#pragma unroll
    for (int e = 0; e < kSize; ++e) v[k + e] = part[e];
  }
}

template <typename A, int kCount>
PF_DEVICE void fill(A (&v)[kCount], A value) {
#pragma unroll
  for (A& element : v) element = value;
}

constexpr int64_t kInt32IndexLimit = int64_t(1) << 31;  // indices below it fit 32 bits and FastDivmod

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

struct ElementwiseTableRow {
  int sm;         // from this compute capability on
  int64_t numel;  // from this many elements on
  int threads;    // of a block
  const char* measured;
};

// The launch table of bias_act, prologue2d and epilogue2d, most specific row last. Small tensors have small blocks, so
// that every multiprocessor gets some.
constexpr ElementwiseTableRow kElementwiseTable[] = {
    {0, 0, 64, "not yet measured"},   {0, 1 << 20, 256, "not yet measured"},
    {90, 0, 64, "not yet measured"},  {90, 1 << 20, 256, "not yet measured"},
    {100, 0, 64, "not yet measured"}, {100, 1 << 20, 256, "not yet measured"},
};

inline int elementwise_threads(int sm, int64_t numel) {
  const std::vector<int>& instead = launch_overrides().of(LaunchKernel::kElementwise);
  if (!instead.empty()) return instead[0];
  int threads = 0;
  for (const ElementwiseTableRow& row : kElementwiseTable) {
    if (sm >= row.sm && numel >= row.numel) threads = row.threads;
  }
  return threads;
}

// The number of blocks if each thread handles `vectors` vectors.
template <typename T>
int64_t elementwise_blocks(int64_t numel, int threads, int vectors) {
  return ceil_div(numel, int64_t(threads) * kVectorSize<T> * vectors);
}

}  // namespace posgan_fast
