// The native op prologue2d of the CUDA library.
#include "cuda_launch.hpp"
#include "prologue2d.cuh"
#include "prologue2d_tensors.hpp"

namespace posgan_fast {
namespace {

void prologue2d(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& styles,
                const std::optional<Tensor>& border, const std::optional<Tensor>& columns,
                const std::optional<Tensor>& rows, const Tensor& y, int64_t left, int64_t top, int64_t mode,
                bool concat, bool height_first) {
  STD_TORCH_CHECK(x.is_cuda(), "prologue2d: expected x on a CUDA device");
  const Prologue2dParams p =
      Prologue2dTensors{x, residual, styles, border, columns, rows, y}.params(left, top, mode, concat, height_first);
  if (y.numel() == 0) return;

  const CudaDeviceGuard device(x.get_device_index());
  dispatch_dtype("prologue2d", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const auto stored = [](const std::optional<Tensor>& t) { return static_cast<const T*>(data_or_null(t)); };
    const auto wide = [](const std::optional<Tensor>& t) { return static_cast<const A*>(data_or_null(t)); };
    const Prologue2dPointers<T> pointers = {static_cast<const T*>(x.const_data_ptr()),
                                            stored(residual),
                                            stored(border),
                                            wide(styles),
                                            wide(columns),
                                            wide(rows),
                                            static_cast<T*>(y.mutable_data_ptr())};
    const int threads = elementwise_threads(device.sm(), y.numel());
    run_prologue2d(pointers, p, threads, [&](const auto&... launch) {
      device.launch_elementwise("prologue2d", y.numel(), threads, launch...);
    });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("prologue2d", TORCH_BOX(&posgan_fast::prologue2d)); }
