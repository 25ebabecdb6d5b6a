// What the CUDA kernels over consecutive elements share: division by constants, vectors with ragged ends, geometry of
// the launch.
#pragma once

#include "host_device.h"

namespace posgan_fast {

// Division of 0 <= n < 2^31 by a constant of 1 <= d < 2^31: a multiplication and a shift.
struct Divider {
  uint32_t divisor, magic, shift;

  static Divider by(int64_t d) {
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

// Elements i, i + 1, ... as one access where it is aligned and complete, one by one otherwise.
template <typename T>
PF_DEVICE Pack<T, kVectorSize<T>> read_vector(const T* from, int64_t i, int64_t numel, bool aligned) {
  if (aligned && i + kVectorSize<T> <= numel) return load_pack<kVectorSize<T>>(from + i);
  T elements[kVectorSize<T>];
#pragma unroll
  for (int e = 0; e < kVectorSize<T>; ++e) elements[e] = i + e < numel ? from[i + e] : T{};
  Pack<T, kVectorSize<T>> pack;
  memcpy(pack.words, elements, sizeof pack);
  return pack;
}

template <typename T>
PF_DEVICE void write_vector(T* to, int64_t i, int64_t numel, bool aligned, const Pack<T, kVectorSize<T>>& pack) {
  if (aligned && i + kVectorSize<T> <= numel) {
    store_pack(to + i, pack);
    return;
  }
  T elements[kVectorSize<T>];
  memcpy(elements, pack.words, sizeof pack);
#pragma unroll
  for (int e = 0; e < kVectorSize<T>; ++e) {
    if (i + e < numel) to[i + e] = elements[e];
  }
}

// As many aligned consecutive values as fill kCount.
template <typename T, int kCount>
PF_DEVICE void read_values(const T* from, acc_t<T> (&v)[kCount]) {
  constexpr int kSize = kVectorSize<T> < kCount ? kVectorSize<T> : kCount;
#pragma unroll
  for (int k = 0; k < kCount; k += kSize) {
    acc_t<T> part[kSize];
    widen(load_pack_readonly<kSize>(from + k), part);
#pragma unroll
    for (int e = 0; e < kSize; ++e) v[k + e] = part[e];
  }
}

template <typename A, int kCount>
PF_DEVICE void fill(A (&v)[kCount], A value) {
#pragma unroll
  for (A& element : v) element = value;
}

constexpr int64_t kNarrowLimit = int64_t(1) << 31;  // positions below it fit 32 bits, and a Divider

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

struct ElementsTableRow {
  int sm;         // from this compute capability on
  int64_t numel;  // from this many elements on
  int threads;    // of a block
  const char* measured;
};

// The launch table of bias_act, prologue2d and epilogue2d, most specific row last. Small tensors take small blocks, to
// reach every multiprocessor.
constexpr ElementsTableRow kElementsTable[] = {
    {0, 0, 64, "not yet measured"},   {0, 1 << 20, 256, "not yet measured"},
    {90, 0, 64, "not yet measured"},  {90, 1 << 20, 256, "not yet measured"},
    {100, 0, 64, "not yet measured"}, {100, 1 << 20, 256, "not yet measured"},
};

inline int elements_threads(int sm, int64_t numel) {
  int threads = 0;
  for (const ElementsTableRow& row : kElementsTable) {
    if (sm >= row.sm && numel >= row.numel) threads = row.threads;
  }
  return threads;
}

// Blocks whose threads handle `vectors` vectors each.
template <typename T>
int64_t elements_blocks(int64_t numel, int threads, int vectors) {
  return ceil_div(numel, int64_t(threads) * kVectorSize<T> * vectors);
}

}  // namespace posgan_fast
