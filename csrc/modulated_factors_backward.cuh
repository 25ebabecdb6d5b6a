// The CUDA kernel that computes in one launch the gradients of the coefficients and scaled styles that
// modulated_factors computes (modulated_conv2d.cuh), and its launch configuration. No torch; compiles for the host too
// (host_device.h).
//
// With f[o] and t[n] the divisors that keep float16 in range, constants here, and h[n, o] = d_dcoefs * dcoefs^3 /
// (f[o] * t[n])^2:
//
//   d_weight[o, i, k] = -weight[o, i, k] * (sum over n of h[n, o] * styles[n, i]^2)
//   d_styles[n, i]    = d_scaled_styles[n, i] / t[n] - styles[n, i] * (sum over o, k of h[n, o] * weight[o, i, k]^2)
//
// Every sum has an order that depends on sizes and on the size of a block alone.
#pragma once

#include "elementwise.cuh"

namespace posgan_fast {

struct ModulatedFactorsBackwardParams {
  int64_t samples, filters, channels;
  int taps;
  int64_t style_sample;                // stride of styles from sample to sample, elements
  int64_t weight_channel, weight_tap;  // strides of the weight, whose filters are dense, and of its gradient
};

// A is float or double.
template <typename A>
struct ModulatedFactorsBackwardPointers {
  const A *weight, *styles, *dcoefs;  // [O, I, taps] or [O, taps, I], [N, I], [N, O]
  const A* divisors;                  // [O + N], of the filters and of the samples; null: all are 1
  const A *d_dcoefs, *d_scaled;       // [N, O]; [N, I], null: zeros
  A *d_weight, *d_styles;             // as weight, [N, I]; null where nobody wants them
};

constexpr int kStyleSamples = 4, kStyleChannels = 8;  // of a block

template <typename A>
struct FactorsBackwardBlock {
  const ModulatedFactorsBackwardPointers<A>& t;
  const ModulatedFactorsBackwardParams& p;
  A* const shared;
  const int thread = int(threadIdx.x), threads = int(blockDim.x);

  // h[n, o] of the formula. A product of both divisors could underflow.
  PF_DEVICE A h_of(int64_t n, int64_t o) const {
    const A d = t.dcoefs[n * p.filters + o], raw = d / filter_divisor(o) / sample_divisor(n);
    return t.d_dcoefs[n * p.filters + o] * d * raw * raw;
  }

  // Writes the gradient of one filter.
  PF_DEVICE void write_filter(int64_t o) const {
    A* const h = shared;
    A* const factors = h + p.samples;
    for (int64_t n = thread; n < p.samples; n += threads) h[n] = h_of(n, o);
    __syncthreads();
    for (int64_t i = thread; i < p.channels; i += threads) {
      A sum = 0;
      for (int64_t n = 0; n < p.samples; ++n) {
        const A s = t.styles[n * p.style_sample + i];
        sum += h[n] * (s * s);
      }
      factors[i] = sum;
    }
    __syncthreads();
    const int64_t first = o * p.channels * p.taps;
    for (int64_t e = thread; e < p.channels * p.taps; e += threads) {
      t.d_weight[first + e] = -t.weight[first + e] * factors[p.weight_tap == 1 ? e / p.taps : e % p.channels];
    }
  }

  // Writes the gradients of a few channels of a few samples. The threads of a group share a filter.
  PF_DEVICE void write_styles(int64_t first_sample, int64_t first_channel) const {
    A* const h = shared;
    A* const partial = h + kStyleSamples * p.filters;
    for (int64_t e = thread; e < kStyleSamples * p.filters; e += threads) {
      const int64_t n = first_sample + e / p.filters;
      h[e] = n < p.samples ? h_of(n, e % p.filters) : A(0);
    }
    __syncthreads();
    const int lane = thread % kStyleChannels, group = thread / kStyleChannels, groups = threads / kStyleChannels;
    const int64_t i = first_channel + lane;
    A sums[kStyleSamples];
    fill(sums, A(0));
    for (int64_t o = group; o < p.filters && i < p.channels; o += groups) {
      const A squares = sum_of_squares(t.weight + (o * p.channels * p.taps + i * p.weight_channel));
#pragma unroll
      for (int n = 0; n < kStyleSamples; ++n) sums[n] += h[n * p.filters + o] * squares;
    }
#pragma unroll
    for (int n = 0; n < kStyleSamples; ++n) partial[n * threads + thread] = sums[n];
    __syncthreads();
    const int64_t n = first_sample + group;  // now a group has a sample
    if (group >= kStyleSamples || n >= p.samples || i >= p.channels) return;
    A sum = 0;
    for (int g = 0; g < groups; ++g) sum += partial[group * threads + g * kStyleChannels + lane];
    const A given = t.d_scaled == nullptr ? A(0) : t.d_scaled[n * p.channels + i] / sample_divisor(n);
    t.d_styles[n * p.channels + i] = given - t.styles[n * p.style_sample + i] * sum;
  }

 private:
  PF_DEVICE A sum_of_squares(const A* kernel) const {
    A sum = 0;
    for (int k = 0; k < p.taps; ++k) sum += kernel[k * p.weight_tap] * kernel[k * p.weight_tap];
    return sum;
  }
  PF_DEVICE A filter_divisor(int64_t o) const { return t.divisors == nullptr ? A(1) : t.divisors[o]; }
  PF_DEVICE A sample_divisor(int64_t n) const { return t.divisors == nullptr ? A(1) : t.divisors[p.filters + n]; }
};

// The blocks behind those of the filters have the styles, first all channels of the first samples.
template <typename A>
__global__ void __launch_bounds__(256)
    modulated_factors_backward_kernel(ModulatedFactorsBackwardPointers<A> t, ModulatedFactorsBackwardParams p) {
  PF_DYNAMIC_SHARED(raw);
  const FactorsBackwardBlock<A> block{t, p, reinterpret_cast<A*>(raw)};
  const int64_t filters = t.d_weight == nullptr ? 0 : p.filters, index = int64_t(blockIdx.x) - filters;
  if (index < 0) return block.write_filter(int64_t(blockIdx.x));
  const int64_t chunks = ceil_div(p.channels, kStyleChannels);
  block.write_styles(index / chunks * kStyleSamples, index % chunks * kStyleChannels);
}

inline int64_t modulated_factors_backward_blocks(const ModulatedFactorsBackwardParams& p) {
  return p.filters + ceil_div(p.channels, kStyleChannels) * ceil_div(p.samples, kStyleSamples);
}

// Calls launch(grid, block, shared_bytes, kernel, arguments...). `threads` is a multiple of 32.
template <typename A, typename Launch>
void run_modulated_factors_backward(const ModulatedFactorsBackwardPointers<A>& t,
                                    const ModulatedFactorsBackwardParams& p, int threads, const Launch& launch) {
  int64_t blocks = modulated_factors_backward_blocks(p);
  if (t.d_weight == nullptr) blocks -= p.filters;
  if (t.d_styles == nullptr) blocks = p.filters;
  const int64_t filter_shared = p.samples + p.channels, style_shared = kStyleSamples * (p.filters + threads);
  launch(dim3{unsigned(blocks), 1, 1}, dim3{unsigned(threads), 1, 1},
         size_t(filter_shared > style_shared ? filter_shared : style_shared) * sizeof(A),
         modulated_factors_backward_kernel<A>, t, p);
}

}  // namespace posgan_fast
