// The native op modulated_factors of the CUDA library, which prepares the factors of modulated_conv2d.
#include "cuda_launch.hpp"
#include "modulated_conv2d.cuh"

namespace posgan_fast {
namespace {

constexpr int kFactorsThreads = 256;
constexpr int64_t kFactorsShared = 48 * 1024;  // a block gets so much without opting in

using Optional = std::optional<Tensor>;

// The tensors of one call. out is [O, I, kh, kw], [I, O, kh, kw] for a transposed convolution, or with fold
// [N * O, I, kh, kw], and dense in either memory format.
struct ModulatedFactorsTensors {
  const Tensor &weight, &styles;
  const Optional &bias, &noise, &strength;
  const Tensor& out;
  const Optional &cast_bias, &dcoefs, &scaled_styles, &scaled_noise;

  ModulatedFactorsParams params(double eps, bool fold, bool transposed, bool flip) const {
    STD_TORCH_CHECK(weight.is_cuda() && weight.dim() == 4 && weight.is_contiguous() && weight.numel() > 0,
                    "modulated_factors: expected a dense weight [O, I, kh, kw] on a CUDA device");
    const int64_t o = weight.size(0), i = weight.size(1), taps = weight.size(2) * weight.size(3);
    STD_TORCH_CHECK(styles.dim() == 2 && styles.size(0) > 0 && styles.size(1) == i && has_stride(styles, 1, 1),
                    "modulated_factors: expected styles [N, I] with dense rows");
    const int64_t n = styles.size(0), pixels = noise ? noise->numel() : 0;
    check_factors(n, o, i);
    STD_TORCH_CHECK(taps < (int64_t(1) << 31) && o + pixels / kNoiseOfBlock < (int64_t(1) << 31) - 1,
                    "modulated_factors: expected fewer than 2^31 taps and blocks");
    check_out(o * (fold && n > 1 ? n : 1), i, transposed);
    const int64_t filter = out.stride(transposed ? 1 : 0), channel = out.stride(transposed ? 0 : 1);
    const bool half = out.scalar_type() == ScalarType::Half;
    return {n,
            o,
            i,
            int(taps),
            stride_of(styles, 0, i),
            pixels,
            o * filter,
            filter,
            channel,
            out.size(3) > 1 ? out.stride(3) : out.stride(2),
            eps,
            fold,
            flip,
            half && bool(dcoefs)};
  }

 private:
  void check_factors(int64_t n, int64_t o, int64_t i) const {
    const ScalarType acc = acc_dtype(out.scalar_type());
    check_device("modulated_factors", "styles", styles, weight);
    STD_TORCH_CHECK(styles.scalar_type() == acc && weight.scalar_type() == acc,
                    "modulated_factors: expected weight and styles in the accumulation type of out");
    check("bias", bias, acc, o);
    check("cast_bias", cast_bias, out.scalar_type(), o);
    check("dcoefs", dcoefs, acc, n * o);
    check("scaled_styles", scaled_styles, acc, n * i);
    check("noise", noise, acc, noise ? noise->numel() : 0);
    check("strength", strength, acc, 1);
    check("scaled_noise", scaled_noise, acc, noise ? noise->numel() : 0);
    STD_TORCH_CHECK(bool(bias) == bool(cast_bias) && bool(noise) == bool(strength) && bool(noise) == bool(scaled_noise),
                    "modulated_factors: expected cast_bias beside bias, strength and scaled_noise beside noise");
  }

  void check(const char* name, const Optional& t, ScalarType dtype, int64_t numel) const {
    if (!t) return;
    check_device("modulated_factors", name, *t, weight);
    STD_TORCH_CHECK(t->scalar_type() == dtype && t->is_contiguous() && t->numel() == numel,
                    "modulated_factors: expected contiguous ", name, " of ", numel,
                    " elements; cast_bias in the dtype of out, others in its accumulation type");
  }

  void check_out(int64_t filters, int64_t channels, bool transposed) const {
    check_device("modulated_factors", "out", out, weight);
    STD_TORCH_CHECK(!transposed || filters == weight.size(0), "modulated_factors: expected one weight if transposed");
    const bool fits = out.dim() == 4 && out.size(0) == (transposed ? channels : filters) &&
                      out.size(1) == (transposed ? filters : channels) && out.size(2) == weight.size(2) &&
                      out.size(3) == weight.size(3);
    STD_TORCH_CHECK(fits && (out.is_contiguous() || is_channels_last(out)),
                    "modulated_factors: expected out dense, with the sizes of the weights");
  }
};

void modulated_factors(const Tensor& weight, const Tensor& styles, const Optional& bias, const Optional& noise,
                       const Optional& strength, const Tensor& out, const Optional& cast_bias, const Optional& dcoefs,
                       const Optional& scaled_styles, const Optional& scaled_noise, double eps, bool fold,
                       bool transposed, bool flip) {
  const ModulatedFactorsTensors tensors = {weight, styles,    bias,   noise,         strength,
                                           out,    cast_bias, dcoefs, scaled_styles, scaled_noise};
  const ModulatedFactorsParams p = tensors.params(eps, fold, transposed, flip);
  const CudaDeviceGuard device(weight.get_device_index());
  dispatch_dtype("modulated_factors", out.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const auto read = [](const Optional& t) { return static_cast<const A*>(data_or_null(t)); };
    const auto written = [](const Optional& t) { return t ? t->mutable_data_ptr() : nullptr; };
    const ModulatedFactorsPointers<T> pointers = {static_cast<const A*>(weight.const_data_ptr()),
                                                  static_cast<const A*>(styles.const_data_ptr()),
                                                  read(bias),
                                                  read(noise),
                                                  read(strength),
                                                  static_cast<T*>(out.mutable_data_ptr()),
                                                  static_cast<T*>(written(cast_bias)),
                                                  static_cast<A*>(written(dcoefs)),
                                                  static_cast<A*>(written(scaled_styles)),
                                                  static_cast<A*>(written(scaled_noise))};
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
