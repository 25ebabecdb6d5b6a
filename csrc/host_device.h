// What the CUDA kernel bodies (.cuh) need from the compiler, on the device and, for the test harness, on the host.
#pragma once

#include "scalar.h"

#ifdef __CUDACC__
#define PF_DEVICE __device__ __forceinline__
#define PF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
// In tests/native: threadIdx, __syncthreads and the like on top of std::thread and std::barrier.
#include "cuda_on_host.h"
#define PF_DEVICE inline
#define PF_DYNAMIC_SHARED(name) unsigned char* const name = posgan_fast::host::block().shared.get()
#endif

namespace posgan_fast {

// 16 bytes of consecutive elements, the widest access a thread makes.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

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

template <typename T>
PF_DEVICE Pack<T> load16(const T* p) {
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  Pack<T> pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}

// Through the read-only cache: for memory no thread of the launch writes.
template <typename T>
PF_DEVICE Pack<T> load16_readonly(const T* p) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(p));
  Pack<T> pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}

template <typename T>
PF_DEVICE void store16(T* p, const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, sizeof raw);
  *reinterpret_cast<uint4*>(p) = raw;
}

template <typename T>
PF_DEVICE void store_pair(T* p, T a, T b) {
  struct alignas(2 * sizeof(T)) Pair {
    T a, b;
  };
  *reinterpret_cast<Pair*>(p) = Pair{a, b};
}

// Global to shared memory past the registers; complete for this thread after copy_wait().
template <typename T>
PF_DEVICE void copy16_async(T* shared, const T* global) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
PF_DEVICE void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#else

PF_DEVICE float widen(BFloat16 v) { return load(v); }
PF_DEVICE float widen(Half v) { return load(v); }

template <typename T, typename A>
PF_DEVICE void narrow(T* p, A v) {
  store(p, v);
}

template <typename T>
PF_DEVICE Pack<T> load16(const T* p) {
  host::require_aligned(p, 16);
  Pack<T> pack;
  std::memcpy(&pack, p, sizeof pack);
  return pack;
}

template <typename T>
PF_DEVICE Pack<T> load16_readonly(const T* p) {
  return load16(p);
}

template <typename T>
PF_DEVICE void store16(T* p, const Pack<T>& pack) {
  host::require_aligned(p, 16);
  std::memcpy(p, &pack, sizeof pack);
}

template <typename T>
PF_DEVICE void store_pair(T* p, T a, T b) {
  host::require_aligned(p, 2 * sizeof(T));
  p[0] = a;
  p[1] = b;
}

template <typename T>
PF_DEVICE void copy16_async(T* shared, const T* global) {
  store16(shared, load16(global));
}
PF_DEVICE void copy_wait() {}

#endif

}  // namespace posgan_fast
