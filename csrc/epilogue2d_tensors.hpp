// Checks the tensors behind the resampling of epilogue2d and makes the parameters of its kernels, for the native ops of
// both libraries.
#pragma once

#include "epilogue2d.h"
#include "tensors.hpp"

namespace posgan_fast {

struct Epilogue2dTensors {
  const Tensor& x;
  const std::optional<Tensor>&scale, &noise, &b, &post_scale;
  const Tensor& y;

  Epilogue2dParams params(bool channels_last, int64_t act, double alpha, double gain, double clamp) const {
    STD_TORCH_CHECK(is_act(act), "epilogue2d: expected act in 1..9, got ", act);
    const int64_t n = y.size(0), c = y.size(1), h = y.size(2), w = y.size(3);
    const ScalarType acc = acc_dtype(x.scalar_type());
    const bool shared_noise = noise && noise->dim() > 0 && noise->size(0) == 1;
    check("scale", scale, acc, n * c);
    check("noise", noise, acc, (shared_noise ? 1 : n) * h * w);
    check("b", b, x.scalar_type(), c);
    check("post_scale", post_scale, acc, n * c);
    return {n, c, h, w, shared_noise ? 0 : h * w, channels_last, alpha, gain, clamp};
  }

 private:
  void check(const char* name, const std::optional<Tensor>& t, ScalarType dtype, int64_t numel) const {
    if (!t) return;
    check_device("epilogue2d", name, *t, x);
    STD_TORCH_CHECK(t->scalar_type() == dtype,
                    "epilogue2d: expected b of the dtype of x, scale, noise and post_scale of dtype float32,"
                    " or float64 for a float64 x; ",
                    name, " is not");
    STD_TORCH_CHECK(t->is_contiguous() && t->numel() == numel, "epilogue2d: expected a contiguous ", name, " of ",
                    numel, " elements, got ", t->numel());
  }
};

}  // namespace posgan_fast
