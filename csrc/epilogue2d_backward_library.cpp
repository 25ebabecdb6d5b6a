// The native op epilogue2d_backward of the CPU library.
#include "epilogue2d_backward_tensors.hpp"
#include "library.hpp"

namespace posgan_fast::cpu {
namespace {

using Optional = std::optional<Tensor>;

void epilogue2d_backward(const Tensor& dy, const Optional& y, const Optional& x, const Optional& scale,
                         const Optional& noise, const Optional& b, const Optional& dx, const Optional& channel_sums,
                         const Optional& pixel_sums, int64_t tile, int64_t act, double alpha, double gain,
                         double clamp) {
  Epilogue2dBackwardTask task;
  task.params = Epilogue2dBackwardTensors{dy, y, x, scale, noise, b, dx, channel_sums, pixel_sums}.params(
      tile, act, alpha, gain, clamp);
  if (dy.numel() == 0) return;
  task.dtype = dtype_of(dy);
  task.act = Act(act);
  task.dy = dy.const_data_ptr();
  task.y = data_or_null(y);
  task.x = data_or_null(x);
  task.b = data_or_null(b);
  task.scale = data_or_null(scale);
  task.noise = data_or_null(noise);
  task.dx = writable_or_null(dx);
  task.channel_sums = writable_or_null(channel_sums);
  task.pixel_sums = writable_or_null(pixel_sums);
  if (dx) prepare_result(task.dx, task.dy, dy.numel() * itemsize(task.dtype));
  const Epilogue2dBackwardParams& p = task.params;
  parallel_for(kernels().epilogue2d_backward, task, p.n * p.tiles, (int64_t(1) << 15) / (p.tile * p.c));
}

}  // namespace

BoxedOp* const epilogue2d_backward_boxed = TORCH_BOX(&epilogue2d_backward);

}  // namespace posgan_fast::cpu
