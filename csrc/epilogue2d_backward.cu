// The native op epilogue2d_backward of the CUDA library.
#include "cuda_launch.hpp"
#include "epilogue2d_backward.cuh"
#include "epilogue2d_backward_tensors.hpp"

namespace posgan_fast {
namespace {

using Optional = std::optional<Tensor>;

void epilogue2d_backward(const Tensor& dy, const Optional& y, const Optional& x, const Optional& scale,
                         const Optional& noise, const Optional& b, const Optional& dx, const Optional& channel_sums,
                         const Optional& pixel_sums, int64_t tile, int64_t act, double alpha, double gain,
                         double clamp) {
  STD_TORCH_CHECK(dy.is_cuda(), "epilogue2d_backward: expected dy on a CUDA device");
  const Epilogue2dBackwardParams p =
      Epilogue2dBackwardTensors{dy, y, x, scale, noise, b, dx, channel_sums, pixel_sums}.params(tile, act, alpha, gain,
                                                                                                clamp);
  if (dy.numel() == 0) return;
  STD_TORCH_CHECK(p.n * p.tiles < (int64_t(1) << 31), "epilogue2d_backward: expected fewer tiles than ", p.n * p.tiles);

  const CudaDeviceGuard device(dy.get_device_index());
  dispatch_dtype("epilogue2d_backward", dy.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const auto stored = [](const Optional& image) { return static_cast<const T*>(data_or_null(image)); };
    const Epilogue2dBackwardPointers<T> pointers = {static_cast<const T*>(dy.const_data_ptr()),
                                                    stored(y),
                                                    stored(x),
                                                    stored(b),
                                                    static_cast<const A*>(data_or_null(scale)),
                                                    static_cast<const A*>(data_or_null(noise)),
                                                    static_cast<T*>(writable_or_null(dx)),
                                                    static_cast<A*>(writable_or_null(channel_sums)),
                                                    static_cast<A*>(writable_or_null(pixel_sums))};
    run_epilogue2d_backward(pointers, p, Act(act), kBackwardMost,
                            [&](const auto&... launch) { device.launch(launch...); });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) {
  m.impl("epilogue2d_backward", TORCH_BOX(&posgan_fast::epilogue2d_backward));
}
