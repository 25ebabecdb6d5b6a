// Formulas and parameters of epilogue2d, shared by the CPU and CUDA kernels. No torch.
//
//   y[n, c, h, w] = clamp(gain * act(z[n, c, h, w] * scale[n, c] + noise[n or 0, h, w] + b[c])) * post_scale[n, c]
//
// where z is the resampled input or the input itself, and post_scale, which CUDA alone has, the styles of the next
// layer.
#pragma once

#include "bias_act.h"
#include "upfirdn2d.h"

namespace posgan_fast {

struct Epilogue2dParams {
  int64_t n, c, h, w;      // of the output
  int64_t noise_stride_n;  // elements; 0: all samples have the same noise
  bool channels_last;
  double alpha, gain, clamp;
};

// The input of the activation.
template <typename A>
PF_HD A epilogue2d_sum(A z, A scale, A noise, A b) {
  return z * scale + noise + b;
}

template <Act kAct, typename Math, typename A>
PF_HD A epilogue2d_act(A v, A alpha, A gain, A clamp) {
  return bias_act_element<kAct, 0, false, Math, A>(v, A(0), A(0), A(0), alpha, gain, clamp);
}

// The CPU kernel computes the output rows [begin, end) as upfirdn2d does. Without a filter, fir.fx null, its work items
// are segments of lines: a line holds the pixels that lie side by side in x and in y, those of a plane or of a row.
struct Epilogue2dTask {
  Upfirdn2dTask fir;
  Epilogue2dParams params;
  Act act;
  const void *scale, *noise, *b;  // scale and noise in the accumulation type; null where there is none
  int64_t line, segment;          // pixels
};

}  // namespace posgan_fast
