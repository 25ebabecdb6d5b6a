// The transforms of Winograd's convolution on the CPU. Everything has internal linkage, because every instruction set
// compiles its own copy.
#pragma once

#include "cpu_kernels.h"
#include "vec.h"
#include "winograd3x3.h"

namespace posgan_fast {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;  // 24 sums, 2 weights and an input in 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 6;  // 12 sums, 2 weights and an input in 16 registers
#else
constexpr int kLanes = 4, kRows = 6;
#endif
constexpr int kColumns = 2 * kLanes;
constexpr int64_t kSkew = 16;  // between matrices, or they would meet in the same lines of the first cache
using V = Vec<float, kLanes>;
using Values = V::Values;

// The points of F(4, 3) are 0, +-kA, +-kB and infinity. Less simple than 0, +-1, +-2, they halve the rounding error.
constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// The transforms of F(4, 2), with the points 0, 1/2, -1, 3/2 and infinity. Its inputs are `step` apart.
inline void transform_two_taps(const Values* d, int step, Values* o, int stride) {
  const Values a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step];
  o[0] = 0.75f * a - 1.25f * b - c + e;
  o[stride] = e - 1.5f * b - 0.5f * c;
  o[2 * stride] = 0.75f * b - 2.0f * c + e;
  o[3 * stride] = e + 0.5f * (c - b);
  o[4 * stride] = 0.75f * b - 1.25f * c - e + f;
}

inline void sum_two_taps(const Values* m, Values* o, int stride) {
  o[0] = m[0] + m[1] + m[2] + m[3];
  o[stride] = 0.5f * m[1] - m[2] + 1.5f * m[3];
  o[2 * stride] = 0.25f * m[1] + m[2] + 2.25f * m[3];
  o[3 * stride] = 0.125f * m[1] - m[2] + 3.375f * m[3] + m[4];
}

// The adjoint of sum_two_taps; the results are `step` apart.
inline void spread_two_taps(const Values* y, int step, Values* o, int stride) {
  const Values a = y[0], b = y[step], c = y[2 * step], d = y[3 * step];
  o[0] = a;
  o[stride] = a + 0.5f * b + 0.25f * c + 0.125f * d;
  o[2 * stride] = a - b + c - d;
  o[3 * stride] = a + 1.5f * b + 2.25f * c + 3.375f * d;
  o[4 * stride] = d;
}

// A form along one axis: its sizes, B^T for a column of a tile, A^T for a column of products and A for one of results.
// Product k takes the transformed tap min(k, 5), so the last tap serves kLastTap products.
struct Plain {
  static constexpr int kIn = 6, kProducts = 6, kOut = 4, kInStep = 4, kLastTap = 1;

  static void transform_input(const Values* d, Values* o, int stride) {
    const Values even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
    const Values even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
    o[0] = kA2 * kB2 * d[0] - (kA2 + kB2) * d[2] + d[4];
    o[stride] = even_a + odd_a;
    o[2 * stride] = even_a - odd_a;
    o[3 * stride] = even_b + odd_b;
    o[4 * stride] = even_b - odd_b;
    o[5 * stride] = kA2 * kB2 * d[1] - (kA2 + kB2) * d[3] + d[5];
  }

  static void transform_output(const Values* m, Values* o, int stride) {
    const Values p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    o[0] = m[0] + p + r;
    o[stride] = kA * q + kB * s;
    o[2 * stride] = kA2 * p + kB2 * r;
    o[3 * stride] = kA * kA2 * q + kB * kB2 * s + m[5];
  }

  static void spread_output(const Values* y, Values* o, int stride) {
    const Values even_a = y[0] + kA2 * y[2], odd_a = kA * (y[1] + kA2 * y[3]);
    const Values even_b = y[0] + kB2 * y[2], odd_b = kB * (y[1] + kB2 * y[3]);
    o[0] = y[0];
    o[stride] = even_a + odd_a;
    o[2 * stride] = even_a - odd_a;
    o[3 * stride] = even_b + odd_b;
    o[4 * stride] = even_b - odd_b;
    o[5 * stride] = y[3];
  }
};

