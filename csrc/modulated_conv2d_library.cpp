// The native op modulated_weight of the CPU library, which prepares the weight of modulated_conv2d.
#include <vector>

#include "library.hpp"
#include "modulated_conv2d.h"
#include "upfirdn2d.h"

namespace posgan_fast::cpu {
namespace {

// The tensors of one call. out is [O, I, kh, kw], or [I, O, kh, kw] for a transposed convolution, or beside odd_rows
// the kernel of the even rows (modulated_conv2d.h). Results have their second dimension innermost.
struct ModulatedWeightTensors {
  const Tensor &weight, &styles;
  const std::optional<Tensor>& dcoefs;
  const Tensor& out;
  const std::optional<Tensor>& odd_rows;

  ModulatedWeightTask task(double eps, bool fold) const {
    STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && weight.numel() > 0,
                    "modulated_weight: expected a dense weight [O, I, kh, kw]");
    const int64_t filters = weight.size(0), channels = weight.size(1), taps = weight.size(2) * weight.size(3);
    STD_TORCH_CHECK(taps < (int64_t(1) << 31), "modulated_weight: expected a kernel of fewer than 2^31 taps");
    ModulatedWeightTask task = {};
    task.dtype = dtype_of(out);
    const Dtype acc = task.dtype == Dtype::kDouble ? Dtype::kDouble : Dtype::kFloat;
    const bool typed = dtype_of(weight) == acc && dtype_of(styles) == acc && (!dcoefs || dtype_of(*dcoefs) == acc) &&
                       (!odd_rows || dtype_of(*odd_rows) == task.dtype);
    STD_TORCH_CHECK(typed, "modulated_weight: expected weight, styles and dcoefs in the accumulation type of out");
    STD_TORCH_CHECK(styles.dim() == 2 && styles.size(1) == channels && styles.is_contiguous(),
                    "modulated_weight: expected dense styles [N, I]");
    STD_TORCH_CHECK(!dcoefs || (dcoefs->numel() == styles.size(0) * filters && dcoefs->is_contiguous()),
                    "modulated_weight: expected dense dcoefs [N, O]");
    STD_TORCH_CHECK(!fold || styles.size(0) == 1, "modulated_weight: only the styles of one sample go into a weight");
    task.weight = weight.const_data_ptr();
    task.styles = styles.const_data_ptr();
    task.dcoefs = dcoefs ? dcoefs->mutable_data_ptr() : nullptr;
    task.eps = eps;
    task.samples = styles.size(0), task.filters = filters, task.channels = channels, task.taps = taps;
    task.fold = fold;
    return task;
  }

  std::vector<TapDestination> plain(bool flip) const {
    check_result(out, weight.size(0), weight.size(1), weight.size(2), weight.size(3));
    const int taps = int(weight.size(2) * weight.size(3));
    std::vector<TapDestination> destinations;
    for (int k = 0; k < taps; ++k) destinations.push_back(destination(out, tap_index(k, taps, !flip), 0, k));
    return destinations;
  }

  std::vector<TapDestination> polyphase(bool flip) const {
    const int64_t filters = weight.size(0), channels = weight.size(1);
    STD_TORCH_CHECK(weight.size(2) == 3 && weight.size(3) == 3, "modulated_weight: expected a 3x3 kernel for odd_rows");
    check_result(out, 2 * filters, channels, 2, 2);
    check_result(*odd_rows, 2 * filters, channels, 1, 2);
    const auto tap = [&](int r, int dy, int q, int dx) {
      const int ky = polyphase_tap(r, dy), kx = polyphase_tap(q, dx);
      return ky < 0 || kx < 0 ? -1 : tap_index(3 * ky + kx, 9, !flip);
    };
    std::vector<TapDestination> destinations;
    for (int q = 0; q < 2; ++q) {
      for (int dx = 0; dx < 2; ++dx) {
        for (int dy = 0; dy < 2; ++dy) {
          destinations.push_back(destination(out, tap(0, dy, q, dx), q * filters, 2 * dy + dx));
        }
        destinations.push_back(destination(*odd_rows, tap(1, 1, q, dx), q * filters, dx));
      }
    }
    return destinations;
  }

  void* transposed() const {
    check_result(out, weight.size(1), weight.size(0), weight.size(2), weight.size(3));
    return out.mutable_data_ptr();
  }

 private:
  static void check_result(const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w) {
    const bool fits = t.dim() == 4 && t.size(0) == n && t.size(1) == c && t.size(2) == h && t.size(3) == w;
    STD_TORCH_CHECK(fits && is_channels_last(t),
                    "modulated_weight: expected dense results with the second dimension innermost");
  }

  // The tap goes to `position` in the kernels of t, those of the first filter to filter `filter` of t.
  TapDestination destination(const Tensor& t, int tap, int64_t filter, int64_t position) const {
    const int64_t channels = weight.size(1), stride = t.size(2) * t.size(3) * channels;
    const int64_t offset = (filter * stride + position * channels) * itemsize(dtype_of(t));
    return {tap, static_cast<char*>(t.mutable_data_ptr()) + offset, stride};
  }
};

void modulated_weight(const Tensor& weight, const Tensor& styles, const std::optional<Tensor>& dcoefs,
                      const Tensor& out, const std::optional<Tensor>& odd_rows, double eps, bool fold, bool transposed,
                      bool flip) {
  const ModulatedWeightTensors tensors = {weight, styles, dcoefs, out, odd_rows};
  ModulatedWeightTask task = tensors.task(eps, fold);
  std::vector<TapDestination> destinations;
  if (odd_rows) {
    destinations = tensors.polyphase(flip);
  } else if (transposed) {
    task.transposed = tensors.transposed();
    task.flip = flip;
  } else {
    destinations = tensors.plain(flip);
  }
  task.destinations = destinations.data();
  task.count = int64_t(destinations.size());
  parallel_for(kernels().modulated_weight, task, ceil_div(task.filters, kFilterGroup),
               (int64_t(1) << 14) / (kFilterGroup * task.channels * task.taps));
}

}  // namespace

BoxedOp* const modulated_weight_boxed = TORCH_BOX(&modulated_weight);

}  // namespace posgan_fast::cpu
