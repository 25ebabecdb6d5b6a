// The CUDA kernel that prepares in one launch what the convolution and the epilogue of modulated_conv2d read, and its
// launch configuration. No torch; compiles for the host too (host_device.h).
//
//   dcoefs[n, o] = rsqrt(sum over i, k of (weight[o, i, k] * styles[n, i])^2 + eps)
//   out          = weight, or with fold weight * styles[n] for each sample, in the dtype and strides of the convolution
//   cast_bias    = bias in the same dtype
//   scaled_noise = noise * strength
//
// float16 stays in range by constants, which dcoefs undoes: the weight of filter o is divided by
// f = max over i, k of |weight[o, i, k]| * sqrt(I * taps), the styles of sample n by t = max over i of |styles[n, i]|.
// divisors = f of each filter, then t of each sample.
#pragma once

#include "elementwise.cuh"

namespace posgan_fast {

struct ModulatedFactorsParams {
  int64_t samples, filters, channels;
  int taps;
  int64_t style_sample;                // stride of styles from sample to sample, elements
  int64_t weight_channel, weight_tap;  // strides of the weight, whose filters are dense
  int64_t noise;                       // elements of it
  int64_t out_sample, out_filter, out_channel,
      out_tap;  // strides of out, elements; out_tap of a kernel's taps in order
  double eps;
  bool fold;      // out has a weight for each sample, which holds the styles
  bool flip;      // reverse the taps
  bool in_range;  // keep float16 in range; takes dcoefs
};

template <typename T>
struct ModulatedFactorsPointers {
  const acc_t<T>*weight, *styles;          // [O, I, taps] or [O, taps, I], [N, I]
  const acc_t<T>*bias, *noise, *strength;  // [O], any size, one element; null where there is none
  T *out, *cast_bias;
  // [N, O], [N, I], the noise, [O + N]; null where there is none
  acc_t<T>*dcoefs, *scaled_styles, *scaled_noise, *divisors;
};

constexpr int kFactorsLanes = 32;    // threads that share a sample
constexpr int kNoiseOfBlock = 4096;  // elements

// What is no divisor - zero, infinity, NaN - becomes 1.
template <typename A>
PF_DEVICE A divisor_or_one(A v) {
  return v > 0 && v - v == 0 ? v : A(1);
}

// A block prepares one filter.
template <typename T>
struct FactorsBlock {
  using A = acc_t<T>;

  const ModulatedFactorsPointers<T>& t;
  const ModulatedFactorsParams& p;
  const int64_t o;
  const A* const weight;
  const int thread, threads;
  // In shared memory: sums of squares of the filter's kernels [I], divisors of the styles [N], two values a thread.
  A *const squares, *const divisors, *const sums, *const maxima;

  PF_DEVICE FactorsBlock(const ModulatedFactorsPointers<T>& pointers, const ModulatedFactorsParams& params, A* shared)
      : t(pointers),
        p(params),
        o(int64_t(blockIdx.x)),
        weight(pointers.weight + o * params.channels * params.taps),
        thread(int(threadIdx.x)),
        threads(int(blockDim.x)),
        squares(shared),
        divisors(squares + params.channels),
        sums(divisors + params.samples),
        maxima(sums + threads) {}

  // Fills squares; returns the divisor of the filter.
  PF_DEVICE A read_filter() const {
    A largest = 0;
    for (int64_t i = thread; i < p.channels; i += threads) {
      A sum = 0;
      for (int k = 0; k < p.taps; ++k) {
        const A w = weight[i * p.weight_channel + k * p.weight_tap];
        sum += w * w;
        largest = larger(largest, magnitude(w));
      }
      squares[i] = sum;
    }
    maxima[thread] = largest;
    __syncthreads();
    if (!p.in_range) return 1;
    if (thread < kFactorsLanes) {
      for (int k = thread; k < threads; k += kFactorsLanes) largest = larger(largest, maxima[k]);
      sums[thread] = largest;
    }
    __syncthreads();
    for (int k = 0; k < kFactorsLanes; ++k) largest = larger(largest, sums[k]);
    __syncthreads();  // sums are written again
    return divisor_or_one(largest * A(::sqrt(double(p.channels) * p.taps)));
  }

