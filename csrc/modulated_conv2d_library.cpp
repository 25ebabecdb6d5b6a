// The weight of modulated_conv2d on the CPU: checks of memory, the task.
#include <vector>

#include "library.hpp"

namespace posgan_fast::cpu {
namespace {

// out is [O, I, kh, kw] or [I, O, kh, kw] for a transposed convolution, or with odd the kernel of the even rows
// (modulated_conv2d.h); always with its second dimension innermost.
void modulated_weight(const Tensor& weight, const Tensor& styles, const std::optional<Tensor>& scale, const Tensor& out,
                      const std::optional<Tensor>& odd, double eps, bool fold, bool transposed, bool flip) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && weight.numel() > 0,
                  "modulated_weight: weight must be dense");
  const int64_t filters = weight.size(0), channels = weight.size(1), height = weight.size(2), width = weight.size(3);
  STD_TORCH_CHECK(height * width < (int64_t(1) << 31), "modulated_weight: expected a kernel of fewer than 2^31 taps");
  const int taps = int(height * width);
  ModulatedWeightTask task = {};
  task.type = type_of(out);
  const Type arithmetic = task.type == Type::kDouble ? Type::kDouble : Type::kFloat;
  const bool typed = type_of(weight) == arithmetic && type_of(styles) == arithmetic &&
                     (!scale || type_of(*scale) == arithmetic) && (!odd || type_of(*odd) == task.type);
  STD_TORCH_CHECK(typed, "modulated_weight: weight, styles and scale must be of the arithmetic type");
  STD_TORCH_CHECK(styles.dim() == 2 && styles.size(1) == channels && styles.is_contiguous(),
                  "modulated_weight: styles must be [N, I]");
  STD_TORCH_CHECK(!scale || (scale->numel() == styles.size(0) * filters && scale->is_contiguous()),
                  "modulated_weight: scale must be [N, O]");
  STD_TORCH_CHECK(!fold || styles.size(0) == 1, "modulated_weight: only the styles of one sample go into a weight");
  auto check_dense = [&](const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w) {
    const bool fits = t.dim() == 4 && t.size(0) == n && t.size(1) == c && t.size(2) == h && t.size(3) == w;
    STD_TORCH_CHECK(fits && is_channels_last(t),
                    "modulated_weight: results must be dense, with the second dimension innermost");
  };
  std::vector<WeightPlace> places;
  auto place = [&](const Tensor& t, int tap, int64_t filter, int64_t position) {
    const int64_t stride = t.size(2) * t.size(3) * channels;
    const int64_t offset = (filter * stride + position * channels) * bytes_of(task.type);
    places.push_back({tap, static_cast<char*>(t.mutable_data_ptr()) + offset, stride});
  };
  if (odd) {
    STD_TORCH_CHECK(height == 3 && width == 3, "modulated_weight: phases need a 3x3 kernel");
    check_dense(out, 2 * filters, channels, 2, 2);
    check_dense(*odd, 2 * filters, channels, 1, 2);
    auto tap = [&](int r, int dy, int q, int dx) {
      const int ky = phase_tap(r, dy), kx = phase_tap(q, dx);
      return ky < 0 || kx < 0 ? -1 : tap_index(3 * ky + kx, taps, !flip);
    };
    for (int q = 0; q < 2; ++q) {
      for (int dx = 0; dx < 2; ++dx) {
        for (int dy = 0; dy < 2; ++dy) place(out, tap(0, dy, q, dx), q * filters, 2 * dy + dx);
        place(*odd, tap(1, 1, q, dx), q * filters, dx);
      }
    }
  } else if (transposed) {
    check_dense(out, channels, filters, height, width);
    task.transposed = out.mutable_data_ptr();
  } else {
    check_dense(out, filters, channels, height, width);
    for (int k = 0; k < taps; ++k) place(out, tap_index(k, taps, !flip), 0, k);
  }
  task.weight = weight.const_data_ptr();
  task.styles = styles.const_data_ptr();
  task.scale = scale ? scale->mutable_data_ptr() : nullptr;
  task.eps = eps;
  task.samples = styles.size(0);
  task.filters = filters;
  task.channels = channels;
  task.taps = taps;
  task.places = places.data();
  task.count = int64_t(places.size());
  task.fold = fold;
  task.flip = flip;
  spread(kernels().modulated_weight, task, ceil_div(filters, kFilterGroup),
         (int64_t(1) << 14) / (kFilterGroup * channels * taps));
}

}  // namespace

Leaf* const modulated_weight_leaf = TORCH_BOX(&modulated_weight);

}  // namespace posgan_fast::cpu