struct Down {
  static constexpr int kIn = 9, kProducts = 9, kOut = 4, kInStep = 8, kLastTap = 4;

  static void transform_input(const Values* d, Values* o, int stride) {
    transform_two_taps(d, 2, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = d[2 * i + 1];
  }

  static void transform_output(const Values* m, Values* o, int stride) {
    sum_two_taps(m, o, stride);
    for (int i = 0; i < 4; ++i) o[i * stride] += m[5 + i];
  }

  static void spread_output(const Values* y, Values* o, int stride) {
    spread_two_taps(y, 1, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = y[i];
  }
};

struct Up {
  static constexpr int kIn = 5, kProducts = 9, kOut = 8, kInStep = 4, kLastTap = 4;

  static void transform_input(const Values* d, Values* o, int stride) {
    transform_two_taps(d, 1, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = d[1 + i];
  }

  static void transform_output(const Values* m, Values* o, int stride) {
    sum_two_taps(m, o, 2 * stride);
    for (int i = 0; i < 4; ++i) o[(2 * i + 1) * stride] = m[5 + i];
  }

  static void spread_output(const Values* y, Values* o, int stride) {
    spread_two_taps(y, 2, o, stride);
    for (int i = 0; i < 4; ++i) o[(5 + i) * stride] = y[2 * i + 1];
  }
};

// G for a column of a kernel.
inline void transform_kernel(WinogradForm form, const Values* g, Values* o, int stride) {
  if (form == WinogradForm::kPlain) {
    constexpr float kInA = 1 / (2 * kA2 * (kA2 - kB2)), kInB = 1 / (2 * kB2 * (kB2 - kA2));
    const Values even_a = kInA * (g[0] + kA2 * g[2]), odd_a = kInA * kA * g[1];
    const Values even_b = kInB * (g[0] + kB2 * g[2]), odd_b = kInB * kB * g[1];
    o[0] = 1 / (kA2 * kB2) * g[0];
    o[stride] = even_a + odd_a;
    o[2 * stride] = even_a - odd_a;
    o[3 * stride] = even_b + odd_b;
    o[4 * stride] = even_b - odd_b;
    o[5 * stride] = g[2];
  } else {
    const Values first = form == WinogradForm::kUp ? g[2] : g[0], last = form == WinogradForm::kUp ? g[0] : g[2];
    o[0] = 1 / 0.75f * first;
    o[stride] = -1 / 0.75f * (first + 0.5f * last);
    o[2 * stride] = 1 / 3.75f * (last - first);
    o[3 * stride] = 1 / 3.75f * (first + 1.5f * last);
    o[4 * stride] = last;
    o[5 * stride] = g[1];
  }
}

// G^T for a column of transformed taps.
inline void gather_kernel(WinogradForm form, const Values* u, Values* g, int stride) {
  if (form == WinogradForm::kPlain) {
    constexpr float kInA = 1 / (2 * kA2 * (kA2 - kB2)), kInB = 1 / (2 * kB2 * (kB2 - kA2));
    const Values even_a = kInA * (u[1] + u[2]), even_b = kInB * (u[3] + u[4]);
    g[0] = 1 / (kA2 * kB2) * u[0] + even_a + even_b;
    g[stride] = kInA * kA * (u[1] - u[2]) + kInB * kB * (u[3] - u[4]);
    g[2 * stride] = kA2 * even_a + kB2 * even_b + u[5];
  } else {
    const Values first = 1 / 0.75f * (u[0] - u[1]) + 1 / 3.75f * (u[3] - u[2]);
    const Values last = -0.5f / 0.75f * u[1] + 1 / 3.75f * (u[2] + 1.5f * u[3]) + u[4];
    g[0] = form == WinogradForm::kUp ? last : first;
    g[stride] = u[5];
    g[2 * stride] = form == WinogradForm::kUp ? first : last;
  }
}

template <typename T>
inline Values load_part(const T* p, int64_t count) {
  if (count >= kLanes) return load_to_acc<kLanes>(p).v;
  T part[kLanes] = {};
  std::memcpy(part, p, size_t(count) * sizeof(T));
  return load_to_acc<kLanes>(part).v;
}

}  // namespace
}  // namespace posgan_fast
