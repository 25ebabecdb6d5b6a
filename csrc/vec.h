// Vec, a short vector for the CPU kernels, on the vector extension of GCC and Clang, which covers every instruction
// set. Everything has internal linkage, because every instruction set compiles its own copy.
#pragma once

#include <type_traits>

#include "scalar.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace posgan_fast {
namespace {

template <typename A, int kSize>
struct Vec {
  typedef A Values __attribute__((vector_size(kSize * sizeof(A))));
  Values v;

  static Vec broadcast(A value) { return {Values{} + value}; }
  static Vec load(const A* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  void store(A* p) const { std::memcpy(p, &v, sizeof v); }
};

template <typename A, int kSize>
Vec<A, kSize> fma(A weight, Vec<A, kSize> x, Vec<A, kSize> sum) {
  return {weight * x.v + sum.v};
}

#ifdef __AVX2__
inline __m256 to_acc8(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline __m256 to_acc8(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#endif
#ifdef __AVX512F__
// The masks let everything pass; the intrinsics without masks make gcc 12 warn about its own header.
inline __m512 to_acc16(const Half* p) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 to_acc16(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16));
}
#endif

// Loads kSize consecutive storage values in the accumulation type. Half precision takes intrinsics, because compilers
// convert it element by element, through the stack.
template <int kSize, typename T>
Vec<acc_t<T>, kSize> load_to_acc(const T* p) {
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    return Vec<acc_t<T>, kSize>::load(p);
  } else {
    Vec<acc_t<T>, kSize> r;
#ifdef __AVX512F__
    if constexpr (kSize == 16) {
      const __m512 wide = to_acc16(p);
      std::memcpy(&r.v, &wide, sizeof r.v);
      return r;
    }
#endif
#ifdef __AVX2__
    if constexpr (kSize % 8 == 0) {
      for (int i = 0; i < kSize; i += 8) {
        const __m256 wide = to_acc8(p + i);
        std::memcpy(reinterpret_cast<float*>(&r.v) + i, &wide, sizeof wide);
      }
      return r;
    }
#endif
    for (int i = 0; i < kSize; ++i) r.v[i] = to_acc(p[i]);
    return r;
  }
}

// Element i of the result is element index(i) of a followed by b. Compilers fold the constant indices into one
// instruction.
template <typename A, int kSize, typename Index>
Vec<A, kSize> shuffle(Vec<A, kSize> a, Vec<A, kSize> b, Index index) {
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> I;
#if defined(__clang__)
  Vec<A, kSize> r;
  for (int i = 0; i < kSize; ++i) r.v[i] = index(i) < kSize ? a.v[index(i)] : b.v[index(i) - kSize];
  return r;
#else
  I __attribute__((vector_size(kSize * sizeof(A)))) mask{};
  for (int i = 0; i < kSize; ++i) mask[i] = I(index(i));
  return {__builtin_shuffle(a.v, b.v, mask)};
#endif
}

// Elements kStart, kStart + 2, ... of a followed by b.
template <int kStart, typename A, int kSize>
Vec<A, kSize> deinterleave(Vec<A, kSize> a, Vec<A, kSize> b) {
  return shuffle(a, b, [](int i) { return 2 * i + kStart; });
}

// The first or second half of a[0], b[0], a[1], b[1], ...
template <int kHalf, typename A, int kSize>
Vec<A, kSize> interleave(Vec<A, kSize> a, Vec<A, kSize> b) {
  return shuffle(a, b, [](int i) {
    const int k = i + kHalf * kSize;
    return k / 2 + k % 2 * kSize;
  });
}

// Calls block(i) for blocks of kSize that cover [0, n), n >= kSize. The last block overlaps its neighbour, so a block
// must not read what another one writes.
template <int kSize, typename Block>
void for_each_block(int64_t n, Block block) {
  int64_t i = 0;
  for (; i + kSize <= n; i += kSize) block(i);
  if (i < n) block(n - kSize);
}

// Calls body with the largest vector size that n allows, as a compile-time constant; size 1 is the scalar fallback.
template <typename A, typename Body>
void dispatch_vec_size(int64_t n, Body body) {
  constexpr int kFull = 64 / sizeof(A);
  if (n >= kFull) {
    body(std::integral_constant<int, kFull>());
  } else if (n >= kFull / 2) {
    body(std::integral_constant<int, kFull / 2>());
  } else if (n >= kFull / 4) {
    body(std::integral_constant<int, kFull / 4>());
  } else if (n > 0) {
    body(std::integral_constant<int, 1>());
  }
}

}  // namespace
}  // namespace posgan_fast
