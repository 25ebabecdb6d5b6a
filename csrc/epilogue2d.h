// Formulas of epilogue2d, shared by the CPU and CUDA kernels. No torch.
//
//   y[n, c, h, w] = clamp(gain * act(z[n, c, h, w] * scale[n, c] + noise[n or 0, h, w] + b[c]))
//
// with z the result of a resampling or the input itself.
#pragma once

#include "bias_act.h"

namespace posgan_fast {

struct Epilogue2dParams {
  int64_t n, c, h, w;      // of the output
  int64_t noise_stride_n;  // elements; 0: one noise for all samples
  bool channels_last;
  double alpha, gain, clamp;
};

// What the activation is applied to.
template <typename A>
PF_HD A epilogue2d_sum(A z, A scale, A noise, A b) {
  return z * scale + noise + b;
}

template <Act kAct, typename Math, typename A>
PF_HD A epilogue2d_act(A v, A alpha, A gain, A clamp) {
  return bias_act_point<kAct, 0, false, Math, A>(v, A(0), A(0), A(0), alpha, gain, clamp);
}

}  // namespace posgan_fast
