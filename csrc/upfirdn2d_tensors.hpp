// Checks the tensors of a resampling and makes the parameters of its kernels, for the native ops of both libraries.
#pragma once

#include <algorithm>

#include "tensors.hpp"
#include "upfirdn2d.h"

namespace posgan_fast {

struct Upfirdn2dTensors {
  const char* op;
  const Tensor &x, &y;

  Upfirdn2dTensors(const char* op, const Tensor& x, const Tensor& y) : op(op), x(x), y(y) {
    check_like(op, "y", y, x);
    STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4, op, ": expected x and y of shape [N, C, H, W]");
  }

  // Sizes and strides. x has `parts` times the channels of y.
  Upfirdn2dParams params(bool channels_last, int64_t parts = 1) const {
    STD_TORCH_CHECK(x.size(0) == y.size(0) && x.size(1) == y.size(1) * parts, op,
                    ": expected x and y of shape [N, C, H, W] with the same N and C, twice C beside odd_rows");
    const int64_t pixel = channels_last ? y.size(1) : 1;
    Upfirdn2dParams p{};
    p.x.in = x.size(3), p.x.out = y.size(3);
    p.y.in = x.size(2), p.y.out = y.size(2);
    p.n = y.size(0), p.c = y.size(1);
    p.in_stride_n = stride_of(x, 0, 0), p.in_stride_c = stride_of(x, 1, 0);
    p.in_stride_h = stride_of(x, 2, 0), p.in_stride_w = stride_of(x, 3, pixel);
    p.out_stride_n = stride_of(y, 0, 0), p.out_stride_c = stride_of(y, 1, 0);
    p.out_stride_h = stride_of(y, 2, 0), p.out_stride_w = stride_of(y, 3, pixel);
    p.channels_last = channels_last;
    return p;
  }

  // Completes the parameters by the filter and the factors.
  void set_filter(Upfirdn2dParams& p, const Tensor& f, int64_t upx, int64_t upy, int64_t downx, int64_t downy,
                  int64_t padx0, int64_t pady0, bool flip, double gain) const {
    check_device(op, "f", f, x);
    STD_TORCH_CHECK(f.scalar_type() == acc_dtype(x.scalar_type()), op,
                    ": expected f of dtype float32, or float64 for a float64 x");
    STD_TORCH_CHECK((f.dim() == 1 || f.dim() == 2) && f.is_contiguous(), op,
                    ": expected a contiguous f of rank 1 or 2, got rank ", f.dim());
    p.x = make_axis("x", p.x.in, p.x.out, upx, downx, padx0, f.size(f.dim() - 1));
    p.y = make_axis("y", p.y.in, p.y.out, upy, downy, pady0, f.size(0));
    p.separable = f.dim() == 1;
    p.flip = flip;
    p.gain = gain;
  }

 private:
  // Checks that the numbers of an axis fit the 32 bits of the kernels.
  Axis make_axis(const char* name, int64_t in, int64_t out, int64_t up, int64_t down, int64_t pad0,
                 int64_t taps) const {
    constexpr int64_t kFactors = int64_t(1) << 24;  // the longest loop over outputs of a row takes 128 steps of it
    constexpr int64_t kLimit = int64_t(1) << 30;
    STD_TORCH_CHECK(up >= 1 && up < kFactors && down >= 1 && down < kFactors, op, ": expected up", name, " and down",
                    name, " in [1, 2^24), got ", up, " and ", down);
    // With more padding, or more cropped, windows still hold nothing but zeros, while the rows to buffer would grow.
    if (out > 0) pad0 = std::clamp(pad0, -in * up, (out - 1) * down + taps);
    STD_TORCH_CHECK(pad0 > -kLimit && pad0 < kLimit, op, ": expected |pad", name, "0| < 2^30, got ", pad0);
    STD_TORCH_CHECK(taps >= 1 && taps < kLimit, op, ": expected a filter of at least one tap, got ", taps);
    return {in, out, int(up), int(down), int(pad0), int(taps)};
  }
};

}  // namespace posgan_fast
