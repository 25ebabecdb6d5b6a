// What the CPU leaves of upfirdn2d and epilogue2d make of their tensors: checks of memory, the task of resampling.
#pragma once

#include <algorithm>
#include <vector>

#include "library.hpp"
#include "upfirdn2d_tensors.hpp"

namespace posgan_fast::cpu {

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
  const int64_t place = pivot - g.begin(), py = place / fw, px = place % fw;
  const double tolerance = (wide ? 1e-15 : 1e-7) * *pivot * *pivot;
  taps.separable = *pivot != 0;
  for (int ky = 0; ky < fh && taps.separable; ++ky) {
    for (int kx = 0; kx < fw; ++kx) {
      taps.separable &=
          std::abs(g[int64_t(ky) * fw + kx] * *pivot - g[int64_t(ky) * fw + px] * g[py * fw + kx]) <= tolerance;
    }
  }
  if (taps.separable) {
    for (int kx = 0; kx < fw; ++kx) taps.x.push_back(A(g[py * fw + kx] / *pivot));
    for (int ky = 0; ky < fh; ++ky) taps.y.push_back(A(g[int64_t(ky) * fw + px] * gain));
  } else {
    for (double value : g) taps.x.push_back(A(value * gain));
  }
  return taps;
}

inline std::vector<Phase> phases_of(const Axis& axis) {
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
inline Upfirdn2dTask task_of(const char* op, const Tensor& x, const std::optional<Tensor>& odd, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && x.size(0) == y.size(0) && x.size(1) == y.size(1) * (odd ? 2 : 1), op,
                  ": x and y must be [N, C, H, W] with equal N and C, twice C beside odd");
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), op, ": x and y must have one dtype");
  // A result of one pixel is dense in both formats; then the input decides.
  const bool one_pixel = y.size(2) == 1 && y.size(3) == 1;
  const bool channels_last = odd || channels_innermost(y) || (one_pixel && channels_innermost(x));
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
  task.stream = prepare_result(task.y, task.x, y.numel() * bytes_of(task.type));
  return task;
}

// The arguments of the filter.
inline void set_filter(const char* op, Upfirdn2dTask& task, const Tensor& f, int64_t upx, int64_t upy, int64_t downx,
                       int64_t downy, int64_t padx0, int64_t pady0, bool flip, double gain) {
  STD_TORCH_CHECK((f.dim() == 1 || f.dim() == 2) && f.numel() > 0 && f.is_contiguous(), op, ": f must be dense");
  STD_TORCH_CHECK(f.scalar_type() == ScalarType::Float || f.scalar_type() == ScalarType::Double, op,
                  ": f must be float32 or float64");
  Upfirdn2dParams& p = task.params;
  p.x = axis_of(op, "x", p.x.in, p.x.out, upx, downx, padx0, f.size(f.dim() - 1));
  p.y = axis_of(op, "y", p.y.in, p.y.out, upy, downy, pady0, f.size(0));
  p.flip = flip;
  p.gain = gain;
}

}  // namespace posgan_fast::cpu
