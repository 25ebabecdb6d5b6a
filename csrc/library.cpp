// The CPU leaves behind LibTorch's stable ABI: guards memory, prepares the task, picks the instruction set, spreads the
// work over torch's threads. No Python, no autograd, no policy; works with every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu_kernels.h"
#include "prologue2d_tensors.hpp"

namespace {

using namespace posgan_fast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(__x86_64__) || defined(_M_X64)
#define PF_X86 1
#endif

struct Kernels {
  decltype(&baseline::upfirdn2d) upfirdn2d;
  decltype(&baseline::bias_act) bias_act;
  decltype(&baseline::prologue2d) prologue2d;
  decltype(&baseline::epilogue2d) epilogue2d;
  decltype(&baseline::modulated_weight) modulated_weight;
  const char* name;
};

#define PF_KERNELS(isa) \
  (Kernels{isa::upfirdn2d, isa::bias_act, isa::prologue2d, isa::epilogue2d, isa::modulated_weight, #isa})

const Kernels& kernels() {
  static const Kernels chosen = [] {
#ifdef PF_X86
    // POSGAN_FAST_ISA asks for a narrower set, for tests and for comparing results across machines.
    const char* wish = std::getenv("POSGAN_FAST_ISA");
    const std::string cap = wish != nullptr ? wish : "avx512";
    STD_TORCH_CHECK(cap == "avx512" || cap == "avx2" || cap == "baseline",
                    "POSGAN_FAST_ISA: expected avx512, avx2 or baseline, got ", cap);
    const bool fused =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (cap == "avx512" && fused && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return PF_KERNELS(avx512);
    }
    if (cap != "baseline" && fused) return PF_KERNELS(avx2);
#endif
    return PF_KERNELS(baseline);
  }();
  return chosen;
}

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Double:
      return Type::kDouble;
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

int64_t bytes_of(Type type) { return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2; }

// Bytes from which a result is worth huge pages, and too much to be found in a cache near the core again.
constexpr int64_t kLarge = int64_t(4) << 20;

// A large result is a fresh mapping: with huge pages its first touch costs one fault in 512.
void prefer_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes < kLarge) return;
  const uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <typename Task>
void spread(void (*kernel)(const Task&, int64_t, int64_t), const Task& task, int64_t items, int64_t grain) {
  torch::stable::parallel_for(0, items, std::max<int64_t>(grain, 1),
                              [&](int64_t begin, int64_t end) { kernel(task, begin, end); });
}

// Taps in correlation order as A. A rank-1 filter, or a 2-D one that is an outer product to within rounding, goes to
// one vector per axis.
template <typename A>
struct Taps {
  std::vector<A> x, y;
  bool separable;
};

template <typename A>
Taps<A> taps_of(const Tensor& f, bool flip, double gain) {
  const bool wide = f.scalar_type() == ScalarType::Double;
  const void* data = f.const_data_ptr();
  const int fw = int(f.size(f.dim() - 1)), fh = int(f.size(0));
  auto at = [&](int64_t i) { return wide ? static_cast<const double*>(data)[i] : static_cast<const float*>(data)[i]; };
  Taps<A> taps;
  if (f.dim() == 1) {
    taps.separable = true;
    for (int k = 0; k < fw; ++k) {
      const double value = at(tap_index(k, fw, flip));
      taps.x.push_back(A(value));
      taps.y.push_back(A(value * gain));
    }
    return taps;
  }
  std::vector<double> g;
  for (int ky = 0; ky < fh; ++ky) {
    for (int kx = 0; kx < fw; ++kx) g.push_back(at(int64_t(tap_index(ky, fh, flip)) * fw + tap_index(kx, fw, flip)));
  }
  const auto pivot = std::max_element(g.begin(), g.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
  const int py = int(pivot - g.begin()) / fw, px = int(pivot - g.begin()) % fw;
  const double tolerance = (wide ? 1e-15 : 1e-7) * *pivot * *pivot;
  taps.separable = *pivot != 0;
  for (int ky = 0; ky < fh && taps.separable; ++ky) {
    for (int kx = 0; kx < fw; ++kx) {
      taps.separable &= std::abs(g[ky * fw + kx] * *pivot - g[ky * fw + px] * g[py * fw + kx]) <= tolerance;
    }
  }
  if (taps.separable) {
    for (int kx = 0; kx < fw; ++kx) taps.x.push_back(A(g[py * fw + kx] / *pivot));
    for (int ky = 0; ky < fh; ++ky) taps.y.push_back(A(g[ky * fw + px] * gain));
  } else {
    for (double value : g) taps.x.push_back(A(value * gain));
  }
  return taps;
}

std::vector<Phase> phases_of(const Axis& axis) {
  std::vector<Phase> phases;
  phases.reserve(size_t(axis.out));
  for (int64_t o = 0; o < axis.out; ++o) phases.push_back(phase_of(axis, o));
  return phases;
}

// Completes the part of a task that says how to resample, and runs it.
template <typename A, typename Task>
void resample(void (*kernel)(const Task&, int64_t, int64_t), const Task& task, Upfirdn2dTask& fir, const Tensor& f) {
  const Taps<A> taps = taps_of<A>(f, fir.params.flip, fir.params.gain);
  fir.params.separable = taps.separable;
  fir.fx = taps.x.data();
  fir.fy = taps.separable ? taps.y.data() : nullptr;
  const Upfirdn2dParams& p = fir.params;
  const std::vector<Phase> columns = phases_of(p.x), rows = phases_of(p.y);
  fir.columns = columns.data();
  fir.rows = rows.data();
  const int64_t items = p.n * p.y.out * (p.channels_last ? 1 : p.c);
  // A row costs about as much as 128 values of it; a thread is worth waking for a thousand short rows.
  const int64_t cost = (128 + p.x.out * (p.channels_last ? p.c : 1)) * (taps.separable ? 1 : p.y.taps);
  spread(kernel, task, items, (int64_t(1) << 17) / cost);
}

// Memory of input and output, checked; of the filter, set_filter.
Upfirdn2dTask task_of(const char* op, const Tensor& x, const std::optional<Tensor>& odd, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && x.size(0) == y.size(0) && x.size(1) == y.size(1) * (odd ? 2 : 1), op,
                  ": x and y must be [N, C, H, W] with equal N and C, twice C beside odd");
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), op, ": x and y must have one dtype");
  auto pixels_of_channels = [](const Tensor& t) { return t.size(1) > 1 && t.stride(1) == 1 && !t.is_contiguous(); };
  // A result of one pixel is dense in both formats; then the input decides.
  const bool one_pixel = y.size(2) == 1 && y.size(3) == 1;
  const bool channels_last = odd || pixels_of_channels(y) || (one_pixel && pixels_of_channels(x));
  auto unit = [&](const Tensor& t) {
    const int64_t pixel = channels_last ? t.size(1) : 1;
    return (pixel == 1 || t.stride(1) == 1) && (t.size(3) == 1 || t.stride(3) == pixel);
  };
  STD_TORCH_CHECK(unit(x) && unit(y), op, ": rows of x and y must be dense in one memory format");
  Upfirdn2dTask task;
  task.type = type_of(x);
  task.x = x.const_data_ptr();
  task.y = y.mutable_data_ptr();
  task.fx = task.fy = nullptr;
  task.params = {};
  Upfirdn2dParams& p = task.params;
  p.x.in = x.size(3);
  p.y.in = x.size(2);
  p.x.out = y.size(3);
  p.y.out = y.size(2);
  p.n = y.size(0);
  p.c = y.size(1);
  p.in_stride_n = x.stride(0);
  p.in_stride_c = x.stride(1);
  p.in_stride_h = x.stride(2);
  p.in_stride_w = x.stride(3);
  p.out_stride_n = y.stride(0);
  p.out_stride_c = y.stride(1);
  p.out_stride_h = y.stride(2);
  p.out_stride_w = y.stride(3);
  p.channels_last = channels_last;
  if (odd) {
    STD_TORCH_CHECK(odd->dim() == 4 && odd->size(0) == x.size(0) && odd->size(1) == x.size(1) &&
                        odd->size(2) == x.size(2) - 1 && odd->size(3) == x.size(3),
                    op, ": odd must be of the size of x but for one row less");
    STD_TORCH_CHECK(odd->scalar_type() == x.scalar_type() && (odd->numel() == 0 || unit(*odd)), op,
                    ": odd must be of the dtype of x, its rows dense in its memory format");
    p.x.in = 2 * x.size(3);
    p.y.in = 2 * x.size(2) - 1;
    p.in_stride_w = p.c;
    if (odd->numel() > 0) {
      task.odd = odd->const_data_ptr();
      task.odd_stride_n = odd->stride(0);
      task.odd_stride_h = odd->stride(2);
    }
  }
  const int64_t bytes = y.numel() * bytes_of(task.type);
  task.stream = bytes >= kLarge;
  if (task.y != task.x) prefer_huge_pages(task.y, bytes);
  return task;
}

