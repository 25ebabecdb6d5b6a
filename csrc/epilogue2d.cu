// The native op epilogue2d of the CUDA library. Resampling and epilogue are one kernel where a fir4 kernel serves the
// call, else two, the second of which writes over the result of the first.
#include "epilogue2d_fir4.cuh"
#include "epilogue2d_tensors.hpp"
#include "upfirdn2d_launch.hpp"
#include "upfirdn2d_tensors.hpp"

namespace posgan_fast {
namespace {

struct Epilogue2dCall {
  const CudaDeviceGuard& device;
  const Epilogue2dTensors& tensors;
  const Epilogue2dParams& params;
  Act act;

  // Without these, the op is its resampling.
  bool changes_values() const {
    const bool factors = tensors.scale || tensors.noise || tensors.b || tensors.post_scale;
    return factors || act != Act::kLinear || params.gain != 1 || params.clamp >= 0;
  }

  template <typename T>
  Epilogue2dFactors<T> factors() const {
    return {static_cast<const acc_t<T>*>(data_or_null(tensors.scale)),
            static_cast<const acc_t<T>*>(data_or_null(tensors.noise)), static_cast<const T*>(data_or_null(tensors.b)),
            static_cast<const acc_t<T>*>(data_or_null(tensors.post_scale))};
  }
};

// Finishes the values of x, which may be y.
void finish(const Epilogue2dCall& call, const Tensor& x) {
  const Tensor& y = call.tensors.y;
  dispatch_dtype("epilogue2d", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    const int threads = elementwise_threads(call.device.sm(), y.numel());
    run_epilogue2d(static_cast<const T*>(x.const_data_ptr()), call.factors<T>(), static_cast<T*>(y.mutable_data_ptr()),
                   call.params, call.act, threads, [&](const auto&... launch) {
                     call.device.launch_elementwise("epilogue2d", y.numel(), threads, launch...);
                   });
  });
}

// Resamples x and finishes the values by one kernel; returns false if no kernel does both.
bool resample_and_finish(const Epilogue2dCall& call, const Tensor& f, const Upfirdn2dParams& p) {
  bool served = false;
  dispatch_dtype("epilogue2d", call.tensors.x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    const T* const x = static_cast<const T*>(call.tensors.x.const_data_ptr());
    T* const y = static_cast<T*>(call.tensors.y.mutable_data_ptr());
    const Epilogue2dFactors<T> factors = call.factors<T>();
    const Upfirdn2dKernel kernel = choose_kernel(x, y, p);
    served = fir4_finishes(kernel, call.act, factors);
    if (!served) return;
    run_fir4_epilogue2d(x, static_cast<const acc_t<T>*>(f.const_data_ptr()), factors, y, p, call.params, call.act,
                        kernel, upfirdn2d_tiling(call.device.sm(), kernel, p), kMaxGridY,
                        [&](const auto&... launch) { call.device.launch(launch...); });
  });
  return served;
}

void epilogue2d(const Tensor& x, const std::optional<Tensor>& odd_rows, const std::optional<Tensor>& f,
                const std::optional<Tensor>& scale, const std::optional<Tensor>& noise, const std::optional<Tensor>& b,
                const std::optional<Tensor>& post_scale, const Tensor& y, int64_t upx, int64_t upy, int64_t downx,
                int64_t downy, int64_t padx0, int64_t pady0, bool flip, double filter_gain, int64_t act, double alpha,
                double gain, double clamp) {
  STD_TORCH_CHECK(x.is_cuda(), "epilogue2d: expected x on a CUDA device");
  STD_TORCH_CHECK(!odd_rows, "epilogue2d: expected no odd_rows on CUDA");
  const Upfirdn2dTensors resampled("epilogue2d", x, y);
  if (y.numel() == 0) return;
  const bool contiguous = y.is_contiguous();
  STD_TORCH_CHECK(contiguous || is_channels_last(y), "epilogue2d: expected y dense, in NCHW or channels_last");
  const Epilogue2dTensors tensors{x, scale, noise, b, post_scale, y};
  const Epilogue2dParams params = tensors.params(!contiguous, act, alpha, gain, clamp);
  const CudaDeviceGuard device(x.get_device_index());
  const Epilogue2dCall call{device, tensors, params, Act(act)};
  if (!f) {
    STD_TORCH_CHECK(same_layout(x, y), "epilogue2d: expected x and y with equal sizes and strides where f is None");
    return finish(call, x);
  }
  STD_TORCH_CHECK(x.const_data_ptr() != y.const_data_ptr(), "epilogue2d: expected another y than x where f is given");
  Upfirdn2dParams p = resampled.params(!contiguous);
  resampled.set_filter(p, *f, upx, upy, downx, downy, padx0, pady0, flip, filter_gain);
  if (call.changes_values() && resample_and_finish(call, *f, p)) return;
  launch_upfirdn2d(device, x, *f, y, p);
  if (call.changes_values()) finish(call, y);
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("epilogue2d", TORCH_BOX(&posgan_fast::epilogue2d)); }
