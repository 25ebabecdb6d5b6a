// CUDA kernel of bias_act and the geometry of its launch. No torch; compiles for the host too (host_device.h).
#pragma once

#include "bias_act.h"
#include "elements.cuh"

namespace posgan_fast {

// exp, expm1 and log1p as the formulas of bias_act.h ask for them: expm1 of v <= 0, log1p of 0 <= v <= 1.
struct LibraryMath {
  static PF_DEVICE float exp(float v) { return ::expf(v); }
  static PF_DEVICE float expm1(float v) { return ::expm1f(v); }
  static PF_DEVICE float log1p(float v) { return ::log1pf(v); }
  static PF_DEVICE double exp(double v) { return ::exp(v); }
  static PF_DEVICE double expm1(double v) { return ::expm1(v); }
  static PF_DEVICE double log1p(double v) { return ::log1p(v); }
};

// For 16-bit storage, where a relative error of 1e-5 vanishes in the rounding: the special function unit, and a series
// where it would cancel.
struct FastMath {
#ifdef __CUDACC__
  static PF_DEVICE float exp(float v) { return __expf(v); }
  static PF_DEVICE float log(float v) { return __logf(v); }
#else
  static PF_DEVICE float exp(float v) { return ::expf(v); }
  static PF_DEVICE float log(float v) { return ::logf(v); }
#endif
  static PF_DEVICE float expm1(float v) { return v > -0.02f ? v * (1 + v * (0.5f + v * (1 / 6.0f))) : exp(v) - 1; }
  static PF_DEVICE float log1p(float v) { return v < 0.02f ? v * (1 - v * (0.5f - v * (1 / 3.0f))) : log(1 + v); }
};

template <typename T>
using MathOf = std::conditional_t<sizeof(T) == 2, FastMath, LibraryMath>;

// How consecutive elements meet the bias.
enum class BiasRun : int {
  kNone,    // no bias
  kScalar,  // one channel for all elements of a vector
  kVector,  // as many consecutive channels, aligned
  kMixed,   // anything else
};

struct BiasActShape {
  bool vectors;  // every tensor starts at a multiple of 16 bytes
  bool narrow;   // 32-bit positions
  BiasRun run;
  Divider step, channels;
};

struct BiasPlace {
  int64_t channel;
  int64_t left;  // elements from this one on that share it
};

PF_DEVICE BiasPlace bias_place(int64_t i, const BiasActParams& p, const BiasActShape& s) {
  if (s.narrow) {
    const uint32_t q = s.step.quotient(uint32_t(i));
    const uint32_t channel = q - s.channels.quotient(q) * s.channels.divisor;
    return {channel, s.step.divisor - (uint32_t(i) - q * s.step.divisor)};
  }
  const int64_t q = i / p.step;
  return {q % p.channels, p.step - (i - q * p.step)};
}

template <typename T>
PF_DEVICE void read_bias(const T* b, int64_t i, const BiasActParams& p, const BiasActShape& s,
                         acc_t<T> (&v)[kVectorSize<T>]) {
  if (s.run == BiasRun::kNone) return fill(v, acc_t<T>(0));
  const BiasPlace place = bias_place(i, p, s);
  if (s.run == BiasRun::kScalar) {
    fill(v, acc_t<T>(widen(b[place.channel])));
  } else if (s.run == BiasRun::kVector) {
    widen(load_pack_readonly<kVectorSize<T>>(b + place.channel), v);
  } else {
    const int channels = int(p.channels), run = p.step < kVectorSize<T> ? int(p.step) : kVectorSize<T>;
    int channel = int(place.channel), left = place.left < run ? int(place.left) : run;
#pragma unroll
    for (acc_t<T>& value : v) {
      value = widen(b[channel]);
      if (--left == 0) {
        left = run;
        if (++channel == channels) channel = 0;
      }
    }
  }
}

// 16-byte vectors a thread handles. Later orders have more loads under way for each.
template <typename T, int kOrder>
constexpr int kBiasActUnroll = kOrder == 0 && sizeof(T) < sizeof(double) ? 2 : 1;

// A thread handles vectors a block width apart, all loads before the first use. out may be x: every element is read and
// written by the same thread, in this order.
template <typename T, Act kAct, int kOrder, bool kReadsOutput>
__global__ void __launch_bounds__(256)
    bias_act_kernel(const T* x, const T* b, const T* ref, const T* dy, T* out, BiasActParams p, BiasActShape s) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  constexpr int kUnroll = kBiasActUnroll<T, kOrder>;
  const A alpha = A(p.alpha), gain = A(p.gain), clamp = A(p.clamp);
  const int64_t start = int64_t(blockIdx.x) * (int(blockDim.x) * kUnroll * kSize) + int(threadIdx.x) * kSize;
  const int stride = int(blockDim.x) * kSize;

