// upfirdn2d on CUDA: checks of memory, choice of kernel, launch.
#include "torch_launch.hpp"
#include "upfirdn2d.cuh"
#include "upfirdn2d_tensors.hpp"

namespace posgan_fast {
namespace {

// The stride of a dimension of one element means nothing, and torch may leave anything there.
int64_t stride_of(const Tensor& t, int dim, int64_t otherwise) { return t.size(dim) == 1 ? otherwise : t.stride(dim); }

void upfirdn2d(Tensor x, Tensor f, Tensor y, int64_t upx, int64_t upy, int64_t downx, int64_t downy, int64_t padx0,
               int64_t pady0, bool flip, double gain) {
  STD_TORCH_CHECK(x.is_cuda(), "upfirdn2d: expected x on a CUDA device");
  check_like("upfirdn2d", "y", y, x);
  check_on("upfirdn2d", "f", f, x);
  const ScalarType tap_type = arithmetic_type(x.scalar_type());
  STD_TORCH_CHECK(f.scalar_type() == tap_type, "upfirdn2d: expected f of dtype float32, or float64 for a float64 x");
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && x.size(0) == y.size(0) && x.size(1) == y.size(1),
                  "upfirdn2d: expected x and y of shape [N, C, H, W] with the same N and C");
  STD_TORCH_CHECK((f.dim() == 1 || f.dim() == 2) && f.is_contiguous(),
                  "upfirdn2d: expected a contiguous f of rank 1 or 2, got rank ", f.dim());
  if (y.numel() == 0) return;

  Upfirdn2dParams p;
  p.x = axis_of("upfirdn2d", "x", x.size(3), y.size(3), upx, downx, padx0, f.size(f.dim() - 1));
  p.y = axis_of("upfirdn2d", "y", x.size(2), y.size(2), upy, downy, pady0, f.size(0));
  p.n = x.size(0);
  p.c = x.size(1);
  p.channels_last = !y.is_contiguous();
  const int64_t pixel = p.channels_last ? p.c : 1;
  p.in_stride_n = stride_of(x, 0, 0);
  p.in_stride_c = stride_of(x, 1, 0);
  p.in_stride_h = stride_of(x, 2, 0);
  p.in_stride_w = stride_of(x, 3, pixel);
  p.out_stride_n = stride_of(y, 0, 0);
  p.out_stride_c = stride_of(y, 1, 0);
  p.out_stride_h = stride_of(y, 2, 0);
  p.out_stride_w = stride_of(y, 3, pixel);
  p.separable = f.dim() == 1;
  p.flip = flip;
  p.gain = gain;

  const OnDevice device(x.get_device_index());
  with_scalar("upfirdn2d", x.scalar_type(), [&](auto scalar) {
    using T = decltype(scalar);
    const T* const from = static_cast<const T*>(x.const_data_ptr());
    T* const to = static_cast<T*>(y.mutable_data_ptr());
    const auto* const taps = static_cast<const acc_t<T>*>(f.const_data_ptr());
    const Upfirdn2dKernel kernel = choose_kernel(from, to, p);
    run_upfirdn2d(from, taps, to, p, kernel, upfirdn2d_tiling(device.sm(), kernel, p), kMaxGridY,
                  [&](const auto&... launch) { device.launch(launch...); });
  });
}

}  // namespace
}  // namespace posgan_fast

STABLE_TORCH_LIBRARY_IMPL(posgan_fast_native, CUDA, m) { m.impl("upfirdn2d", TORCH_BOX(&posgan_fast::upfirdn2d)); }
