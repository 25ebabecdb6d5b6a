// Short vectors for the CPU kernels: the compilers' vector extension, which every instruction set can express. Internal
// linkage throughout, since this is compiled once per instruction set.
#pragma once

#include <type_traits>

#include "scalar.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace posgan_fast {
namespace {

template <typename A, int kCount>
struct Lanes {
  typedef A Vector __attribute__((vector_size(kCount * sizeof(A))));
  Vector v;

  static Lanes all(A value) { return {Vector{} + value}; }
  static Lanes read(const A* p) {
    Lanes r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  void write(A* p) const { std::memcpy(p, &v, sizeof v); }
};

template <typename A, int kCount>
Lanes<A, kCount> fma(A weight, Lanes<A, kCount> x, Lanes<A, kCount> sum) {
  return {weight * x.v + sum.v};
}

#ifdef __AVX2__
inline __m256 widen(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline __m256 widen(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#endif
#ifdef __AVX512F__
// Masked by nothing: without a mask gcc 12 warns about its own header.
inline __m512 widen_all(const Half* p) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 widen_all(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16));
}
#endif

// Consecutive storage values as arithmetic lanes. Compilers take half precision apart element by element, through the
// stack, unless told how.
template <int kCount, typename T>
Lanes<acc_t<T>, kCount> read_as(const T* p) {
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    return Lanes<acc_t<T>, kCount>::read(p);
  } else {
    Lanes<acc_t<T>, kCount> r;
#ifdef __AVX512F__
    if constexpr (kCount == 16) {
      const __m512 wide = widen_all(p);
      std::memcpy(&r.v, &wide, sizeof r.v);
      return r;
    }
#endif
#ifdef __AVX2__
    if constexpr (kCount % 8 == 0) {
      for (int i = 0; i < kCount; i += 8) {
        const __m256 wide = widen(p + i);
        std::memcpy(reinterpret_cast<float*>(&r.v) + i, &wide, sizeof wide);
      }
      return r;
    }
#endif
    for (int i = 0; i < kCount; ++i) r.v[i] = load(p[i]);
    return r;
  }
}

// Element i of the result is element index(i) of a followed by b; the compiler folds the index into one instruction.
template <typename A, int kCount, typename Index>
Lanes<A, kCount> pick(Lanes<A, kCount> a, Lanes<A, kCount> b, Index index) {
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> I;
#if defined(__clang__)
  Lanes<A, kCount> r;
  for (int i = 0; i < kCount; ++i) r.v[i] = index(i) < kCount ? a.v[index(i)] : b.v[index(i) - kCount];
  return r;
#else
  I __attribute__((vector_size(kCount * sizeof(A)))) mask{};
  for (int i = 0; i < kCount; ++i) mask[i] = I(index(i));
  return {__builtin_shuffle(a.v, b.v, mask)};
#endif
}

template <int kStart, typename A, int kCount>
Lanes<A, kCount> every_second(Lanes<A, kCount> a, Lanes<A, kCount> b) {
  return pick(a, b, [](int i) { return 2 * i + kStart; });
}

template <int kHalf, typename A, int kCount>
Lanes<A, kCount> interleave(Lanes<A, kCount> a, Lanes<A, kCount> b) {
  return pick(a, b, [](int i) {
    const int place = i + kHalf * kCount;
    return place / 2 + place % 2 * kCount;
  });
}

// Calls block(i) for blocks of kCount that cover [0, n), n >= kCount. The last one overlaps its neighbour, so a block
// must not read what another one writes.
template <int kCount, typename Block>
void cover(int64_t n, Block block) {
  int64_t i = 0;
  for (; i + kCount <= n; i += kCount) block(i);
  if (i < n) block(n - kCount);
}

// Calls body with the largest lane count that n allows, as a compile-time constant; 1 is the scalar fallback.
template <typename A, typename Body>
void with_lanes(int64_t n, Body body) {
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
