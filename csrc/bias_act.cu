// The native op bias_act of the CUDA library.
#include "bias_act.cuh"
#include "bias_act_tensors.hpp"
#include "cuda_launch.hpp"

namespace posgan_fast {
namespace {

void bias_act(const Tensor& x, const std::optional<Tensor>& b, const std::optional<Tensor>& ref,
              const std::optional<Tensor>& dy, const Tensor& out, int64_t step, int64_t grad, int64_t act, double alpha,
              double gain, double clamp) {
  STD_TORCH_CHECK(x.is_cuda(), "bias_act: expected x on a CUDA device");
  const BiasActParams p = BiasActTensors{x, b, ref, dy, out}.params(step, grad, act, alpha, gain, clamp);
  STD_TORCH_CHECK(p.channels < (int64_t(1) << 31), "bias_act: expected a b of fewer than 2^31 elements");
  if (p.numel == 0) return;

  const CudaDeviceGuard device(x.get_device_index());
  dispatch_dtype("bias_act", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    const auto data = [](const std::optional<Tensor>& t) { return static_cast<const T*>(data_or_null(t)); };
    const int threads = elementwise_threads(device.sm(), p.numel);
    run_bias_act(static_cast<const T*>(x.const_data_ptr()), data(b), data(ref), data(dy),
                 static_cast<T*>(out.mutable_data_ptr()), p, int(grad), Act(act), threads,
                 [&](const auto&... launch) { device.launch_elementwise("bias_act", p.numel, threads, launch...); });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("bias_act", TORCH_BOX(&posgan_fast::bias_act)); }
