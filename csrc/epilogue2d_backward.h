// Formulas and parameters of epilogue2d_backward, shared by the CPU and CUDA kernels. No torch.
//
//   g    = dy * gain * act'(v) * inside        v = x * scale + noise + b; relu and lrelu can read off the result y
//   dx   = g * scale
//   channel_sums[0, n, t, c] = sum of g over the pixels of tile t
//   channel_sums[1, n, t, c] = sum of g * x over the same pixels
//   pixel_sums[n, p]         = sum of g over the channels
//
// x is the resampled input. All images are dense, in one layout. Sums run in the accumulation type, in an order that
// depends on the sizes alone.
#pragma once

#include "epilogue2d.h"

namespace posgan_fast {

struct Epilogue2dBackwardParams {
  int64_t n, c, pixels;
  int64_t noise_stride_n;  // elements; 0: all samples have the same noise
  int64_t tile, tiles;     // pixels of a tile; tiles of an image
  bool channels_last;
  bool products;  // channel_sums has the sums of g * x
  double alpha, gain, clamp;
};

// Whether the slope is read off v, which takes x, scale, noise and b. It is where y is not given.
PF_HD bool epilogue2d_reads_sum(Act act, double clamp, bool has_y) {
  return !has_y && (act != Act::kLinear || clamp >= 0);
}

// Calls body with act and whether the slope is read off y as std::integral_constants.
template <typename Body>
static inline void dispatch_epilogue2d_backward(Act act, bool has_y, const Body& body) {
  dispatch_act(act, [&](auto constant) {
    constexpr Act kAct = constant;
    if constexpr (kAct == Act::kRelu || kAct == Act::kLrelu) {
      if (has_y) return body(constant, std::true_type());
    }
    body(constant, std::false_type());
  });
}

// g for one element. ref is y or v.
template <Act kAct, bool kReadsOutput, typename Math, typename A>
PF_HD A epilogue2d_gradient(A dy, A ref, A alpha, A gain, A clamp) {
  return bias_act_element<kAct, 1, kReadsOutput, Math, A>(dy, A(0), ref, A(0), alpha, gain, clamp);
}

// The CPU kernel computes the tiles [begin, end) of all images.
struct Epilogue2dBackwardTask {
  Epilogue2dBackwardParams params;
  Dtype dtype;
  Act act;
  const void *dy, *y, *x, *b;  // null where there is none
  const void *scale, *noise;   // in the accumulation type
  void* dx;                    // null where nobody wants it
  void *channel_sums, *pixel_sums;
};

}  // namespace posgan_fast
