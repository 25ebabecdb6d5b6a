// The native op upfirdn2d of the CUDA library.
#include "upfirdn2d.cuh"
#include "upfirdn2d_launch.hpp"
#include "upfirdn2d_tensors.hpp"

namespace posgan_fast {

void launch_upfirdn2d(const CudaDeviceGuard& device, const Tensor& x, const Tensor& f, const Tensor& y,
                      const Upfirdn2dParams& p) {
  dispatch_dtype("upfirdn2d", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    const T* const from = static_cast<const T*>(x.const_data_ptr());
    T* const to = static_cast<T*>(y.mutable_data_ptr());
    const auto* const taps = static_cast<const acc_t<T>*>(f.const_data_ptr());
    const Upfirdn2dKernel kernel = choose_kernel(from, to, p);
    run_upfirdn2d(from, taps, to, p, kernel, upfirdn2d_tiling(device.sm(), kernel, p), kMaxGridY,
                  [&](const auto&... launch) { device.launch(launch...); });
  });
}

namespace {

void upfirdn2d(const Tensor& x, const Tensor& f, const Tensor& y, int64_t upx, int64_t upy, int64_t downx,
               int64_t downy, int64_t padx0, int64_t pady0, bool flip, double gain) {
  STD_TORCH_CHECK(x.is_cuda(), "upfirdn2d: expected x on a CUDA device");
  const Upfirdn2dTensors tensors("upfirdn2d", x, y);
  Upfirdn2dParams p = tensors.params(!y.is_contiguous());
  if (y.numel() == 0) return;
  tensors.set_filter(p, f, upx, upy, downx, downy, padx0, pady0, flip, gain);
  launch_upfirdn2d(CudaDeviceGuard(x.get_device_index()), x, f, y, p);
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("upfirdn2d", TORCH_BOX(&posgan_fast::upfirdn2d)); }
