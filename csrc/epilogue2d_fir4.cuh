// epilogue2d inside of the fir4 kernels of upfirdn2d: each filtered value is finished right before it is stored, so the
// resampled image never reaches memory. No torch; compiles for the host too (host_device.h).
#pragma once

#include "epilogue2d.cuh"
#include "upfirdn2d.cuh"

namespace posgan_fast {

// Finishes the values of a fir4 kernel; NoEpilogue tells when the functions are called.
template <typename T, Act kAct>
struct FirEpilogue {
  using A = acc_t<T>;

  const A *scale, *noise_map;  // null where there is none
  const T* b;
  const A* post_scale;
  int64_t noise_stride_n;
  A alpha, gain, clamp;

  template <int kCount>
  struct At {
    A scale[kCount], b[kCount], post[kCount];
    int64_t pixel;  // of noise_map

    PF_DEVICE void next_row(int64_t width) { pixel += width; }
  };

  template <int kCount>
  PF_DEVICE At<kCount> begin(int64_t n, int64_t c, int64_t channels, int64_t pixel) const {
    At<kCount> at;
    fill(at.scale, A(1));
    fill(at.b, A(0));
    fill(at.post, A(1));
    if (scale != nullptr) read(scale + (n * channels + c), at.scale);
    if (post_scale != nullptr) read(post_scale + (n * channels + c), at.post);
    if (b != nullptr) read(b + c, at.b);
    at.pixel = n * noise_stride_n + pixel;
    return at;
  }

  template <int kCount>
  PF_DEVICE A noise(const At<kCount>& at, int columns) const {
    if (noise_map == nullptr) return 0;
    A value[1];
    to_acc(load_vector_readonly<1>(noise_map + (at.pixel + columns)), value);
    return value[0];
  }

  template <int kCount>
  PF_DEVICE A finish(const At<kCount>& at, int channel, A noise, A v) const {
    const A sum = epilogue2d_sum(v, at.scale[channel], noise, at.b[channel]);
    return epilogue2d_act<kAct, MathOf<T>, A>(sum, alpha, gain, clamp) * at.post[channel];
  }

 private:
  template <typename From, int kCount>
  PF_DEVICE static void read(const From* from, A (&v)[kCount]) {
    if constexpr (kCount == 1) {
      v[0] = to_acc(*from);
    } else {
      to_acc(load_vector_readonly<kCount>(from), v);
    }
  }
};

// Whether a kernel of upfirdn2d has a variant that finishes its values. Smooth activations and float64 have none: they
// would double the number of kernels for layers that StyleGAN2 lacks.
template <typename T>
bool fir4_finishes(Upfirdn2dKernel kernel, Act act, const Epilogue2dFactors<T>& from) {
  if (sizeof(T) == sizeof(double) || !piecewise_linear(act)) return false;
  if (kernel == Upfirdn2dKernel::kFir4) return true;
  const auto whole = [](const auto* t) { return reinterpret_cast<uintptr_t>(t) % (kFirChannels * sizeof(*t)) == 0; };
  return kernel == Upfirdn2dKernel::kFir4ChannelsLast && whole(from.scale) && whole(from.b) && whole(from.post_scale);
}

// Runs a kernel for which fir4_finishes() is true. y must not overlap x.
template <typename T, typename Launch>
void run_fir4_epilogue2d(const T* x, const acc_t<T>* f, const Epilogue2dFactors<T>& from, T* y,
                         const Upfirdn2dParams& p, const Epilogue2dParams& e, Act act, Upfirdn2dKernel kernel,
                         Upfirdn2dTiling t, int64_t max_grid_y, const Launch& launch) {
  if constexpr (sizeof(T) < sizeof(double)) {
    // By its registers a multiprocessor holds 640 threads of fir4 with an epilogue (sm_90), 768 without one.
    if (kernel == Upfirdn2dKernel::kFir4) t.resident_threads = t.resident_threads / 6 * 5;
    const auto run = [&](auto constant) {
      const float alpha = act == Act::kLinear ? 1.0f : float(e.alpha);  // the slope that makes lrelu linear
      const FirEpilogue<T, constant> epilogue = {from.scale,       from.noise, from.b,        from.post_scale,
                                                 e.noise_stride_n, alpha,      float(e.gain), float(e.clamp)};
      run_fir4_kernels(x, f, y, p, epilogue, kernel, t, max_grid_y, launch);
    };
    if (act == Act::kRelu) return run(std::integral_constant<Act, Act::kRelu>());
    run(std::integral_constant<Act, Act::kLrelu>());
  }
}

}  // namespace posgan_fast
