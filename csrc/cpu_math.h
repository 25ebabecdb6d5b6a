// exp, expm1 and log1p for the activations on the CPU, written so that loops over them vectorise. Everything has
// internal linkage, because every instruction set compiles its own copy.
#pragma once

#include "scalar.h"

namespace posgan_fast {
namespace {

// The parameters of an activation in the accumulation type.
template <typename A>
struct ActParams {
  A alpha, gain, clamp;
};

// Covers the arguments that activations have: exp and expm1 of x <= 0, log1p of x in [0, 1]. The float versions are
// polynomials without branches, accurate to two units in the last place.
struct PolynomialMath {
  struct ReducedExp {
    float expm1, scale;  // exp(x) = scale * (1 + expm1)
  };

  static inline ReducedExp reduce(float x) {
    const float clipped = x < -87.0f ? -87.0f : x;  // keeps NaN
    // 1.5 * 2^23 leaves round(x / ln 2) in the low bits of the sum.
    const float shifted = clipped * 1.44269504088896341f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    float r = clipped - n * 0.693145751953125f;
    r -= n * 1.42860682030941723212e-6f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return {p * r * r + r, float_from_bits((float_to_bits(shifted) + 127u) << 23)};
  }

  static inline float exp(float x) {
    const ReducedExp s = reduce(x);
    return x < -87.0f ? 0.0f : s.scale + s.scale * s.expm1;
  }

  static inline float expm1(float x) {
    const ReducedExp s = reduce(x);
    return s.scale * s.expm1 + (s.scale - 1.0f);
  }

  static inline float log1p(float x) {
    const float z = x / (2.0f + x);  // log(1 + x) = 2 atanh(z)
    const float q = z * z;
    float p = 1.0f / 15;
    p = p * q + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2.0f * (z + z * q * p);
  }

  static inline double exp(double x) { return ::exp(x); }
  static inline double expm1(double x) { return ::expm1(x); }
  static inline double log1p(double x) { return ::log1p(x); }
};

}  // namespace
}  // namespace posgan_fast
