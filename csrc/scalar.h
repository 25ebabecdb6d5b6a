// Storage types of the CPU and host builds, their arithmetic types, quotients rounded either way. No torch, no CUDA
// headers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PF_HD __host__ __device__ __forceinline__
#else
#define PF_HD static inline  // internal linkage: the CPU kernels are compiled once per instruction set
#endif

namespace posgan_fast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Arithmetic type of a storage type: half precision accumulates in float, double stays double.
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

PF_HD uint32_t float_bits(float v) {
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}

PF_HD float bits_float(uint32_t u) {
  float v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

PF_HD float load(float v) { return v; }
PF_HD double load(double v) { return v; }
PF_HD float load(BFloat16 v) { return bits_float(uint32_t(v.bits) << 16); }

// Branch-free, so that loops over it vectorise without F16C: the exponent is rebased by a float multiplication,
// which also normalises subnormals.
PF_HD float load(Half v) {
  const uint32_t w = uint32_t(v.bits) << 16;
  const uint32_t magnitude = (w & 0x7fffffffu) >> 3;
  const float scaled = bits_float(magnitude) * 0x1p112f;
  const uint32_t infinity_or_nan = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return bits_float(float_bits(scaled) | infinity_or_nan | (w & 0x80000000u));
}

PF_HD void store(float* p, float v) { *p = v; }
PF_HD void store(double* p, double v) { *p = v; }

PF_HD void store(BFloat16* p, float v) {
  const uint32_t u = float_bits(v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Round to nearest even. Adding a power of two whose unit in the last place is the half-precision one makes the float
// adder do the rounding, for normal and subnormal results alike.
PF_HD void store(Half* p, float v) {
  const uint32_t u = float_bits(v);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const float magnitude = bits_float(u & 0x7fffffffu);
  const uint32_t exponent = float_bits(magnitude) & 0x7f800000u;
  const uint32_t bias = (exponent < 0x38800000u ? 0x38800000u : exponent) + 0x06800000u;
  const uint32_t sum = float_bits(bits_float(bias) + magnitude);
  const uint32_t rebased = exponent < 0x38800000u ? 0u : exponent - 0x38000000u;
  const uint32_t half = (rebased >> 13) + (sum - bias) - (rebased != 0u ? 0x400u : 0u);
  const uint32_t finite = half > 0x7c00u ? 0x7c00u : half;
  const uint32_t result = magnitude >= 65520.0f ? 0x7c00u : finite;
  p->bits = uint16_t(sign | (magnitude != magnitude ? 0x7e00u : result));
}

// Of b > 0.
PF_HD int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Of a >= 0 and b > 0.
PF_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace posgan_fast
