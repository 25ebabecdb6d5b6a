// The CUDA kernel of bias_act and its launch configuration. No torch; compiles for the host too (host_device.h).
#pragma once

#include "bias_act.h"
#include "elementwise.cuh"

namespace posgan_fast {

// The functions that bias_act.h needs, accurately: expm1 of v <= 0, log1p of 0 <= v <= 1.
struct LibmMath {
  static PF_DEVICE float exp(float v) { return ::expf(v); }
  static PF_DEVICE float expm1(float v) { return ::expm1f(v); }
  static PF_DEVICE float log1p(float v) { return ::log1pf(v); }
  static PF_DEVICE double exp(double v) { return ::exp(v); }
  static PF_DEVICE double expm1(double v) { return ::expm1(v); }
  static PF_DEVICE double log1p(double v) { return ::log1p(v); }
};

// The same on the special function unit, with a series where cancellation would cost accuracy. Rounding to 16-bit
// storage hides the relative error of 1e-5.
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
using MathOf = std::conditional_t<sizeof(T) == 2, FastMath, LibmMath>;

// How the elements of a vector read the bias.
enum class BiasPattern : int {
  kNone,        // no bias
  kScalar,      // all elements from one channel
  kVector,      // from as many consecutive channels, aligned
  kPerElement,  // anything else
};

struct BiasActIndexing {
  bool aligned;  // every tensor starts at a multiple of 16 bytes
  bool use_int32_index;
  BiasPattern pattern;
  FastDivmod step, channels;
};

struct BiasCoords {
  int64_t channel;
  int64_t left;  // elements from this one on that have the same channel
};

PF_DEVICE BiasCoords bias_coords(int64_t i, const BiasActParams& p, const BiasActIndexing& s) {
  if (s.use_int32_index) {
    const uint32_t q = s.step.quotient(uint32_t(i));
    const uint32_t channel = q - s.channels.quotient(q) * s.channels.divisor;
    return {channel, s.step.divisor - (uint32_t(i) - q * s.step.divisor)};
  }
  const int64_t q = i / p.step;
  return {q % p.channels, p.step - (i - q * p.step)};
}

template <typename T>
PF_DEVICE void read_bias(const T* b, int64_t i, const BiasActParams& p, const BiasActIndexing& s,
                         acc_t<T> (&v)[kVectorSize<T>]) {
  if (s.pattern == BiasPattern::kNone) return fill(v, acc_t<T>(0));
  const BiasCoords at = bias_coords(i, p, s);
  if (s.pattern == BiasPattern::kScalar) {
    fill(v, acc_t<T>(to_acc(b[at.channel])));
  } else if (s.pattern == BiasPattern::kVector) {
    to_acc(load_vector_readonly<kVectorSize<T>>(b + at.channel), v);
  } else {
    const int channels = int(p.channels), run = p.step < kVectorSize<T> ? int(p.step) : kVectorSize<T>;
    int channel = int(at.channel), left = at.left < run ? int(at.left) : run;
#pragma unroll
    for (acc_t<T>& value : v) {
      value = to_acc(b[channel]);
      if (--left == 0) {
        left = run;
        if (++channel == channels) channel = 0;
      }
    }
  }
}

// The 16-byte vectors that a thread handles: gradients have more loads in flight for each.
template <typename T, int kGrad>
constexpr int kVectorsPerThread = kGrad == 0 && sizeof(T) < sizeof(double) ? 2 : 1;

// A thread handles vectors a block width apart and loads all of them before the first use. out may be x, because one
// thread reads an element and then writes it.
template <typename T, Act kAct, int kGrad, bool kReadsOutput>
__global__ void __launch_bounds__(256)
    bias_act_kernel(const T* x, const T* b, const T* ref, const T* dy, T* out, BiasActParams p, BiasActIndexing s) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  constexpr int kUnroll = kVectorsPerThread<T, kGrad>;
  const A alpha = A(p.alpha), gain = A(p.gain), clamp = A(p.clamp);
  const int64_t start = int64_t(blockIdx.x) * (int(blockDim.x) * kUnroll * kSize) + int(threadIdx.x) * kSize;
  const int stride = int(blockDim.x) * kSize;

  AlignedVector<T, kSize> xs[kUnroll], refs[kUnroll], dys[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    xs[u] = load_predicated(x, start + u * stride, p.numel, s.aligned);
    if constexpr (kGrad > 0) refs[u] = load_predicated(ref, start + u * stride, p.numel, s.aligned);
    if constexpr (kGrad > 1) dys[u] = load_predicated(dy, start + u * stride, p.numel, s.aligned);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = start + u * stride;
    if (i >= p.numel) return;
    A xv[kSize], bv[kSize] = {}, refv[kSize] = {}, dyv[kSize] = {};
    to_acc(xs[u], xv);
    if constexpr (!(kGrad == 1 && kReadsOutput)) read_bias(b, i, p, s, bv);
    if constexpr (kGrad > 0) to_acc(refs[u], refv);
    if constexpr (kGrad > 1) to_acc(dys[u], dyv);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      xv[e] =
          bias_act_element<kAct, kGrad, kReadsOutput, MathOf<T>, A>(xv[e], bv[e], refv[e], dyv[e], alpha, gain, clamp);
    }
    store_predicated(out, i, p.numel, s.aligned, from_acc<T, kSize>(xv));
  }
}

template <typename T>
BiasActIndexing bias_act_indexing(const T* x, const T* b, const T* ref, const T* dy, const T* out,
                                  const BiasActParams& p) {
  constexpr int64_t kSize = kVectorSize<T>;
  BiasActIndexing s;
  s.aligned = aligned(x) && aligned(ref) && aligned(dy) && aligned(out);
  s.use_int32_index = p.numel < kInt32IndexLimit && p.step < kInt32IndexLimit && p.channels < kInt32IndexLimit;
  if (b == nullptr) {
    s.pattern = BiasPattern::kNone;
  } else if (p.step % kSize == 0) {
    s.pattern = BiasPattern::kScalar;
  } else if (p.step == 1 && p.channels % kSize == 0 && aligned(b)) {
    s.pattern = BiasPattern::kVector;
  } else {
    s.pattern = BiasPattern::kPerElement;
  }
  s.step = FastDivmod::by(s.use_int32_index && b != nullptr ? p.step : 1);
  s.channels = FastDivmod::by(s.use_int32_index && b != nullptr ? p.channels : 1);
  return s;
}

// Calls launch(blocks, kernel, arguments...).
template <typename T, typename Launch>
void run_bias_act(const T* x, const T* b, const T* ref, const T* dy, T* out, const BiasActParams& p, int grad, Act act,
                  int threads, const Launch& launch) {
  const BiasActIndexing s = bias_act_indexing(x, b, ref, dy, out, p);
  const int vectors = grad == 0 ? kVectorsPerThread<T, 0> : kVectorsPerThread<T, 1>;
  const int64_t blocks = elementwise_blocks<T>(p.numel, threads, vectors);
  dispatch_bias_act(act, grad, p.alpha, [&](auto act_constant, auto grad_constant, auto reads_output) {
    constexpr int kGrad = grad_constant;
    // All piecewise linear activations share the kernel of their second derivative, which is zero.
    constexpr Act kAct = kGrad == 2 && piecewise_linear(act_constant) ? Act::kLinear : Act(act_constant);
    launch(blocks, bias_act_kernel<T, kAct, kGrad, reads_output>, x, b, ref, dy, out, p, s);
  });
}

}  // namespace posgan_fast
