// Checks the tensors of bias_act and makes the parameters of its kernels, for the native ops of both libraries.
#pragma once

#include "bias_act.h"
#include "tensors.hpp"

namespace posgan_fast {

struct BiasActTensors {
  const Tensor& x;
  const std::optional<Tensor>&b, &ref, &dy;
  const Tensor& out;

  BiasActParams params(int64_t step, int64_t grad, int64_t act, double alpha, double gain, double clamp) const {
    STD_TORCH_CHECK(grad >= 0 && grad <= 2, "bias_act: expected grad 0, 1 or 2, got ", grad);
    STD_TORCH_CHECK(is_act(act), "bias_act: expected act in 1..9, got ", act);
    STD_TORCH_CHECK(ref.has_value() == (grad > 0) && dy.has_value() == (grad > 1),
                    "bias_act: expected ref from grad 1 on and dy at grad 2");
    STD_TORCH_CHECK(x.numel() == 0 || extent(x) == x.numel(), "bias_act: expected x dense and non-overlapping");
    check_layout("out", out);
    if (ref) check_layout("ref", *ref);
    if (dy) check_layout("dy", *dy);
    if (b) {
      check_like("bias_act", "b", *b, x);
      STD_TORCH_CHECK(b->dim() == 1 && b->is_contiguous() && b->numel() > 0,
                      "bias_act: expected a contiguous b of rank 1 with at least one element");
      STD_TORCH_CHECK(step >= 1, "bias_act: expected step >= 1, got ", step);
    }
    return {x.numel(), step, b ? b->numel() : 0, alpha, gain, clamp};
  }

 private:
  // Elements from the first to the last in memory, both included.
  static int64_t extent(const Tensor& t) {
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return last + 1;
  }

  void check_layout(const char* name, const Tensor& t) const {
    check_like("bias_act", name, t, x);
    STD_TORCH_CHECK(same_layout(t, x), "bias_act: expected ", name, " of the sizes and strides of x");
  }
};

}  // namespace posgan_fast