// The arguments of the filter.
void set_filter(const char* op, Upfirdn2dTask& task, const Tensor& f, int64_t upx, int64_t upy, int64_t downx,
                int64_t downy, int64_t padx0, int64_t pady0, bool flip, double gain) {
  STD_TORCH_CHECK((f.dim() == 1 || f.dim() == 2) && f.numel() > 0 && f.is_contiguous(), op, ": f must be dense");
  STD_TORCH_CHECK(f.scalar_type() == ScalarType::Float || f.scalar_type() == ScalarType::Double, op,
                  ": f must be float32 or float64");
  STD_TORCH_CHECK(upx >= 1 && upy >= 1 && downx >= 1 && downy >= 1, op, ": factors must be at least 1");
  Upfirdn2dParams& p = task.params;
  p.x = {p.x.in, p.x.out, int(upx), int(downx), int(padx0), int(f.size(f.dim() - 1))};
  p.y = {p.y.in, p.y.out, int(upy), int(downy), int(pady0), int(f.size(0))};
  p.flip = flip;
  p.gain = gain;
}

void upfirdn2d(const Tensor& x, const Tensor& f, const Tensor& y, int64_t upx, int64_t upy, int64_t downx,
               int64_t downy, int64_t padx0, int64_t pady0, bool flip, double gain) {
  Upfirdn2dTask task = task_of("upfirdn2d", x, std::nullopt, y);
  set_filter("upfirdn2d", task, f, upx, upy, downx, downy, padx0, pady0, flip, gain);
  const auto run = task.type == Type::kDouble ? &resample<double, Upfirdn2dTask> : &resample<float, Upfirdn2dTask>;
  run(kernels().upfirdn2d, task, task, f);
}

