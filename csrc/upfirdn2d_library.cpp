// upfirdn2d on the CPU: the leaf.
#include "upfirdn2d_task.hpp"

namespace posgan_fast::cpu {
namespace {

void upfirdn2d(const Tensor& x, const Tensor& f, const Tensor& y, int64_t upx, int64_t upy, int64_t downx,
               int64_t downy, int64_t padx0, int64_t pady0, bool flip, double gain) {
  Upfirdn2dTask task = task_of("upfirdn2d", x, std::nullopt, y);
  set_filter("upfirdn2d", task, f, upx, upy, downx, downy, padx0, pady0, flip, gain);
  const auto run = task.type == Type::kDouble ? &resample<double, Upfirdn2dTask> : &resample<float, Upfirdn2dTask>;
  run(kernels().upfirdn2d, task, task, f);
}

}  // namespace

Leaf* const upfirdn2d_leaf = TORCH_BOX(&upfirdn2d);

}  // namespace posgan_fast::cpu
