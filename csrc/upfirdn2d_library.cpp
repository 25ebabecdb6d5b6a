// The native op upfirdn2d of the CPU library.
#include "upfirdn2d_task.hpp"

namespace posgan_fast::cpu {
namespace {

void upfirdn2d(const Tensor& x, const Tensor& f, const Tensor& y, int64_t upx, int64_t upy, int64_t downx,
               int64_t downy, int64_t padx0, int64_t pady0, bool flip, double gain) {
  const Upfirdn2dTensors tensors("upfirdn2d", x, y);
  if (y.numel() == 0) return;
  Upfirdn2dTask task = make_task(tensors, std::nullopt);
  tensors.set_filter(task.params, f, upx, upy, downx, downy, padx0, pady0, flip, gain);
  run_resampling(kernels().upfirdn2d, task, task, f);
}

}  // namespace

BoxedOp* const upfirdn2d_boxed = TORCH_BOX(&upfirdn2d);

}  // namespace posgan_fast::cpu
