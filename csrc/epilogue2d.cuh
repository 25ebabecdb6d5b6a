// CUDA kernel of epilogue2d behind its resampling, and the geometry of its launch. No torch; compiles for the host too
// (host_device.h).
#pragma once

#include "bias_act.cuh"
#include "epilogue2d.h"

namespace posgan_fast {

struct Epilogue2dShape {
  bool vectors;  // x and y start at multiples of 16 bytes
  bool whole;    // and so do the others, and no vector reaches from one row into the next
  bool narrow;   // 32-bit positions
  Divider row, outer;
};

// Where an element lies.
struct Epilogue2dPlace {
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

// Memory is [n, outer, row], with row the channels in channels_last and the pixels otherwise.
PF_DEVICE Epilogue2dPlace epilogue2d_place(int64_t i, const Epilogue2dParams& p, const Epilogue2dShape& s) {
  const int64_t pixels = p.h * p.w, row = p.channels_last ? p.c : pixels, outer = p.channels_last ? pixels : p.c;
  int64_t line, n;
  if (s.narrow) {
    line = s.row.quotient(uint32_t(i));
    n = s.outer.quotient(uint32_t(line));
  } else {
    line = i / row;
    n = line / outer;
  }
  const int64_t inner = i - line * row, rest = line - n * outer;
  return p.channels_last ? Epilogue2dPlace{n, inner, rest} : Epilogue2dPlace{n, rest, inner};
}

// x * scale + noise + b for the vector at i.
template <typename T>
PF_DEVICE void epilogue2d_vector(int64_t i, int64_t numel, const acc_t<T>* scale, const acc_t<T>* noise, const T* b,
                                 const Epilogue2dParams& p, const Epilogue2dShape& s, acc_t<T> (&v)[kVectorSize<T>]) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  Epilogue2dPlace at = epilogue2d_place(i, p, s);
  A scales[kSize], noises[kSize], biases[kSize];
  fill(scales, A(1));
  fill(noises, A(0));
  fill(biases, A(0));
  if (s.whole) {
    const int64_t channel = at.n * p.c + at.c, pixel = at.n * p.noise_stride_n + at.pixel;
    if (p.channels_last) {
      if (scale != nullptr) read_values(scale + channel, scales);
      if (noise != nullptr) fill(noises, noise[pixel]);
      if (b != nullptr) read_values(b + at.c, biases);
    } else {
      if (scale != nullptr) fill(scales, scale[channel]);
      if (noise != nullptr) read_values(noise + pixel, noises);
      if (b != nullptr) fill(biases, A(widen(b[at.c])));
    }
  } else {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (i + e >= numel) break;
      if (scale != nullptr) scales[e] = scale[at.n * p.c + at.c];
      if (noise != nullptr) noises[e] = noise[at.n * p.noise_stride_n + at.pixel];
      if (b != nullptr) biases[e] = widen(b[at.c]);
      at.next(p);
    }
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) v[e] = epilogue2d_sum(v[e], scales[e], noises[e], biases[e]);
}

// A thread handles vectors a block width apart. y may be x: every element is read and written by the same thread, in
// this order.
template <typename T, Act kAct>
__global__ void __launch_bounds__(256) epilogue2d_kernel(const T* x, const acc_t<T>* scale, const acc_t<T>* noise,
                                                         const T* b, T* y, Epilogue2dParams p, Epilogue2dShape s) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  constexpr int kUnroll = kBiasActUnroll<T, 0>;
  const A alpha = A(p.alpha), gain = A(p.gain), clamp = A(p.clamp);
  const int64_t numel = p.n * p.c * p.h * p.w;
  const int64_t start = int64_t(blockIdx.x) * (int(blockDim.x) * kUnroll * kSize) + int(threadIdx.x) * kSize;
  const int stride = int(blockDim.x) * kSize;

  Pack<T, kSize> xs[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) xs[u] = read_vector(x, start + u * stride, numel, s.vectors);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = start + u * stride;
    if (i >= numel) return;
    A v[kSize];
    widen(xs[u], v);
    epilogue2d_vector(i, numel, scale, noise, b, p, s, v);
#pragma unroll
    for (A& value : v) value = epilogue2d_act<kAct, MathOf<T>, A>(value, alpha, gain, clamp);
    write_vector(y, i, numel, s.vectors, narrow<T, kSize>(v));
  }
}

template <typename T>
Epilogue2dShape epilogue2d_shape(const T* x, const acc_t<T>* scale, const acc_t<T>* noise, const T* b, const T* y,
                                 const Epilogue2dParams& p) {
  const int64_t pixels = p.h * p.w, row = p.channels_last ? p.c : pixels, outer = p.channels_last ? pixels : p.c;
  Epilogue2dShape s;
  s.vectors = aligned(x) && aligned(y);
  s.whole = s.vectors && aligned(scale) && aligned(noise) && aligned(b) && row % kVectorSize<T> == 0;
  s.narrow = p.n * p.c * pixels < kNarrowLimit;
  s.row = Divider::by(s.narrow ? row : 1);
  s.outer = Divider::by(s.narrow ? outer : 1);
  return s;
}

// Calls launch(blocks, kernel, arguments...).
template <typename T, typename Launch>
void run_epilogue2d(const T* x, const acc_t<T>* scale, const acc_t<T>* noise, const T* b, T* y,
                    const Epilogue2dParams& p, Act act, int threads, const Launch& launch) {
  const Epilogue2dShape s = epilogue2d_shape(x, scale, noise, b, y, p);
  const int64_t blocks = elements_blocks<T>(p.n * p.c * p.h * p.w, threads, kBiasActUnroll<T, 0>);
  with_act(act, [&](auto constant) { launch(blocks, epilogue2d_kernel<T, constant>, x, scale, noise, b, y, p, s); });
}

}  // namespace posgan_fast