// With odd, x [N, 2C, R, P] holds the even rows of the filter's input and odd [N, 2C, R - 1, P] the odd ones, both in
// channels_last: value c of pixel 2p + q of a row is channel q * C + c of its pixel p.
void epilogue2d(const Tensor& x, const std::optional<Tensor>& odd, const std::optional<Tensor>& f,
                const std::optional<Tensor>& scale, const std::optional<Tensor>& noise, const std::optional<Tensor>& b,
                const Tensor& y, int64_t upx, int64_t upy, int64_t downx, int64_t downy, int64_t padx0, int64_t pady0,
                bool flip, double filter_gain, int64_t act, double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(act >= 1 && act <= 9, "epilogue2d: act must be 1..9");
  STD_TORCH_CHECK(f || !odd, "epilogue2d: odd needs f");
  if (y.numel() == 0) return;
  Epilogue2dTask task;
  task.fir = task_of("epilogue2d", x, odd, y);
  Upfirdn2dParams& p = task.fir.params;
  const int64_t n = y.size(0), c = y.size(1), h = y.size(2), w = y.size(3);
  const ScalarType arithmetic = task.fir.type == Type::kDouble ? ScalarType::Double : ScalarType::Float;
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
  const int64_t items =
      n * (p.channels_last ? 1 : c) * (h * w / task.line) * ((task.line + task.segment - 1) / task.segment);
  spread(kernels().epilogue2d, task, items, (int64_t(1) << 15) / (std::min(task.line, task.segment) * pixel));
}

