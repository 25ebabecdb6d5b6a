// The native op modulated_factors of the CUDA library, which prepares the factors of modulated_conv2d.
#include "cuda_launch.hpp"
#include "modulated_conv2d.cuh"

namespace posgan_fast {
namespace {

constexpr int kFactorsThreads = 256;
constexpr int64_t kFactorsShared = 48 * 1024;  // a block gets so much without opting in

// The tensors of one call. out is [O, I, kh, kw], [I, O, kh, kw] for a transposed convolution, or with fold
// [N * O, I, kh, kw], and dense in either memory format.
struct ModulatedFactorsTensors {
  const Tensor &weight, &styles, &out;
  const std::optional<Tensor>&dcoefs, &scaled_styles;

  ModulatedFactorsParams params(double eps, bool fold, bool transposed, bool flip) const {
    STD_TORCH_CHECK(weight.is_cuda() && weight.dim() == 4 && weight.is_contiguous() && weight.numel() > 0,
                    "modulated_factors: expected a dense weight [O, I, kh, kw] on a CUDA device");
    const int64_t o = weight.size(0), i = weight.size(1), taps = weight.size(2) * weight.size(3);
    STD_TORCH_CHECK(styles.dim() == 2 && styles.size(0) > 0 && styles.size(1) == i,
                    "modulated_factors: expected styles [N, I]");
    const int64_t n = styles.size(0);
    check_factor("styles", styles, n * i);
    if (dcoefs) check_factor("dcoefs", *dcoefs, n * o);
    if (scaled_styles) check_factor("scaled_styles", *scaled_styles, n * i);
    STD_TORCH_CHECK(taps < (int64_t(1) << 31) && o < (int64_t(1) << 31),
                    "modulated_factors: expected fewer than 2^31 taps and filters");
    check_out(o * (fold && n > 1 ? n : 1), i, transposed);
    const int64_t filter = out.stride(transposed ? 1 : 0), channel = out.stride(transposed ? 0 : 1);
    const bool half = out.scalar_type() == ScalarType::Half;
    return {n,          o,      i,       int(taps),
            o * filter, filter, channel, out.size(3) > 1 ? out.stride(3) : out.stride(2),
            eps,        fold,   flip,    half && bool(dcoefs)};
  }

 private:
  void check_factor(const char* name, const Tensor& t, int64_t numel) const {
    check_device("modulated_factors", name, t, weight);
    STD_TORCH_CHECK(t.scalar_type() == acc_dtype(out.scalar_type()) && t.is_contiguous() && t.numel() == numel,
                    "modulated_factors: expected contiguous ", name, " of ", numel,
                    " elements, in the accumulation type of out");
  }

  void check_out(int64_t filters, int64_t channels, bool transposed) const {
    check_device("modulated_factors", "out", out, weight);
    STD_TORCH_CHECK(weight.scalar_type() == acc_dtype(out.scalar_type()),
                    "modulated_factors: expected a weight in the accumulation type of out");
    STD_TORCH_CHECK(!transposed || filters == weight.size(0), "modulated_factors: expected one weight if transposed");
    const bool fits = out.dim() == 4 && out.size(0) == (transposed ? channels : filters) &&
                      out.size(1) == (transposed ? filters : channels) && out.size(2) == weight.size(2) &&
                      out.size(3) == weight.size(3);
    STD_TORCH_CHECK(fits && (out.is_contiguous() || is_channels_last(out)),
                    "modulated_factors: expected out dense, with the sizes of the weights");
  }
};

void modulated_factors(const Tensor& weight, const Tensor& styles, const Tensor& out,
                       const std::optional<Tensor>& dcoefs, const std::optional<Tensor>& scaled_styles, double eps,
                       bool fold, bool transposed, bool flip) {
  const ModulatedFactorsTensors tensors = {weight, styles, out, dcoefs, scaled_styles};
  const ModulatedFactorsParams p = tensors.params(eps, fold, transposed, flip);
  const CudaDeviceGuard device(weight.get_device_index());
  dispatch_dtype("modulated_factors", out.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const auto wide = [](const std::optional<Tensor>& t) {
      return t ? static_cast<A*>(t->mutable_data_ptr()) : nullptr;
    };
    const ModulatedFactorsPointers<T> pointers = {
        static_cast<const A*>(weight.const_data_ptr()), static_cast<const A*>(styles.const_data_ptr()),
        static_cast<T*>(out.mutable_data_ptr()), wide(dcoefs), wide(scaled_styles)};
    run_modulated_factors(pointers, p, kFactorsThreads, [&](dim3 grid, dim3 block, size_t bytes, const auto&... rest) {
      STD_TORCH_CHECK(int64_t(bytes) <= kFactorsShared, "modulated_factors: expected fewer channels and samples");
      device.launch(grid, block, bytes, rest...);
    });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) {
  m.impl("modulated_factors", TORCH_BOX(&posgan_fast::modulated_factors));
}