  // Writes the coefficient of a sample and the divisor of its styles. Lanes with n >= samples meet the others at the
  // barriers and do no more.
  PF_DEVICE void finish_sample(int64_t n, int lane, A filter_divisor) const {
    A sum = 0, largest = 0;
    for (int64_t i = lane; n < p.samples && i < p.channels; i += kFactorsLanes) {
      const A s = styles_of(n)[i];
      sum += s * s * squares[i];
      largest = larger(largest, magnitude(s));
    }
    sums[thread] = sum;
    maxima[thread] = largest;
    __syncthreads();
    if (lane == 0 && n < p.samples) {
      for (int k = 1; k < kFactorsLanes; ++k) sum += sums[thread + k], largest = larger(largest, maxima[thread + k]);
      divisors[n] = p.in_range ? divisor_or_one(largest) : A(1);
      if (t.dcoefs != nullptr) {
        t.dcoefs[n * p.filters + o] = A(1) / A(::sqrt(sum + A(p.eps))) * (filter_divisor * divisors[n]);
      }
    }
    __syncthreads();
  }

  // Writes the filter in the order of memory of its format, times the styles of a sample if there is one.
  PF_DEVICE void write_filter(int64_t n, bool styled, A filter_divisor) const {
    const bool channels_first = p.out_channel < p.out_tap;
    const A* const styles = styles_of(n);
    T* const out = t.out + n * p.out_sample + o * p.out_filter;
    for (int64_t e = thread; e < p.channels * p.taps; e += threads) {
      const int64_t i = channels_first ? e % p.channels : e / p.taps;
      const int tap = int(channels_first ? e / p.channels : e % p.taps);
      const A w = weight[i * p.weight_channel + (p.flip ? p.taps - 1 - tap : tap) * p.weight_tap] / filter_divisor;
      from_acc(out + i * p.out_channel + tap * p.out_tap, styled ? w * (styles[i] / divisors[n]) : w);
    }
  }

  PF_DEVICE void write_styles() const {
    for (int64_t i = thread; i < p.samples * p.channels; i += threads) {
      const int64_t n = i / p.channels;
      t.scaled_styles[i] = styles_of(n)[i - n * p.channels] / divisors[n];
    }
  }

  PF_DEVICE void write_divisors(A filter_divisor) const {
    if (thread == 0) t.divisors[o] = filter_divisor;
    for (int64_t n = thread; o == 0 && n < p.samples; n += threads) t.divisors[p.filters + n] = divisors[n];
  }

 private:
  PF_DEVICE const A* styles_of(int64_t n) const { return t.styles + n * p.style_sample; }
  static PF_DEVICE A larger(A a, A b) { return b > a ? b : a; }
  static PF_DEVICE A magnitude(A v) { return v < 0 ? -v : v; }
};

template <typename T>
PF_DEVICE void scale_noise(const ModulatedFactorsPointers<T>& t, const ModulatedFactorsParams& p, int64_t block) {
  const acc_t<T> strength = *t.strength;
  const int64_t first = block * kNoiseOfBlock, left = p.noise - first;
  const int64_t end = first + (left < kNoiseOfBlock ? left : kNoiseOfBlock);
  for (int64_t i = first + int(threadIdx.x); i < end; i += int(blockDim.x)) t.scaled_noise[i] = t.noise[i] * strength;
}

// The blocks behind those of the filters scale the noise.
template <typename T>
__global__ void __launch_bounds__(256)
    modulated_factors_kernel(ModulatedFactorsPointers<T> t, ModulatedFactorsParams p) {
  if (blockIdx.x >= p.filters) return scale_noise(t, p, int64_t(blockIdx.x) - p.filters);
  PF_DYNAMIC_SHARED(raw);
  const FactorsBlock<T> block(t, p, reinterpret_cast<acc_t<T>*>(raw));
  const int group = block.thread / kFactorsLanes, groups = block.threads / kFactorsLanes;
  const acc_t<T> filter_divisor = block.read_filter();
  for (int64_t n = 0; n < p.samples; n += groups) {
    block.finish_sample(n + group, block.thread % kFactorsLanes, filter_divisor);
  }
  for (int64_t n = 0; n < (p.fold ? p.samples : 1); ++n) block.write_filter(n, p.fold, filter_divisor);
  if (t.scaled_styles != nullptr && block.o == 0) block.write_styles();
  if (t.divisors != nullptr) block.write_divisors(filter_divisor);
  if (t.cast_bias != nullptr && block.thread == 0) from_acc(t.cast_bias + block.o, t.bias[block.o]);
}

// Calls launch(grid, block, shared_bytes, kernel, arguments...). `threads` is a multiple of kFactorsLanes.
template <typename T, typename Launch>
void run_modulated_factors(const ModulatedFactorsPointers<T>& t, const ModulatedFactorsParams& p, int threads,
                           const Launch& launch) {
  launch(dim3{unsigned(p.filters + ceil_div(p.noise, kNoiseOfBlock)), 1, 1}, dim3{unsigned(threads), 1, 1},
         size_t(p.channels + p.samples + 2 * threads) * sizeof(acc_t<T>), modulated_factors_kernel<T>, t, p);
}

}  // namespace posgan_fast
