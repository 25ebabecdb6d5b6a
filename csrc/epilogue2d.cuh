// The CUDA kernel of epilogue2d behind its resampling, and its launch configuration. No torch; compiles for the host
// too (host_device.h).
#pragma once

#include "bias_act.cuh"
#include "epilogue2d.h"

namespace posgan_fast {

template <typename T>
struct Epilogue2dFactors {
  const acc_t<T>*scale, *noise;  // null where there is none
  const T* b;
  const acc_t<T>* post_scale;
};

struct Epilogue2dIndexing {
  bool aligned;     // x and y start at multiples of 16 bytes
  bool vectorized;  // all tensors do, and no vector reaches from one row into the next
  bool use_int32_index;
  FastDivmod row, outer;
};

struct Epilogue2dCoords {
  int64_t n, c, pixel;

  PF_DEVICE void next(const Epilogue2dParams& p) {
    if (p.channels_last) {
      if (++c < p.c) return;
      c = 0;
      if (++pixel < p.h * p.w) return;
      pixel = 0;
    } else {
      if (++pixel < p.h * p.w) return;
      pixel = 0;
      if (++c < p.c) return;
      c = 0;
    }
    ++n;
  }
};

// The memory of y is [n, outer, row], where row is the channels in channels_last, the pixels in NCHW.
PF_DEVICE Epilogue2dCoords epilogue2d_coords(int64_t i, const Epilogue2dParams& p, const Epilogue2dIndexing& s) {
  const int64_t pixels = p.h * p.w, row = p.channels_last ? p.c : pixels, outer = p.channels_last ? pixels : p.c;
  int64_t line, n;
  if (s.use_int32_index) {
    line = s.row.quotient(uint32_t(i));
    n = s.outer.quotient(uint32_t(line));
  } else {
    line = i / row;
    n = line / outer;
  }
  const int64_t inner = i - line * row, rest = line - n * outer;
  return p.channels_last ? Epilogue2dCoords{n, inner, rest} : Epilogue2dCoords{n, rest, inner};
}

// v = v * scale + noise + b for the vector at i.
template <typename T>
PF_DEVICE void epilogue2d_vector(int64_t i, int64_t numel, const Epilogue2dFactors<T>& t, const Epilogue2dParams& p,
                                 const Epilogue2dIndexing& s, acc_t<T> (&v)[kVectorSize<T>]) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  const A *const scale = t.scale, *const noise = t.noise;
  const T* const b = t.b;
  Epilogue2dCoords at = epilogue2d_coords(i, p, s);
  A scales[kSize], noises[kSize], biases[kSize];
  fill(scales, A(1));
  fill(noises, A(0));
  fill(biases, A(0));
  if (s.vectorized) {
    const int64_t channel = at.n * p.c + at.c, pixel = at.n * p.noise_stride_n + at.pixel;
    if (p.channels_last) {
      if (scale != nullptr) load_to_acc(scale + channel, scales);
      if (noise != nullptr) fill(noises, noise[pixel]);
      if (b != nullptr) load_to_acc(b + at.c, biases);
    } else {
      if (scale != nullptr) fill(scales, scale[channel]);
      if (noise != nullptr) load_to_acc(noise + pixel, noises);
      if (b != nullptr) fill(biases, A(to_acc(b[at.c])));
    }
  } else {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (i + e >= numel) break;
      if (scale != nullptr) scales[e] = scale[at.n * p.c + at.c];
      if (noise != nullptr) noises[e] = noise[at.n * p.noise_stride_n + at.pixel];
      if (b != nullptr) biases[e] = to_acc(b[at.c]);
      at.next(p);
    }
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) v[e] = epilogue2d_sum(v[e], scales[e], noises[e], biases[e]);
}

// v *= post_scale for the vector at i. The coordinates are computed again, since no register is free to keep the scales
// from the sum on.
template <typename T>
PF_DEVICE void epilogue2d_scale(int64_t i, int64_t numel, const acc_t<T>* post_scale, const Epilogue2dParams& p,
                                const Epilogue2dIndexing& s, acc_t<T> (&v)[kVectorSize<T>]) {
  constexpr int kSize = kVectorSize<T>;
  Epilogue2dCoords at = epilogue2d_coords(i, p, s);
  acc_t<T> scales[kSize] = {};
  if (s.vectorized && p.channels_last) {
    load_to_acc(post_scale + (at.n * p.c + at.c), scales);
  } else {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (i + e >= numel) break;
      scales[e] = post_scale[at.n * p.c + at.c];
      at.next(p);
    }
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) v[e] *= scales[e];
}

// A thread handles vectors a block width apart. y may be x, because one thread reads an element and then writes it.
template <typename T, Act kAct>
__global__ void __launch_bounds__(256)
    epilogue2d_kernel(const T* x, Epilogue2dFactors<T> t, T* y, Epilogue2dParams p, Epilogue2dIndexing s) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  constexpr int kUnroll = kVectorsPerThread<T, 0>;
  const A alpha = A(p.alpha), gain = A(p.gain), clamp = A(p.clamp);
  const int64_t numel = p.n * p.c * p.h * p.w;
  const int64_t start = int64_t(blockIdx.x) * (int(blockDim.x) * kUnroll * kSize) + int(threadIdx.x) * kSize;
  const int stride = int(blockDim.x) * kSize;

  AlignedVector<T, kSize> xs[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) xs[u] = load_predicated(x, start + u * stride, numel, s.aligned);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = start + u * stride;
    if (i >= numel) return;
    A v[kSize];
    to_acc(xs[u], v);
    epilogue2d_vector(i, numel, t, p, s, v);
#pragma unroll
    for (A& value : v) value = epilogue2d_act<kAct, MathOf<T>, A>(value, alpha, gain, clamp);
    if (t.post_scale != nullptr) epilogue2d_scale<T>(i, numel, t.post_scale, p, s, v);
    store_predicated(y, i, numel, s.aligned, from_acc<T, kSize>(v));
  }
}

template <typename T>
Epilogue2dIndexing epilogue2d_indexing(const T* x, const Epilogue2dFactors<T>& t, const T* y,
                                       const Epilogue2dParams& p) {
  const int64_t pixels = p.h * p.w, row = p.channels_last ? p.c : pixels, outer = p.channels_last ? pixels : p.c;
  Epilogue2dIndexing s;
  s.aligned = aligned(x) && aligned(y);
  s.vectorized = s.aligned && aligned(t.scale) && aligned(t.noise) && aligned(t.b) && aligned(t.post_scale) &&
                 row % kVectorSize<T> == 0;
  s.use_int32_index = p.n * p.c * pixels < kInt32IndexLimit;
  s.row = FastDivmod::by(s.use_int32_index ? row : 1);
  s.outer = FastDivmod::by(s.use_int32_index ? outer : 1);
  return s;
}

// Calls launch(blocks, kernel, arguments...).
template <typename T, typename Launch>
void run_epilogue2d(const T* x, const Epilogue2dFactors<T>& t, T* y, const Epilogue2dParams& p, Act act, int threads,
                    const Launch& launch) {
  const Epilogue2dIndexing s = epilogue2d_indexing(x, t, y, p);
  const int64_t blocks = elementwise_blocks<T>(p.n * p.c * p.h * p.w, threads, kVectorsPerThread<T, 0>);
  dispatch_act(act, [&](auto constant) { launch(blocks, epilogue2d_kernel<T, constant>, x, t, y, p, s); });
}

}  // namespace posgan_fast
