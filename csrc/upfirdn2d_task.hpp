// Makes and runs the CPU task of a resampling, for upfirdn2d and epilogue2d.
#pragma once

#include <algorithm>
#include <vector>

#include "library.hpp"
#include "upfirdn2d_tensors.hpp"

namespace posgan_fast::cpu {

// The task without its filter. With odd_rows, x [N, 2C, R, P] holds the even rows of the input and odd_rows
// [N, 2C, R - 1, P] the odd ones, both in channels_last: channel q * C + c of pixel p is channel c of input pixel 2p +
// q.
inline Upfirdn2dTask make_task(const Upfirdn2dTensors& tensors, const std::optional<Tensor>& odd_rows) {
  const char* const op = tensors.op;
  const Tensor &x = tensors.x, &y = tensors.y;
  // A result of one pixel is dense in both memory formats; then the input decides.
  const bool one_pixel = y.size(2) == 1 && y.size(3) == 1;
  const bool channels_last = odd_rows || channels_innermost(y) || (one_pixel && channels_innermost(x));
  const auto has_dense_rows = [&](const Tensor& t) {
    return channels_last ? has_stride(t, 1, 1) && has_stride(t, 3, t.size(1)) : has_stride(t, 3, 1);
  };
  Upfirdn2dTask task;
  task.params = tensors.params(channels_last, odd_rows ? 2 : 1);
  STD_TORCH_CHECK(has_dense_rows(x) && has_dense_rows(y), op, ": expected dense rows of x and y in one memory format");
  task.dtype = dtype_of(x);
  task.x = x.const_data_ptr();
  task.y = y.mutable_data_ptr();
  if (odd_rows) {
    check_like(op, "odd_rows", *odd_rows, x);
    STD_TORCH_CHECK(odd_rows->dim() == 4 && odd_rows->size(0) == x.size(0) && odd_rows->size(1) == x.size(1) &&
                        odd_rows->size(2) == x.size(2) - 1 && odd_rows->size(3) == x.size(3),
                    op, ": expected odd_rows of the size of x but for one row less");
    STD_TORCH_CHECK(odd_rows->numel() == 0 || has_dense_rows(*odd_rows), op,
                    ": expected dense rows of odd_rows in channels_last");
    Upfirdn2dParams& p = task.params;
    p.x.in = 2 * x.size(3);
    p.y.in = 2 * x.size(2) - 1;
    p.in_stride_w = p.c;
    if (odd_rows->numel() > 0) {
      task.odd_rows = odd_rows->const_data_ptr();
      task.odd_rows_stride_n = odd_rows->stride(0);
      task.odd_rows_stride_h = odd_rows->stride(2);
    }
  }
  task.nontemporal = prepare_result(task.y, task.x, y.numel() * itemsize(task.dtype));
  return task;
}

// Taps in correlation order. A filter of rank 1, or a 2-D one that is an outer product to within rounding, becomes one
// vector per axis.
template <typename A>
struct Taps {
  std::vector<A> x, y;
  bool separable;
};

// Takes g [fh, fw] apart if it is an outer product to within rounding: the row and the column of its largest tap.
template <typename A>
Taps<A> factor_taps(const std::vector<double>& g, int fh, int fw, double gain) {
  Taps<A> taps;
  const auto pivot = std::max_element(g.begin(), g.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
  const int64_t place = pivot - g.begin(), py = place / fw, px = place % fw;
  const double tolerance = (sizeof(A) == sizeof(double) ? 1e-15 : 1e-7) * *pivot * *pivot;
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

template <typename A>
Taps<A> make_taps(const Tensor& f, bool flip, double gain) {
  const A* const data = static_cast<const A*>(f.const_data_ptr());
  const int fw = int(f.size(f.dim() - 1)), fh = int(f.size(0));
  if (f.dim() == 1) {
    Taps<A> taps;
    taps.separable = true;
    for (int k = 0; k < fw; ++k) {
      const double value = data[tap_index(k, fw, flip)];
      taps.x.push_back(A(value));
      taps.y.push_back(A(value * gain));
    }
    return taps;
  }
  std::vector<double> g;
  for (int ky = 0; ky < fh; ++ky) {
    for (int kx = 0; kx < fw; ++kx) g.push_back(data[int64_t(tap_index(ky, fh, flip)) * fw + tap_index(kx, fw, flip)]);
  }
  return factor_taps<A>(g, fh, fw, gain);
}

inline std::vector<Phase> make_phases(const Axis& axis) {
  std::vector<Phase> phases;
  phases.reserve(size_t(axis.out));
  for (int64_t o = 0; o < axis.out; ++o) phases.push_back(phase_of(axis, o));
  return phases;
}

template <typename A, typename Task>
void run_resampling_as(void (*kernel)(const Task&, int64_t, int64_t), const Task& task, Upfirdn2dTask& fir,
                       const Tensor& f) {
  const Taps<A> taps = make_taps<A>(f, fir.params.flip, fir.params.gain);
  fir.params.separable = taps.separable;
  fir.fx = taps.x.data();
  fir.fy = taps.separable ? taps.y.data() : nullptr;
  const Upfirdn2dParams& p = fir.params;
  const std::vector<Phase> columns = make_phases(p.x), rows = make_phases(p.y);
  fir.column_phases = columns.data();
  fir.row_phases = rows.data();
  const int64_t items = p.n * p.y.out * (p.channels_last ? 1 : p.c);
  // A row costs about as much as 128 values of it; a thread is worth waking for a thousand short rows.
  const int64_t cost = (128 + p.x.out * (p.channels_last ? p.c : 1)) * (taps.separable ? 1 : p.y.taps);
  parallel_for(kernel, task, items, (int64_t(1) << 17) / cost);
}

// Completes fir, a part of the task or the task itself, by the taps and phases, and runs the kernel.
template <typename Task>
void run_resampling(void (*kernel)(const Task&, int64_t, int64_t), const Task& task, Upfirdn2dTask& fir,
                    const Tensor& f) {
  if (fir.dtype == Dtype::kDouble) return run_resampling_as<double>(kernel, task, fir, f);
  run_resampling_as<float>(kernel, task, fir, f);
}

}  // namespace posgan_fast::cpu