  Pack<T, kSize> xs[kUnroll], refs[kUnroll], dys[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    xs[u] = read_vector(x, start + u * stride, p.numel, s.vectors);
    if constexpr (kOrder > 0) refs[u] = read_vector(ref, start + u * stride, p.numel, s.vectors);
    if constexpr (kOrder > 1) dys[u] = read_vector(dy, start + u * stride, p.numel, s.vectors);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = start + u * stride;
    if (i >= p.numel) return;
    A xv[kSize], bv[kSize] = {}, refv[kSize] = {}, dyv[kSize] = {};
    widen(xs[u], xv);
    if constexpr (!(kOrder == 1 && kReadsOutput)) read_bias(b, i, p, s, bv);
    if constexpr (kOrder > 0) widen(refs[u], refv);
    if constexpr (kOrder > 1) widen(dys[u], dyv);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      xv[e] =
          bias_act_point<kAct, kOrder, kReadsOutput, MathOf<T>, A>(xv[e], bv[e], refv[e], dyv[e], alpha, gain, clamp);
    }
    write_vector(out, i, p.numel, s.vectors, narrow<T, kSize>(xv));
  }
}

template <typename T>
BiasActShape bias_act_shape(const T* x, const T* b, const T* ref, const T* dy, const T* out, const BiasActParams& p) {
  constexpr int64_t kSize = kVectorSize<T>;
  BiasActShape s;
  s.vectors = aligned(x) && aligned(ref) && aligned(dy) && aligned(out);
  s.narrow = p.numel < kNarrowLimit && p.step < kNarrowLimit && p.channels < kNarrowLimit;
  if (b == nullptr) {
    s.run = BiasRun::kNone;
  } else if (p.step % kSize == 0) {
    s.run = BiasRun::kScalar;
  } else if (p.step == 1 && p.channels % kSize == 0 && aligned(b)) {
    s.run = BiasRun::kVector;
  } else {
    s.run = BiasRun::kMixed;
  }
  s.step = Divider::by(s.narrow && b != nullptr ? p.step : 1);
  s.channels = Divider::by(s.narrow && b != nullptr ? p.channels : 1);
  return s;
}

// Calls launch(blocks, kernel, arguments...).
template <typename T, typename Launch>
void run_bias_act(const T* x, const T* b, const T* ref, const T* dy, T* out, const BiasActParams& p, int order, Act act,
                  int threads, const Launch& launch) {
  const BiasActShape s = bias_act_shape(x, b, ref, dy, out, p);
  const int vectors = order == 0 ? kBiasActUnroll<T, 0> : kBiasActUnroll<T, 1>;
  const int64_t blocks = elements_blocks<T>(p.numel, threads, vectors);
  const auto run = [&](auto kernel) { launch(blocks, kernel, x, b, ref, dy, out, p, s); };
  with_act(act, [&](auto constant) {
    constexpr Act kAct = constant;
    constexpr Act kSecond = piecewise_linear(kAct) ? Act::kLinear : kAct;  // their second derivatives are all zero
    if (order == 0) return run(bias_act_kernel<T, kAct, 0, false>);
    if (order == 2) return run(bias_act_kernel<T, kSecond, 2, false>);
    if constexpr (kAct == Act::kRelu || kAct == Act::kLrelu) {
      if (reads_output(kAct, p.alpha)) return run(bias_act_kernel<T, kAct, 1, true>);
    }
    run(bias_act_kernel<T, kAct, 1, false>);
  });
}

}  // namespace posgan_fast
