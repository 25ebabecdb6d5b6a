// epilogue2d on the CPU: checks of memory, the task.
#include "upfirdn2d_task.hpp"

namespace posgan_fast::cpu {
namespace {

// With odd, x [N, 2C, R, P] holds the even rows of the filter's input and odd [N, 2C, R - 1, P] the odd ones, both in
// channels_last: value c of pixel 2p + q of a row is channel q * C + c of its pixel p.
void epilogue2d(const Tensor& x, const std::optional<Tensor>& odd, const std::optional<Tensor>& f,
                const std::optional<Tensor>& scale, const std::optional<Tensor>& noise, const std::optional<Tensor>& b,
                const Tensor& y, int64_t upx, int64_t upy, int64_t downx, int64_t downy, int64_t padx0, int64_t pady0,
                bool flip, double filter_gain, int64_t act, double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(is_act(act), "epilogue2d: act must be 1..9");
  STD_TORCH_CHECK(f || !odd, "epilogue2d: odd needs f");
  if (y.numel() == 0) return;
  Epilogue2dTask task;
  task.fir = task_of("epilogue2d", x, odd, y);
  Upfirdn2dParams& p = task.fir.params;
  const int64_t n = y.size(0), c = y.size(1), h = y.size(2), w = y.size(3);
  const ScalarType arithmetic = arithmetic_type(x.scalar_type());
  auto data = [](const std::optional<Tensor>& t, ScalarType type, int64_t numel, const char* message) -> const void* {
    if (!t) return nullptr;
    STD_TORCH_CHECK(t->scalar_type() == type && t->is_contiguous() && t->numel() == numel, "epilogue2d: ", message);
    return t->const_data_ptr();
  };
  const bool shared = noise && noise->dim() > 0 && noise->size(0) == 1;
  task.scale = data(scale, arithmetic, n * c, "scale must be a dense [N, C] of the arithmetic type");
  task.noise =
      data(noise, arithmetic, (shared ? 1 : n) * h * w, "noise must be a dense [N or 1, 1, H, W] of that type");
  task.b = data(b, x.scalar_type(), c, "b must be a dense [C] of the dtype of x");
  task.params = {n, c, h, w, shared ? 0 : h * w, p.channels_last, alpha, gain, clamp};
  task.act = Act(act);
  if (f) {
    set_filter("epilogue2d", task.fir, *f, upx, upy, downx, downy, padx0, pady0, flip, filter_gain);
    const auto run =
        task.fir.type == Type::kDouble ? &resample<double, Epilogue2dTask> : &resample<float, Epilogue2dTask>;
    return run(kernels().epilogue2d, task, task.fir, *f);
  }
  STD_TORCH_CHECK(x.size(2) == h && x.size(3) == w, "epilogue2d: without f, x and y must have one size");
  const int64_t pixel = p.channels_last ? c : 1, row = w * pixel;
  const bool dense = h == 1 || (p.in_stride_h == row && p.out_stride_h == row);
  task.line = dense ? h * w : w;
  task.segment = std::max<int64_t>((int64_t(1) << 12) / pixel, 1);
  const int64_t items = n * (p.channels_last ? 1 : c) * (h * w / task.line) * ceil_div(task.line, task.segment);
  spread(kernels().epilogue2d, task, items, (int64_t(1) << 15) / (std::min(task.line, task.segment) * pixel));
}

}  // namespace

Leaf* const epilogue2d_leaf = TORCH_BOX(&epilogue2d);

}  // namespace posgan_fast::cpu
