// The native ops of the CUDA library that prepare the factors of modulated_conv2d and compute their gradients.
#include <array>

#include "cuda_launch.hpp"
#include "modulated_conv2d.cuh"
#include "modulated_factors_backward.cuh"

namespace posgan_fast {
namespace {

constexpr int kFactorsThreads = 256;
constexpr int64_t kFactorsShared = 48 * 1024;  // a block gets so much without opting in

using Optional = std::optional<Tensor>;

void check_values(const char* op, const char* name, const Tensor& t, const Tensor& weight, ScalarType dtype,
                  int64_t numel) {
  check_device(op, name, t, weight);
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous() && t.numel() == numel, op, ": expected contiguous ",
                  name, " of ", numel,
                  " elements; cast_bias in the dtype of the convolution's weight, others in its accumulation type");
}

void check_values(const char* op, const char* name, const Optional& t, const Tensor& weight, ScalarType dtype,
                  int64_t numel) {
  if (t) check_values(op, name, *t, weight, dtype, numel);
}

// The stored weight and the styles, and the convolution's weight or its gradient: `out` is [O, I, kh, kw], [I, O, kh,
// kw] for a transposed convolution, or with fold [N * O, I, kh, kw].
struct Modulation {
  const char* op;
  const Tensor &weight, &styles;
  int64_t n, o, i, taps;

  Modulation(const char* name, const Tensor& w, const Tensor& s, ScalarType acc) : op(name), weight(w), styles(s) {
    STD_TORCH_CHECK(w.is_cuda() && w.dim() == 4 && (w.is_contiguous() || is_channels_last(w)) && w.numel() > 0, op,
                    ": expected a dense weight [O, I, kh, kw] on a CUDA device");
    o = w.size(0), i = w.size(1), taps = w.size(2) * w.size(3);
    STD_TORCH_CHECK(s.dim() == 2 && s.size(0) > 0 && s.size(1) == i && has_stride(s, 1, 1), op,
                    ": expected styles [N, I] with dense rows");
    n = s.size(0);
    check_device(op, "styles", s, w);
    STD_TORCH_CHECK(s.scalar_type() == acc && w.scalar_type() == acc && taps < (int64_t(1) << 31), op,
                    ": expected weight and styles in the accumulation type, fewer than 2^31 taps");
  }

  int64_t style_sample() const { return stride_of(styles, 0, i); }
  int64_t weight_channel() const { return weight.is_contiguous() ? taps : 1; }
  int64_t weight_tap() const { return weight.is_contiguous() ? 1 : i; }

  // The strides of filter, channel and tap.
  std::array<int64_t, 3> strides(const Tensor& out, bool fold, bool transposed) const {
    check_device(op, "out", out, weight);
    const int64_t filters = o * (fold && n > 1 ? n : 1);
    STD_TORCH_CHECK(!transposed || filters == o, op, ": expected one weight if transposed");
    const bool fits = out.dim() == 4 && out.size(0) == (transposed ? i : filters) &&
                      out.size(1) == (transposed ? filters : i) && out.size(2) == weight.size(2) &&
                      out.size(3) == weight.size(3);
    STD_TORCH_CHECK(fits && (out.is_contiguous() || is_channels_last(out)), op,
                    ": expected out dense, with the sizes of the weights");
    return {out.stride(transposed ? 1 : 0), out.stride(transposed ? 0 : 1),
            out.size(3) > 1 ? out.stride(3) : out.stride(2)};
  }
};

// The tensors of one call of modulated_factors.
struct ModulatedFactorsTensors {
  const Tensor &weight, &styles;
  const Optional &bias, &noise, &strength;
  const Tensor& out;
  const Optional &cast_bias, &dcoefs, &scaled_styles, &scaled_noise, &divisors;

  ModulatedFactorsParams params(double eps, bool fold, bool transposed, bool flip) const {
    const Modulation m("modulated_factors", weight, styles, acc_dtype(out.scalar_type()));
    check(m);
    const int64_t pixels = noise ? noise->numel() : 0;
    STD_TORCH_CHECK(m.o + pixels / kNoiseOfBlock < (int64_t(1) << 31) - 1,
                    "modulated_factors: expected fewer than 2^31 blocks");
    const auto [filter, channel, tap] = m.strides(out, fold, transposed);
    const bool half = out.scalar_type() == ScalarType::Half;
    return {m.n,
            m.o,
            m.i,
            int(m.taps),
            m.style_sample(),
            m.weight_channel(),
            m.weight_tap(),
            pixels,
            m.o * filter,
            filter,
            channel,
            tap,
            eps,
            fold,
            flip,
            half && bool(dcoefs)};
  }

