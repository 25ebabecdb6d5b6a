// Lets the CUDA kernel bodies (.cuh) compile for the device and, for the test harness, for the host: qualifiers, vector
// loads and stores, half-precision conversions, asynchronous copies.
#pragma once

#include "scalar.h"

#ifdef __CUDACC__
#define PF_DEVICE __device__ __forceinline__
#define PF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "cuda_on_host.h"  // tests/native: threadIdx, __syncthreads and the like on std::thread and std::barrier
#define PF_DEVICE inline
#define PF_DYNAMIC_SHARED(name) unsigned char* const name = posgan_fast::host::block().shared.get()
#endif

namespace posgan_fast {

// kCount consecutive elements, which one memory access moves.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) AlignedVector {
  static_assert(kCount * sizeof(T) == 4 || kCount * sizeof(T) == 8 || kCount * sizeof(T) == 16);
  uint32_t words[kCount * sizeof(T) / 4];
};

// The number of elements in 16 bytes, the widest access of a thread.
template <typename T>
constexpr int kVectorSize = 16 / sizeof(T);

template <typename T, int kCount>
PF_DEVICE AlignedVector<T, kCount> zero_vector() {
  AlignedVector<T, kCount> vector;
#pragma unroll
  for (uint32_t& word : vector.words) word = 0;
  return vector;
}

#ifdef __CUDACC__

PF_DEVICE float to_acc(BFloat16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
PF_DEVICE float to_acc(Half v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
  return r;
}

PF_DEVICE void from_acc(BFloat16* p, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }
PF_DEVICE void from_acc(Half* p, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }

// Converting both halves of a 32-bit word in one statement takes no instruction to split the word.
PF_DEVICE void word_to_acc(uint32_t word, float* v, Half) {
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
      : "=f"(v[0]), "=f"(v[1])
      : "r"(word));
}
PF_DEVICE void word_to_acc(uint32_t word, float* v, BFloat16) {
  v[0] = __uint_as_float(word << 16);
  v[1] = __uint_as_float(word & 0xffff0000u);
}
PF_DEVICE uint32_t word_from_acc(const float* v, Half) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
  return word;
}
PF_DEVICE uint32_t word_from_acc(const float* v, BFloat16) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
  return word;
}

template <typename T, int kCount>
PF_DEVICE void to_acc(const AlignedVector<T, kCount>& vector, acc_t<T> (&v)[kCount]) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) word_to_acc(vector.words[i / 2], v + i, T{});
  } else {
    memcpy(v, vector.words, sizeof v);
  }
}

template <typename T, int kCount>
PF_DEVICE AlignedVector<T, kCount> from_acc(const acc_t<T> (&v)[kCount]) {
  AlignedVector<T, kCount> vector;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) vector.words[i / 2] = word_from_acc(v + i, T{});
  } else {
    memcpy(vector.words, v, sizeof v);
  }
  return vector;
}

template <int kBytes>
struct WordsOf;
template <>
struct WordsOf<4> {
  using type = uint32_t;
};
template <>
struct WordsOf<8> {
  using type = uint2;
};
template <>
struct WordsOf<16> {
  using type = uint4;
};

template <int kCount, typename T>
PF_DEVICE AlignedVector<T, kCount> load_vector(const T* p) {
  using Words = typename WordsOf<sizeof(AlignedVector<T, kCount>)>::type;
  const Words raw = *reinterpret_cast<const Words*>(p);
  AlignedVector<T, kCount> vector;
  memcpy(&vector, &raw, sizeof raw);
  return vector;
}

// Reads through the read-only cache; no thread of the launch may write this memory.
template <int kCount, typename T>
PF_DEVICE AlignedVector<T, kCount> load_vector_readonly(const T* p) {
  using Words = typename WordsOf<sizeof(AlignedVector<T, kCount>)>::type;
  const Words raw = __ldg(reinterpret_cast<const Words*>(p));
  AlignedVector<T, kCount> vector;
  memcpy(&vector, &raw, sizeof raw);
  return vector;
}

template <typename T, int kCount>
PF_DEVICE void store_vector(T* p, const AlignedVector<T, kCount>& vector) {
  using Words = typename WordsOf<sizeof(AlignedVector<T, kCount>)>::type;
  Words raw;
  memcpy(&raw, &vector, sizeof raw);
  *reinterpret_cast<Words*>(p) = raw;
}

// Copies 16 bytes from global to shared memory without registers. copy_commit closes a group of copies; copy_wait<n>
// returns when all groups of this thread but the n youngest are complete.
template <typename T>
PF_DEVICE void copy16_async(T* shared, const T* global) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
PF_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
PF_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#else

template <typename T, int kCount>
PF_DEVICE void to_acc(const AlignedVector<T, kCount>& vector, acc_t<T> (&v)[kCount]) {
  T elements[kCount];
  std::memcpy(elements, vector.words, sizeof elements);
  for (int i = 0; i < kCount; ++i) v[i] = to_acc(elements[i]);
}

template <typename T, int kCount>
PF_DEVICE AlignedVector<T, kCount> from_acc(const acc_t<T> (&v)[kCount]) {
  T elements[kCount];
  for (int i = 0; i < kCount; ++i) from_acc(&elements[i], v[i]);
  AlignedVector<T, kCount> vector;
  std::memcpy(vector.words, elements, sizeof elements);
  return vector;
}

template <int kCount, typename T>
PF_DEVICE AlignedVector<T, kCount> load_vector(const T* p) {
  host::require_aligned(p, sizeof(AlignedVector<T, kCount>));
  AlignedVector<T, kCount> vector;
  std::memcpy(&vector, p, sizeof vector);
  return vector;
}

template <int kCount, typename T>
PF_DEVICE AlignedVector<T, kCount> load_vector_readonly(const T* p) {
  return load_vector<kCount>(p);
}

template <typename T, int kCount>
PF_DEVICE void store_vector(T* p, const AlignedVector<T, kCount>& vector) {
  host::require_aligned(p, sizeof vector);
  std::memcpy(p, &vector, sizeof vector);
}

template <typename T>
PF_DEVICE void copy16_async(T* shared, const T* global) {
  host::copy_async(shared, global, 16);
}
PF_DEVICE void copy_commit() { host::copy_commit(); }
template <int kPending>
PF_DEVICE void copy_wait() {
  host::copy_wait(kPending);
}

#endif

}  // namespace posgan_fast
