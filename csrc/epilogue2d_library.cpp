// The native op epilogue2d of the CPU library.
#include "epilogue2d_tensors.hpp"
#include "upfirdn2d_task.hpp"

namespace posgan_fast::cpu {
namespace {

// Divides the pixels of a task without a filter into segments and runs the kernel over them.
void run_segments(Epilogue2dTask& task) {
  const Upfirdn2dParams& p = task.fir.params;
  const int64_t h = task.params.h, w = task.params.w;
  STD_TORCH_CHECK(p.x.in == w && p.y.in == h, "epilogue2d: expected x and y of one size where f is None");
  const int64_t pixel = p.channels_last ? p.c : 1, row = w * pixel;
  const bool dense = h == 1 || (p.in_stride_h == row && p.out_stride_h == row);
  task.line = dense ? h * w : w;
  task.segment = std::max<int64_t>((int64_t(1) << 12) / pixel, 1);
  const int64_t lines = p.n * (p.channels_last ? 1 : p.c) * (h * w / task.line);
  parallel_for(kernels().epilogue2d, task, lines * ceil_div(task.line, task.segment),
               (int64_t(1) << 15) / (std::min(task.line, task.segment) * pixel));
}

void epilogue2d(const Tensor& x, const std::optional<Tensor>& odd_rows, const std::optional<Tensor>& f,
                const std::optional<Tensor>& scale, const std::optional<Tensor>& noise, const std::optional<Tensor>& b,
                const std::optional<Tensor>& post_scale, const Tensor& y, int64_t upx, int64_t upy, int64_t downx,
                int64_t downy, int64_t padx0, int64_t pady0, bool flip, double filter_gain, int64_t act, double alpha,
                double gain, double clamp) {
  STD_TORCH_CHECK(f || !odd_rows, "epilogue2d: expected f beside odd_rows");
  STD_TORCH_CHECK(!post_scale, "epilogue2d: expected no post_scale on the CPU");
  const Upfirdn2dTensors resampled("epilogue2d", x, y);
  if (y.numel() == 0) return;
  Epilogue2dTask task;
  task.fir = make_task(resampled, odd_rows);
  task.params = Epilogue2dTensors{x, scale, noise, b, post_scale, y}.params(task.fir.params.channels_last, act, alpha,
                                                                            gain, clamp);
  task.act = Act(act);
  task.scale = data_or_null(scale);
  task.noise = data_or_null(noise);
  task.b = data_or_null(b);
  if (!f) return run_segments(task);
  resampled.set_filter(task.fir.params, *f, upx, upy, downx, downy, padx0, pady0, flip, filter_gain);
  run_resampling(kernels().epilogue2d, task, task.fir, *f);
}

}  // namespace

BoxedOp* const epilogue2d_boxed = TORCH_BOX(&epilogue2d);

}  // namespace posgan_fast::cpu
