// What the CUDA kernel bodies (.cuh) need from the compiler, on the device and, for the test harness, on the host.
#pragma once

#include "scalar.h"

#ifdef __CUDACC__
#define PF_DEVICE __device__ __forceinline__
#define PF_BOTH __host__ __device__ __forceinline__  // PF_HD for member functions
#define PF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
// In tests/native: threadIdx, __syncthreads and the like on top of std::thread and std::barrier.
#include "cuda_on_host.h"
#define PF_DEVICE inline
#define PF_BOTH inline
#define PF_DYNAMIC_SHARED(name) unsigned char* const name = posgan_fast::host::block().shared.get()
#endif

namespace posgan_fast {

// kCount consecutive elements as they lie in memory, moved by one access.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  static_assert(kCount * sizeof(T) == 4 || kCount * sizeof(T) == 8 || kCount * sizeof(T) == 16);
  uint32_t words[kCount * sizeof(T) / 4];
};

// Elements in 16 bytes, the widest access a thread makes.
template <typename T>
constexpr int kVectorSize = 16 / sizeof(T);

template <typename T, int kCount>
PF_DEVICE Pack<T, kCount> zero_pack() {
  Pack<T, kCount> pack;
#pragma unroll
  for (uint32_t& word : pack.words) word = 0;
  return pack;
}

PF_DEVICE float widen(float v) { return v; }
PF_DEVICE double widen(double v) { return v; }

#ifdef __CUDACC__

PF_DEVICE float widen(BFloat16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
PF_DEVICE float widen(Half v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
  return r;
}

PF_DEVICE void narrow(float* p, float v) { *p = v; }
PF_DEVICE void narrow(double* p, double v) { *p = v; }
PF_DEVICE void narrow(BFloat16* p, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }
PF_DEVICE void narrow(Half* p, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }

// Two halves per 32-bit word: one instruction per element, none to take words apart.
PF_DEVICE void widen_word(uint32_t word, float* v, Half) {
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
      : "=f"(v[0]), "=f"(v[1])
      : "r"(word));
}
PF_DEVICE void widen_word(uint32_t word, float* v, BFloat16) {
  v[0] = __uint_as_float(word << 16);
  v[1] = __uint_as_float(word & 0xffff0000u);
}
PF_DEVICE uint32_t narrow_word(const float* v, Half) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
  return word;
}
PF_DEVICE uint32_t narrow_word(const float* v, BFloat16) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
  return word;
}

template <typename T, int kCount>
PF_DEVICE void widen(const Pack<T, kCount>& pack, acc_t<T> (&v)[kCount]) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) widen_word(pack.words[i / 2], v + i, T{});
  } else {
    memcpy(v, pack.words, sizeof v);
  }
}

template <typename T, int kCount>
PF_DEVICE Pack<T, kCount> narrow(const acc_t<T> (&v)[kCount]) {
  Pack<T, kCount> pack;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) pack.words[i / 2] = narrow_word(v + i, T{});
  } else {
    memcpy(pack.words, v, sizeof v);
  }
  return pack;
}

template <int kBytes>
struct WordsOf;
template <>
struct WordsOf<4> {
  using type = uint1;
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
PF_DEVICE Pack<T, kCount> load_pack(const T* p) {
  using Words = typename WordsOf<sizeof(Pack<T, kCount>)>::type;
  const Words raw = *reinterpret_cast<const Words*>(p);
  Pack<T, kCount> pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}

// Through the read-only cache: for memory no thread of the launch writes.
template <int kCount, typename T>
PF_DEVICE Pack<T, kCount> load_pack_readonly(const T* p) {
  using Words = typename WordsOf<sizeof(Pack<T, kCount>)>::type;
  const Words raw = __ldg(reinterpret_cast<const Words*>(p));
  Pack<T, kCount> pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}

template <typename T, int kCount>
PF_DEVICE void store_pack(T* p, const Pack<T, kCount>& pack) {
  using Words = typename WordsOf<sizeof(Pack<T, kCount>)>::type;
  Words raw;
  memcpy(&raw, &pack, sizeof raw);
  *reinterpret_cast<Words*>(p) = raw;
}

// 16 bytes from global to shared memory, past the registers. Copies form groups; a group is complete for this thread
// once copy_wait leaves fewer younger groups under way.
template <typename T>
PF_DEVICE void copy16_async(T* shared, const T* global) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
PF_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kUnderWay>
PF_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
}

#else

PF_DEVICE float widen(BFloat16 v) { return load(v); }
PF_DEVICE float widen(Half v) { return load(v); }

template <typename T, typename A>
PF_DEVICE void narrow(T* p, A v) {
  store(p, v);
}

template <typename T, int kCount>
PF_DEVICE void widen(const Pack<T, kCount>& pack, acc_t<T> (&v)[kCount]) {
  T elements[kCount];
  std::memcpy(elements, pack.words, sizeof elements);
  for (int i = 0; i < kCount; ++i) v[i] = widen(elements[i]);
}

template <typename T, int kCount>
PF_DEVICE Pack<T, kCount> narrow(const acc_t<T> (&v)[kCount]) {
  T elements[kCount];
  for (int i = 0; i < kCount; ++i) narrow(&elements[i], v[i]);
  Pack<T, kCount> pack;
  std::memcpy(pack.words, elements, sizeof elements);
  return pack;
}

template <int kCount, typename T>
PF_DEVICE Pack<T, kCount> load_pack(const T* p) {
  host::require_aligned(p, sizeof(Pack<T, kCount>));
  Pack<T, kCount> pack;
  std::memcpy(&pack, p, sizeof pack);
  return pack;
}

template <int kCount, typename T>
PF_DEVICE Pack<T, kCount> load_pack_readonly(const T* p) {
  return load_pack<kCount>(p);
}

template <typename T, int kCount>
PF_DEVICE void store_pack(T* p, const Pack<T, kCount>& pack) {
  host::require_aligned(p, sizeof pack);
  std::memcpy(p, &pack, sizeof pack);
}

template <typename T>
PF_DEVICE void copy16_async(T* shared, const T* global) {
  host::copy_async(shared, global, 16);
}
PF_DEVICE void copy_commit() { host::copy_commit(); }
template <int kUnderWay>
PF_DEVICE void copy_wait() {
  host::copy_wait(kUnderWay);
}

#endif

}  // namespace posgan_fast