void bias_act(const Tensor& x, const std::optional<Tensor>& b, const std::optional<Tensor>& ref,
              const std::optional<Tensor>& dy, const Tensor& out, int64_t step, int64_t order, int64_t act,
              double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(order >= 0 && order <= 2 && act >= 1 && act <= 9, "bias_act: order must be 0..2 and act 1..9");
  STD_TORCH_CHECK(order < 1 || ref.has_value(), "bias_act: order 1 and 2 need ref");
  STD_TORCH_CHECK(order < 2 || dy.has_value(), "bias_act: order 2 needs dy");
  STD_TORCH_CHECK(step >= 1, "bias_act: step must be at least 1");
  auto matches = [&](const Tensor& t) { return t.numel() == x.numel() && t.scalar_type() == x.scalar_type(); };
  STD_TORCH_CHECK(matches(out) && (!ref || matches(*ref)) && (!dy || matches(*dy)),
                  "bias_act: all tensors must have the size and dtype of x");
  STD_TORCH_CHECK(!b || (b->scalar_type() == x.scalar_type() && b->is_contiguous() && b->numel() > 0),
                  "bias_act: b must be dense and of the dtype of x");
  BiasActTask task;
  task.type = type_of(x);
  task.params = {x.numel(), step, b ? b->numel() : 0, alpha, gain, clamp};
  task.act = Act(act);
  task.order = int(order);
  task.x = x.const_data_ptr();
  task.b = b ? b->const_data_ptr() : nullptr;
  task.ref = order > 0 ? ref->const_data_ptr() : task.x;
  task.dy = order > 1 ? dy->const_data_ptr() : task.x;
  task.out = out.mutable_data_ptr();
  const int64_t bytes = x.numel() * bytes_of(task.type);
  task.stream = bytes >= kLarge;
  if (task.out != task.x) prefer_huge_pages(task.out, bytes);
  spread(kernels().bias_act, task, x.numel(), int64_t(1) << 15);
}

// out is [O, I, kh, kw] or [I, O, kh, kw] for a transposed convolution, or with odd the kernel of the even rows
// (modulated_conv2d.h); always with its second dimension innermost.
void modulated_weight(const Tensor& weight, const Tensor& styles, const std::optional<Tensor>& scale, const Tensor& out,
                      const std::optional<Tensor>& odd, double eps, bool fold, bool transposed, bool flip) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && weight.numel() > 0,
                  "modulated_weight: weight must be dense");
  const int64_t filters = weight.size(0), channels = weight.size(1), height = weight.size(2), width = weight.size(3);
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
    STD_TORCH_CHECK(fits && (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) &&
                        (h == 1 || t.stride(2) == w * c) && (n == 1 || t.stride(0) == h * w * c),
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
  const int64_t groups = (filters + kFilterGroup - 1) / kFilterGroup;
  spread(kernels().modulated_weight, task, groups, (int64_t(1) << 14) / (kFilterGroup * channels * taps));
}

void prologue2d(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& styles,
                const std::optional<Tensor>& border, const std::optional<Tensor>& columns,
                const std::optional<Tensor>& rows, const Tensor& y, int64_t left, int64_t top, int64_t mode,
                bool concat, bool height_first) {
  using Tensors = Prologue2dTensors;
  Prologue2dTask task;
  task.params = Tensors{x, residual, styles, border, columns, rows, y}.params(left, top, mode, concat, height_first);
  task.type = type_of(x);
  task.x = x.const_data_ptr();
  task.residual = Tensors::data(residual);
  task.border = Tensors::data(border);
  task.styles = Tensors::data(styles);
  task.columns = Tensors::data(columns);
  task.rows = Tensors::data(rows);
  task.y = y.mutable_data_ptr();
  const int64_t bytes = y.numel() * bytes_of(task.type);
  task.stream = bytes >= kLarge;
  prefer_huge_pages(task.y, bytes);
  const Prologue2dParams& p = task.params;
  const int64_t length = p.out_w * (p.channels_last ? p.out_c : 1);
  // A row costs about as much as 32 values of it.
  if (length > 0) spread(kernels().prologue2d, task, y.numel() / length, (int64_t(1) << 15) / (32 + length));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CPU, m) {
  m.impl("upfirdn2d", TORCH_BOX(&upfirdn2d));
  m.impl("bias_act", TORCH_BOX(&bias_act));
  m.impl("modulated_weight", TORCH_BOX(&modulated_weight));
  m.impl("prologue2d", TORCH_BOX(&prologue2d));
  m.impl("epilogue2d", TORCH_BOX(&epilogue2d));
}

extern "C" __attribute__((visibility("default"))) const char* posgan_fast_instruction_set() { return kernels().name; }
