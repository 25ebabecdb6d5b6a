// epilogue2d on CUDA, behind its resampling: checks of memory, launch.
#include <optional>

#include "epilogue2d.cuh"
#include "torch_launch.hpp"

namespace posgan_fast {
namespace {

// The resampling is upfirdn2d's, called before with the same y.
void epilogue2d(Tensor x, std::optional<Tensor> odd, std::optional<Tensor> f, std::optional<Tensor> scale,
                std::optional<Tensor> noise, std::optional<Tensor> b, Tensor y, int64_t, int64_t, int64_t, int64_t,
                int64_t, int64_t, bool, double, int64_t act, double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(x.is_cuda(), "epilogue2d: expected x on a CUDA device");
  STD_TORCH_CHECK(!odd.has_value() && !f.has_value(), "epilogue2d: expected neither odd nor f on CUDA");
  STD_TORCH_CHECK(is_act(act), "epilogue2d: expected act in 1..9, got ", act);
  check_like("epilogue2d", "y", y, x);
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && same_layout(x, y),
                  "epilogue2d: expected x and y of shape [N, C, H, W] with equal sizes and strides");
  if (y.numel() == 0) return;
  const bool contiguous = y.is_contiguous();
  STD_TORCH_CHECK(contiguous || is_channels_last(y), "epilogue2d: expected x and y dense, in NCHW or channels_last");
  const int64_t n = y.size(0), c = y.size(1), h = y.size(2), w = y.size(3);
  const ScalarType arithmetic = arithmetic_type(x.scalar_type());
  const auto data = [&](const char* name, const std::optional<Tensor>& t, ScalarType type,
                        int64_t numel) -> const void* {
    if (!t.has_value()) return nullptr;
    check_on("epilogue2d", name, *t, x);
    STD_TORCH_CHECK(t->scalar_type() == type,
                    "epilogue2d: expected b of the dtype of x, scale and noise of dtype float32,"
                    " or float64 for a float64 x; ",
                    name, " is not");
    STD_TORCH_CHECK(t->is_contiguous() && t->numel() == numel, "epilogue2d: expected a contiguous ", name, " of ",
                    numel, " elements, got ", t->numel());
    return t->const_data_ptr();
  };
  const bool shared = noise.has_value() && noise->dim() > 0 && noise->size(0) == 1;
  const void* const scale_data = data("scale", scale, arithmetic, n * c);
  const void* const noise_data = data("noise", noise, arithmetic, (shared ? 1 : n) * h * w);
  const void* const b_data = data("b", b, x.scalar_type(), c);
  const Epilogue2dParams p{n, c, h, w, shared ? 0 : h * w, !contiguous, alpha, gain, clamp};

  const OnDevice device(x.get_device_index());
  with_scalar("epilogue2d", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    const int threads = elements_threads(device.sm(), y.numel());
    run_epilogue2d(static_cast<const T*>(x.const_data_ptr()), static_cast<const acc_t<T>*>(scale_data),
                   static_cast<const acc_t<T>*>(noise_data), static_cast<const T*>(b_data),
                   static_cast<T*>(y.mutable_data_ptr()), p, Act(act), threads,
                   [&](const auto&... launch) { device.launch_elements("epilogue2d", y.numel(), threads, launch...); });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("epilogue2d", TORCH_BOX(&posgan_fast::epilogue2d)); }
