// The native op epilogue2d of the CUDA library. The caller resamples by upfirdn2d before, into the same y.
#include "cuda_launch.hpp"
#include "epilogue2d.cuh"
#include "epilogue2d_tensors.hpp"

namespace posgan_fast {
namespace {

void epilogue2d(const Tensor& x, const std::optional<Tensor>& odd_rows, const std::optional<Tensor>& f,
                const std::optional<Tensor>& scale, const std::optional<Tensor>& noise, const std::optional<Tensor>& b,
                const Tensor& y, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, double, int64_t act,
                double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(x.is_cuda(), "epilogue2d: expected x on a CUDA device");
  STD_TORCH_CHECK(!odd_rows && !f, "epilogue2d: expected neither odd_rows nor f on CUDA");
  check_like("epilogue2d", "y", y, x);
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && same_layout(x, y),
                  "epilogue2d: expected x and y of shape [N, C, H, W] with equal sizes and strides");
  if (y.numel() == 0) return;
  const bool contiguous = y.is_contiguous();
  STD_TORCH_CHECK(contiguous || is_channels_last(y), "epilogue2d: expected x and y dense, in NCHW or channels_last");
  const Epilogue2dParams p = Epilogue2dTensors{x, scale, noise, b, y}.params(!contiguous, act, alpha, gain, clamp);

  const CudaDeviceGuard device(x.get_device_index());
  dispatch_dtype("epilogue2d", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const int threads = elementwise_threads(device.sm(), y.numel());
    run_epilogue2d(static_cast<const T*>(x.const_data_ptr()), static_cast<const A*>(data_or_null(scale)),
                   static_cast<const A*>(data_or_null(noise)), static_cast<const T*>(data_or_null(b)),
                   static_cast<T*>(y.mutable_data_ptr()), p, Act(act), threads, [&](const auto&... launch) {
                     device.launch_elementwise("epilogue2d", y.numel(), threads, launch...);
                   });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("epilogue2d", TORCH_BOX(&posgan_fast::epilogue2d)); }