 private:
  void check(const Modulation& m) const {
    const ScalarType acc = acc_dtype(out.scalar_type());
    const int64_t pixels = noise ? noise->numel() : 0;
    check_values(m.op, "bias", bias, weight, acc, m.o);
    check_values(m.op, "cast_bias", cast_bias, weight, out.scalar_type(), m.o);
    check_values(m.op, "dcoefs", dcoefs, weight, acc, m.n * m.o);
    check_values(m.op, "scaled_styles", scaled_styles, weight, acc, m.n * m.i);
    check_values(m.op, "noise", noise, weight, acc, pixels);
    check_values(m.op, "strength", strength, weight, acc, 1);
    check_values(m.op, "scaled_noise", scaled_noise, weight, acc, pixels);
    check_values(m.op, "divisors", divisors, weight, acc, m.o + m.n);
    STD_TORCH_CHECK(bool(bias) == bool(cast_bias) && bool(noise) == bool(strength) && bool(noise) == bool(scaled_noise),
                    "modulated_factors: expected cast_bias beside bias, strength and scaled_noise beside noise");
  }
};

// Launches kernels whose shared memory needs no opting in.
auto within_shared(const char* op, const CudaDeviceGuard& device) {
  return [op, &device](dim3 grid, dim3 block, size_t bytes, const auto&... rest) {
    STD_TORCH_CHECK(int64_t(bytes) <= kFactorsShared, op, ": expected fewer channels and samples");
    device.launch(grid, block, bytes, rest...);
  };
}

void modulated_factors(const Tensor& weight, const Tensor& styles, const Optional& bias, const Optional& noise,
                       const Optional& strength, const Tensor& out, const Optional& cast_bias, const Optional& dcoefs,
                       const Optional& scaled_styles, const Optional& scaled_noise, const Optional& divisors,
                       double eps, bool fold, bool transposed, bool flip) {
  const ModulatedFactorsTensors tensors = {weight,    styles, bias,          noise,        strength, out,
                                           cast_bias, dcoefs, scaled_styles, scaled_noise, divisors};
  const ModulatedFactorsParams p = tensors.params(eps, fold, transposed, flip);
  const CudaDeviceGuard device(weight.get_device_index());
  dispatch_dtype("modulated_factors", out.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const auto read = [](const Optional& t) { return static_cast<const A*>(data_or_null(t)); };
    const auto written = [](const Optional& t) { return static_cast<A*>(writable_or_null(t)); };
    const ModulatedFactorsPointers<T> pointers = {static_cast<const A*>(weight.const_data_ptr()),
                                                  static_cast<const A*>(styles.const_data_ptr()),
                                                  read(bias),
                                                  read(noise),
                                                  read(strength),
                                                  static_cast<T*>(out.mutable_data_ptr()),
                                                  static_cast<T*>(writable_or_null(cast_bias)),
                                                  written(dcoefs),
                                                  written(scaled_styles),
                                                  written(scaled_noise),
                                                  written(divisors)};
    run_modulated_factors(pointers, p, kFactorsThreads, within_shared("modulated_factors", device));
  });
}

void modulated_factors_backward(const Tensor& weight, const Tensor& styles, const Tensor& dcoefs,
                                const Optional& divisors, const Tensor& d_dcoefs, const Optional& d_scaled,
                                const Optional& d_weight, const Optional& d_styles) {
  const char* const op = "modulated_factors_backward";
  const ScalarType acc = acc_dtype(weight.scalar_type());
  const Modulation m(op, weight, styles, acc);
  check_values(op, "dcoefs", dcoefs, weight, acc, m.n * m.o);
  check_values(op, "divisors", divisors, weight, acc, m.o + m.n);
  check_values(op, "d_dcoefs", d_dcoefs, weight, acc, m.n * m.o);
  check_values(op, "d_scaled_styles", d_scaled, weight, acc, m.n * m.i);
  if (d_weight) {
    check_like(op, "d_weight", *d_weight, weight);
    STD_TORCH_CHECK(same_layout(*d_weight, weight), op, ": expected d_weight with the sizes and strides of weight");
  }
  check_values(op, "d_styles", d_styles, weight, acc, m.n * m.i);
  if (!d_weight && !d_styles) return;
  const ModulatedFactorsBackwardParams p = {m.n,           m.o, m.i, int(m.taps), m.style_sample(), m.weight_channel(),
                                            m.weight_tap()};
  STD_TORCH_CHECK(modulated_factors_backward_blocks(p) < (int64_t(1) << 31), op, ": expected fewer channels");
  const CudaDeviceGuard device(weight.get_device_index());
  dispatch_dtype(op, acc, [&](auto scalar) {
    using A = acc_t<decltype(scalar)>;
    const auto read = [](const Optional& t) { return static_cast<const A*>(data_or_null(t)); };
    const auto written = [](const Optional& t) { return static_cast<A*>(writable_or_null(t)); };
    const ModulatedFactorsBackwardPointers<A> pointers = {read(weight),      read(styles),     read(dcoefs),
                                                          read(divisors),    read(d_dcoefs),   read(d_scaled),
                                                          written(d_weight), written(d_styles)};
    run_modulated_factors_backward(pointers, p, kFactorsThreads, within_shared(op, device));
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) {
  m.impl("modulated_factors", TORCH_BOX(&posgan_fast::modulated_factors));
  m.impl("modulated_factors_backward", TORCH_BOX(&posgan_fast::modulated_factors_backward));
}
