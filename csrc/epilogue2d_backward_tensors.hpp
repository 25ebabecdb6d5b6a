// Checks the tensors of epilogue2d_backward and makes the parameters of its kernels, for the native ops of both
// libraries.
#pragma once

#include "epilogue2d_backward.h"
#include "tensors.hpp"

namespace posgan_fast {

struct Epilogue2dBackwardTensors {
  using Optional = std::optional<Tensor>;

  const Tensor& dy;
  const Optional &y, &x, &scale, &noise, &b, &dx, &channel_sums, &pixel_sums;

  Epilogue2dBackwardParams params(int64_t tile, int64_t act, double alpha, double gain, double clamp) const {
    STD_TORCH_CHECK(is_act(act), "epilogue2d_backward: expected act in 1..9, got ", act);
    STD_TORCH_CHECK(dy.dim() == 4, "epilogue2d_backward: expected dy of shape [N, C, H, W]");
    STD_TORCH_CHECK(tile > 0, "epilogue2d_backward: expected a tile of at least one pixel, got ", tile);
    const bool contiguous = dy.is_contiguous();
    STD_TORCH_CHECK(contiguous || is_channels_last(dy),
                    "epilogue2d_backward: expected dy dense, in NCHW or channels_last");
    for (const auto& [name, image] : {std::pair<const char*, const Optional&>{"y", y}, {"x", x}, {"dx", dx}}) {
      if (!image) continue;
      check_like("epilogue2d_backward", name, *image, dy);
      STD_TORCH_CHECK(same_layout(*image, dy), "epilogue2d_backward: expected ", name,
                      " with the sizes and strides of dy");
    }
    const int64_t n = dy.size(0), c = dy.size(1), pixels = dy.size(2) * dy.size(3), tiles = ceil_div(pixels, tile);
    const ScalarType acc = acc_dtype(dy.scalar_type());
    const bool shared_noise = noise && noise->dim() > 0 && noise->size(0) == 1;
    const bool products = channel_sums && channel_sums->dim() > 0 && channel_sums->size(0) == 2;
    check("scale", scale, acc, n * c);
    check("noise", noise, acc, (shared_noise ? 1 : n) * pixels);
    check("b", b, dy.scalar_type(), c);
    check("channel_sums", channel_sums, acc, (products ? 2 : 1) * n * tiles * c);
    check("pixel_sums", pixel_sums, acc, n * pixels);
    STD_TORCH_CHECK(!y || reads_output(Act(act), alpha), "epilogue2d_backward: expected no y for this act");
    STD_TORCH_CHECK(x || !(products || epilogue2d_reads_sum(Act(act), clamp, bool(y))),
                    "epilogue2d_backward: expected x for this act, or for the sums of products");
    return {n, c, pixels, shared_noise ? 0 : pixels, tile, tiles, !contiguous, products, alpha, gain, clamp};
  }

 private:
  void check(const char* name, const Optional& t, ScalarType dtype, int64_t numel) const {
    if (!t) return;
    check_device("epilogue2d_backward", name, *t, dy);
    STD_TORCH_CHECK(t->scalar_type() == dtype,
                    "epilogue2d_backward: expected b of the dtype of dy, factors and sums of dtype float32, or float64"
                    " for a float64 dy; ",
                    name, " is not");
    STD_TORCH_CHECK(t->is_contiguous() && t->numel() == numel, "epilogue2d_backward: expected a contiguous ", name,
                    " of ", numel, " elements, got ", t->numel());
  }
};

}  // namespace posgan_fast
