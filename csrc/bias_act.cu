// bias_act on CUDA: checks of memory, launch.
#include <optional>

#include "bias_act.cuh"
#include "torch_launch.hpp"

namespace posgan_fast {
namespace {

// Elements from the first to the last in memory, both included.
int64_t extent(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return last + 1;
}

void bias_act(Tensor x, std::optional<Tensor> b, std::optional<Tensor> ref, std::optional<Tensor> dy, Tensor out,
              int64_t step, int64_t order, int64_t act, double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(x.is_cuda(), "bias_act: expected x on a CUDA device");
  STD_TORCH_CHECK(order >= 0 && order <= 2, "bias_act: expected order 0, 1 or 2, got ", order);
  STD_TORCH_CHECK(is_act(act), "bias_act: expected act in 1..9, got ", act);
  STD_TORCH_CHECK(ref.has_value() == (order > 0) && dy.has_value() == (order > 1),
                  "bias_act: expected ref from order 1 on and dy at order 2");
  if (x.numel() == 0) return;
  STD_TORCH_CHECK(extent(x) == x.numel(), "bias_act: expected x dense and non-overlapping");
  const auto data = [&](const char* name, const std::optional<Tensor>& t) -> const void* {
    if (!t.has_value()) return nullptr;
    check_like("bias_act", name, *t, x);
    STD_TORCH_CHECK(same_layout(*t, x), "bias_act: expected ", name, " of the sizes and strides of x");
    return t->const_data_ptr();
  };
  const void* const ref_data = data("ref", ref);
  const void* const dy_data = data("dy", dy);
  data("out", out);

  BiasActParams p;
  p.numel = x.numel();
  p.step = step;
  p.channels = 0;
  p.alpha = alpha;
  p.gain = gain;
  p.clamp = clamp;
  if (b.has_value()) {
    check_like("bias_act", "b", *b, x);
    STD_TORCH_CHECK(b->dim() == 1 && b->is_contiguous() && b->numel() > 0 && b->numel() < (int64_t(1) << 31),
                    "bias_act: expected a contiguous b of rank 1 with 1 to 2^31 - 1 elements");
    STD_TORCH_CHECK(step >= 1, "bias_act: expected step >= 1, got ", step);
    p.channels = b->numel();
  }

  const OnDevice device(x.get_device_index());
  with_scalar("bias_act", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    const T* const bias = b.has_value() ? static_cast<const T*>(b->const_data_ptr()) : nullptr;
    const int threads = elements_threads(device.sm(), p.numel);
    run_bias_act(static_cast<const T*>(x.const_data_ptr()), bias, static_cast<const T*>(ref_data),
                 static_cast<const T*>(dy_data), static_cast<T*>(out.mutable_data_ptr()), p, int(order), Act(act),
                 threads,
                 [&](const auto&... launch) { device.launch_elements("bias_act", p.numel, threads, launch...); });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("bias_act", TORCH_BOX(&posgan_fast::bias_act)); }
