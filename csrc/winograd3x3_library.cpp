// The native ops winograd3x3 and winograd3x3_weight of the CPU library.
#include "library.hpp"
#include "winograd3x3.h"

namespace posgan_fast::cpu {
namespace {

void check_float(const char* name, const Tensor& t, bool fits) {
  STD_TORCH_CHECK(fits && dtype_of(t) == Dtype::kFloat, "winograd3x3: unexpected shape, strides or dtype of ", name);
}

const float* vector_or_null(const char* name, const std::optional<Tensor>& t, int64_t size) {
  if (!t) return nullptr;
  check_float(name, *t, t->dim() == 1 && t->size(0) == size && t->is_contiguous());
  return static_cast<const float*>(t->const_data_ptr());
}

int64_t transformed_size(int64_t filters, int64_t channels) {
  return kWinogradProducts * winograd_panels(filters) * channels * kWinogradPanel;
}

void winograd3x3(const Tensor& x, const Tensor& transformed, const std::optional<Tensor>& in_scale,
                 const std::optional<Tensor>& in_shift, const std::optional<Tensor>& scale,
                 const std::optional<Tensor>& shift, const std::optional<Tensor>& slope, const Tensor& y) {
  check_float("x", x, x.dim() == 4 && is_channels_last(x) && x.numel() > 0);
  check_float("y", y, y.dim() == 4 && is_channels_last(y) && y.numel() > 0);
  WinogradTask task = {};
  task.n = x.size(0), task.channels = x.size(1), task.h = x.size(2), task.w = x.size(3);
  task.filters = y.size(1);
  const bool same = y.size(0) == task.n && y.size(2) == task.h && y.size(3) == task.w;
  STD_TORCH_CHECK(same, "winograd3x3: expected x and y of the same size");
  STD_TORCH_CHECK(task.channels % 16 == 0 && task.filters % 16 == 0, "winograd3x3: expected multiples of 16 channels");
  check_float("transformed", transformed,
              transformed.is_contiguous() && transformed.numel() == transformed_size(task.filters, task.channels));
  task.x = static_cast<const float*>(x.const_data_ptr());
  task.transformed = static_cast<const float*>(transformed.const_data_ptr());
  task.y = static_cast<float*>(y.mutable_data_ptr());
  task.in_scale = vector_or_null("in_scale", in_scale, task.channels);
  task.in_shift = vector_or_null("in_shift", in_shift, task.channels);
  task.scale = vector_or_null("scale", scale, task.filters);
  task.shift = vector_or_null("shift", shift, task.filters);
  task.slope = vector_or_null("slope", slope, task.filters);

  // Tiles stay in the second cache, and a pass over the weight serves at least 32 of them.
  constexpr int64_t kCache = int64_t(1) << 20, kLeast = 32, kMost = 48;
  const int64_t tiles = task.n * ceil_div(task.h, kWinogradOut) * ceil_div(task.w, kWinogradOut);
  const int64_t fitting = kCache / (int64_t(sizeof(float)) * kWinogradProducts * (task.channels + task.filters));
  const int64_t each = ceil_div(tiles, std::max<int64_t>(torch::stable::get_num_threads(), 1));
  task.block = std::min(std::clamp(fitting, kLeast, kMost), each);
  parallel_for(kernels().winograd3x3, task, ceil_div(tiles, task.block), 1);
}

void winograd3x3_weight(const Tensor& weight, const Tensor& transformed) {
  check_float("weight", weight, weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.numel() > 0);
  WinogradWeightTask task = {};
  task.filters = weight.size(0), task.channels = weight.size(1);
  check_float("transformed", transformed,
              transformed.is_contiguous() && transformed.numel() == transformed_size(task.filters, task.channels));
  task.weight = static_cast<const float*>(weight.const_data_ptr());
  task.transformed = static_cast<float*>(transformed.mutable_data_ptr());
  task.stride_o = weight.stride(0), task.stride_i = weight.stride(1);
  task.stride_h = weight.stride(2), task.stride_w = weight.stride(3);
  parallel_for(kernels().winograd3x3_weight, task, winograd_panels(task.filters), 1);
}

}  // namespace

BoxedOp* const winograd3x3_boxed = TORCH_BOX(&winograd3x3);
BoxedOp* const winograd3x3_weight_boxed = TORCH_BOX(&winograd3x3_weight);

}  // namespace posgan_fast::cpu
