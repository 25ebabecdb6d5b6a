// The native ops winograd3x3, winograd3x3_weight and winograd3x3_gradient of the CPU library.
#include <limits>

#include "library.hpp"
#include "winograd3x3.h"

namespace posgan_fast::cpu {
namespace {

void check_float(const char* name, const Tensor& t, bool fits) {
  STD_TORCH_CHECK(fits && dtype_of(t) == Dtype::kFloat, "winograd3x3: unexpected shape, strides or dtype of ", name);
}

float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

const float* const_floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

// A vector [size] for all samples, or one [n, size] for each.
WinogradTask::Factor factor(const char* name, const std::optional<Tensor>& t, int64_t n, int64_t size) {
  if (!t) return {nullptr, 0};
  const bool shared = t->dim() == 1;
  const bool fits = shared ? t->size(0) == size : t->dim() == 2 && t->size(0) == n && t->size(1) == size;
  check_float(name, *t, fits && t->is_contiguous());
  return {const_floats(*t), shared ? 0 : size};
}

WinogradForm form_of(int64_t form) {
  STD_TORCH_CHECK(form >= 0 && form <= 2, "winograd3x3: expected form 0, 1 or 2, got ", form);
  return WinogradForm(form);
}

void check_transformed(const Tensor& t, int64_t filters, int64_t channels) {
  const int64_t size = kWinogradTaps * winograd_panels(filters) * channels * kWinogradPanel;
  check_float("transformed", t, t.is_contiguous() && t.numel() == size);
}

WinogradWeightTask weight_task(const Tensor& weight, WinogradForm form, bool flip) {
  check_float("weight", weight, weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.numel() > 0);
  WinogradWeightTask task = {};
  task.form = form;
  task.filters = weight.size(0), task.channels = weight.size(1);
  const int64_t direction = flip ? -1 : 1;
  task.stride_o = weight.stride(0), task.stride_i = weight.stride(1);
  task.stride_h = direction * weight.stride(2), task.stride_w = direction * weight.stride(3);
  task.weight = const_floats(weight) + (flip ? 2 * (weight.stride(2) + weight.stride(3)) : 0);
  return task;
}

void check_image(const char* name, const Tensor& t, Dtype dtype) {
  const bool fits = t.dim() == 4 && is_channels_last(t) && t.numel() > 0;
  STD_TORCH_CHECK(fits && dtype_of(t) == dtype, "winograd3x3: unexpected shape, strides or dtype of ", name);
}

// Sets the sizes of x and of y or its gradient, which has the given name.
template <typename Task>
void set_sizes(Task& task, const Tensor& x, const char* name, const Tensor& y, Dtype dtype) {
  check_image("x", x, dtype);
  check_image(name, y, dtype);
  STD_TORCH_CHECK(task.padding >= 0 && (task.form != WinogradForm::kUp || task.padding == 1),
                  "winograd3x3: unexpected padding ", task.padding);
  task.n = x.size(0), task.channels = x.size(1), task.h = x.size(2), task.w = x.size(3);
  task.filters = y.size(1), task.out_h = y.size(2), task.out_w = y.size(3);
  const auto expected = [&](int64_t size) {
    if (task.form == WinogradForm::kUp) return 2 * size + 1;
    return (size + 2 * task.padding - 3) / (task.form == WinogradForm::kDown ? 2 : 1) + 1;
  };
  STD_TORCH_CHECK(task.out_h == expected(task.h) && task.out_w == expected(task.w) && y.size(0) == task.n,
                  "winograd3x3: unexpected size of ", name);
}

void set_border(WinogradTask& task, int64_t mode, int64_t padding, const std::optional<Tensor>& pad_map) {
  STD_TORCH_CHECK(mode >= 0 && mode <= 2, "winograd3x3: expected mode 0, 1 or 2, got ", mode);
  task.border = Border(mode);
  STD_TORCH_CHECK((task.border == Border::kInstance) == pad_map.has_value(),
                  "winograd3x3: expected pad_map in mode 2, and there alone");
  STD_TORCH_CHECK(task.border == Border::kZeros || task.form != WinogradForm::kUp,
                  "winograd3x3: expected mode 0 of form 2, got ", mode);
  STD_TORCH_CHECK(task.border != Border::kReflect || (padding < task.h && padding < task.w),
                  "winograd3x3: expected less padding than pixels to reflect");
  if (!pad_map) return;
  const Tensor& map = *pad_map;
  const bool alone = map.dim() == 3;
  const bool fits = alone ? map.size(2) == Ring::size(task.h, task.w)
                          : map.dim() == 4 && map.size(2) >= task.h + 2 && map.size(3) >= task.w + 2;
  check_float("pad_map", map, fits && padding == 1 && map.size(0) == task.n && map.size(1) == task.channels);
  task.pad_map = const_floats(map);
  task.ring = alone ? Ring::stored_alone(task.h, task.w, map.stride(0), map.stride(1), map.stride(2))
                    : Ring::in_map(map.size(2), map.size(3), task.h, task.w, map.stride(0), map.stride(1),
                                   map.stride(2), map.stride(3));
}

void set_noise(WinogradTask& task, const std::optional<Tensor>& noise) {
  if (!noise) return;
  const int64_t pixels = task.out_h * task.out_w;
  const bool shared = noise->numel() == pixels;
  check_float("noise", *noise, noise->is_contiguous() && (shared || noise->numel() == task.n * pixels));
  task.noise = const_floats(*noise);
  task.noise_stride_n = shared ? 0 : pixels;
}

// Divides a task into work items for so many threads. Blocks are as small as the matrix product in registers, so that
// they stay in the second cache, but a pass over a larger weight has to serve more tiles. Where there are few tiles,
// threads share the filters too.
void divide(WinogradTask& task, int64_t threads) {
  constexpr int64_t kRows = 12, kLeast = 8, kMost = 96;
  const int64_t weights = task.channels * task.filters, most = task.form == WinogradForm::kPlain ? 4 : 2;
  const int64_t wanted = kRows * (weights <= 128 * 128 ? 1 : weights <= 256 * 256 ? 2 : most);
  const int64_t tiles = winograd_grid(task).tiles(0), panels = winograd_panels(task.filters);
  if (task.transformed == nullptr) {  // every block transforms the panels anew: one block, unless memory forbids it
    task.blocks = ceil_div(tiles, kMost);
    task.splits = std::min(threads, panels);
    return;
  }
  task.blocks = ceil_div(tiles, wanted * threads) * threads;  // as many for each thread
  task.blocks = std::min(task.blocks, ceil_div(tiles, kLeast));
  task.splits = std::min(ceil_div(threads, task.blocks), panels);
}

void check_squares(const Tensor& t, int64_t filters, int64_t channels) {
  check_float("squares", t, t.is_contiguous() && t.numel() == filters * channels);
}

// The weight comes as it is, for a call of few tiles, or transformed, with the squares of its kernels to demodulate.
void set_weight(WinogradTask& task, const std::optional<Tensor>& transformed, const std::optional<Tensor>& squares,
                const std::optional<Tensor>& weight, bool flip, double eps) {
  task.demodulate = eps >= 0, task.eps = float(eps);
  STD_TORCH_CHECK(!task.demodulate || weight || squares, "winograd3x3: expected squares to demodulate by them");
  STD_TORCH_CHECK(transformed.has_value() != weight.has_value(), "winograd3x3: expected either transformed or weight");
  if (transformed) {
    check_transformed(*transformed, task.filters, task.channels);
    task.transformed = const_floats(*transformed);
    if (squares) {
      check_squares(*squares, task.filters, task.channels);
      task.squares = const_floats(*squares);
    }
  } else {
    task.weight = weight_task(*weight, task.form, flip);
    check_float("weight", *weight, task.weight.filters == task.filters && task.weight.channels == task.channels);
  }
}

void winograd3x3(const Tensor& x, const std::optional<Tensor>& transformed, const std::optional<Tensor>& squares,
                 const std::optional<Tensor>& weight, bool flip, double eps, int64_t form, int64_t mode,
                 int64_t padding, const std::optional<Tensor>& pad_map, const std::optional<Tensor>& in_scale,
                 const std::optional<Tensor>& in_shift, const std::optional<Tensor>& scale,
                 const std::optional<Tensor>& shift, const std::optional<Tensor>& slope,
                 const std::optional<Tensor>& noise, double alpha, double gain, double clamp, const Tensor& y) {
  WinogradTask task = {};
  task.form = form_of(form);
  task.padding = padding;
  task.dtype = dtype_of(x) == Dtype::kBFloat16 ? Dtype::kBFloat16 : Dtype::kFloat;
  set_sizes(task, x, "y", y, task.dtype);
  task.x = x.const_data_ptr(), task.y = y.mutable_data_ptr();
  set_border(task, mode, padding, pad_map);
  set_weight(task, transformed, squares, weight, flip, eps);
  task.in_scale = factor("in_scale", in_scale, task.n, task.channels);
  task.in_shift = factor("in_shift", in_shift, task.n, task.channels);
  task.scale = factor("scale", scale, task.n, task.filters);
  task.shift = factor("shift", shift, task.n, task.filters);
  task.slope = factor("slope", slope, task.n, task.filters);
  set_noise(task, noise);
  task.alpha = float(alpha), task.gain = float(gain);
  task.clamp = clamp < 0 ? std::numeric_limits<float>::infinity() : float(clamp);
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  divide(task, threads);
  task.items = task.splits * task.blocks;
  task.nontemporal = prepare_result(task.y, nullptr, y.numel() * itemsize(task.dtype));
  int64_t next = 0;
  task.next = &next;
  parallel_for(kernels().winograd3x3, task, std::min(threads, task.items), 1);
}

void winograd3x3_weight(const Tensor& weight, int64_t form, bool flip, const Tensor& transformed,
                        const std::optional<Tensor>& squares) {
  WinogradWeightTask task = weight_task(weight, form_of(form), flip);
  check_transformed(transformed, task.filters, task.channels);
  task.transformed = floats(transformed);
  task.nontemporal = prepare_result(task.transformed, nullptr, transformed.numel() * int64_t(sizeof(float)));
  if (squares) {
    check_squares(*squares, task.filters, task.channels);
    task.squares = floats(*squares);
  }
  parallel_for(kernels().winograd3x3_weight, task, winograd_panels(task.filters), 1);
}

void winograd3x3_gradient(const Tensor& x, const Tensor& dy, int64_t form, int64_t padding, const Tensor& dw) {
  WinogradGradientTask task = {};
  task.form = form_of(form);
  task.padding = padding;
  set_sizes(task, x, "dy", dy, Dtype::kFloat);
  task.x = const_floats(x), task.dy = const_floats(dy);
  check_float("dw", dw,
              dw.dim() == 4 && dw.is_contiguous() && dw.size(0) == task.filters && dw.size(1) == task.channels &&
                  dw.size(2) == 3 && dw.size(3) == 3);
  task.dw = floats(dw);
  // Parts as large as the second cache holds, and at least one for each thread.
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  task.channel_part = 96, task.filter_part = 96;
  const auto items = [&] {
    return ceil_div(task.channels, task.channel_part) * ceil_div(task.filters, task.filter_part);
  };
  if (items() < 2 * threads) task.channel_part = 24, task.filter_part = 64;
  if (items() < threads) task.channel_part = 12, task.filter_part = 32;
  task.items = items();
  int64_t next = 0;
  task.next = &next;
  parallel_for(kernels().winograd3x3_gradient, task, std::min(threads, task.items), 1);
}

}  // namespace

BoxedOp* const winograd3x3_gradient_boxed = TORCH_BOX(&winograd3x3_gradient);
BoxedOp* const winograd3x3_boxed = TORCH_BOX(&winograd3x3);
BoxedOp* const winograd3x3_weight_boxed = TORCH_BOX(&winograd3x3_weight);

}  // namespace posgan_fast::cpu
