// prologue2d on CUDA: checks of memory, launch.
#include <optional>

#include "prologue2d.cuh"
#include "prologue2d_tensors.hpp"
#include "torch_launch.hpp"

namespace posgan_fast {
namespace {

void prologue2d(Tensor x, std::optional<Tensor> residual, std::optional<Tensor> styles, std::optional<Tensor> border,
                std::optional<Tensor> columns, std::optional<Tensor> rows, Tensor y, int64_t left, int64_t top,
                int64_t mode, bool concat, bool height_first) {
  STD_TORCH_CHECK(x.is_cuda(), "prologue2d: expected x on a CUDA device");
  check_on("prologue2d", "y", y, x);
  const auto check = [&](const char* name, const std::optional<Tensor>& t) {
    if (t) check_on("prologue2d", name, *t, x);
  };
  check("residual", residual), check("styles", styles), check("border", border);
  check("columns", columns), check("rows", rows);
  const Prologue2dParams p =
      Prologue2dTensors{x, residual, styles, border, columns, rows, y}.params(left, top, mode, concat, height_first);
  if (y.numel() == 0) return;

  const OnDevice device(x.get_device_index());
  with_scalar("prologue2d", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const auto stored = [](const void* data) { return static_cast<const T*>(data); };
    const auto wide = [](const std::optional<Tensor>& t) { return static_cast<const A*>(data_of(t)); };
    const Prologue2dPointers<T> pointers = {stored(x.const_data_ptr()),
                                            stored(data_of(residual)),
                                            stored(data_of(border)),
                                            wide(styles),
                                            wide(columns),
                                            wide(rows),
                                            static_cast<T*>(y.mutable_data_ptr())};
    const int threads = elements_threads(device.sm(), y.numel());
    run_prologue2d(pointers, p, threads,
                   [&](const auto&... launch) { device.launch_elements("prologue2d", y.numel(), threads, launch...); });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("prologue2d", TORCH_BOX(&posgan_fast::prologue2d)); }
