// Storage types, their accumulation types and the conversions between them; quotients rounded down and up. No torch, no
// CUDA headers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PF_HD __host__ __device__ __forceinline__
#define PF_HD_MEMBER PF_HD
#else
#define PF_HD static inline  // internal linkage: the CPU kernels are compiled once per instruction set
#define PF_HD_MEMBER inline
#endif

namespace posgan_fast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

enum class Dtype { kHalf, kBFloat16, kFloat, kDouble };

// The type that sums and factors of T have: half precision accumulates in float, double in double.
template <typename T>
struct Acc {
  using type = float;
};
template <>
struct Acc<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Acc<T>::type;

PF_HD uint32_t float_to_bits(float v) {
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}

PF_HD float float_from_bits(uint32_t u) {
  float v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

PF_HD float to_acc(float v) { return v; }
PF_HD double to_acc(double v) { return v; }
PF_HD void from_acc(float* p, float v) { *p = v; }
PF_HD void from_acc(double* p, double v) { *p = v; }

#ifndef __CUDACC__  // device code converts half precision in hardware (host_device.h)

PF_HD float to_acc(BFloat16 v) { return float_from_bits(uint32_t(v.bits) << 16); }

// Branch-free, so that loops over it vectorise without F16C: a float multiplication rebases the exponent and normalises
// subnormals.
PF_HD float to_acc(Half v) {
  const uint32_t w = uint32_t(v.bits) << 16;
  const uint32_t magnitude = (w & 0x7fffffffu) >> 3;
  const float scaled = float_from_bits(magnitude) * 0x1p112f;
  const uint32_t infinity_or_nan = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return float_from_bits(float_to_bits(scaled) | infinity_or_nan | (w & 0x80000000u));
}

PF_HD void from_acc(BFloat16* p, float v) {
  const uint32_t u = float_to_bits(v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Rounds to nearest even. Adding a power of two whose unit in the last place is that of the half-precision result makes
// the float adder round, for normal and subnormal results alike.
PF_HD void from_acc(Half* p, float v) {
  const uint32_t u = float_to_bits(v);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const float magnitude = float_from_bits(u & 0x7fffffffu);
  const uint32_t exponent = float_to_bits(magnitude) & 0x7f800000u;
  const uint32_t bias = (exponent < 0x38800000u ? 0x38800000u : exponent) + 0x06800000u;
  const uint32_t sum = float_to_bits(float_from_bits(bias) + magnitude);
  const uint32_t rebased = exponent < 0x38800000u ? 0u : exponent - 0x38000000u;
  const uint32_t half = (rebased >> 13) + (sum - bias) - (rebased != 0u ? 0x400u : 0u);
  const uint32_t finite = half > 0x7c00u ? 0x7c00u : half;
  const uint32_t result = magnitude >= 65520.0f ? 0x7c00u : finite;
  p->bits = uint16_t(sign | (magnitude != magnitude ? 0x7e00u : result));
}

#endif

// a / b rounded down, for b > 0.
PF_HD int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// a / b rounded up, for a >= 0 and b > 0.
PF_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace posgan_fast
