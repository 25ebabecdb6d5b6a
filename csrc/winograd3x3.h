// Convolution with a 3x3 kernel by Winograd's algorithm F(4x4, 3x3): 36 products for 16 results in place of 144. No
// torch.
//
//   Y = A^T [(G g G^T) * (B^T d B)] A      for a tile d of 6 x 6 inputs, of which the padding is zeros
//
// with the points 0, 1, -1, 2, -2 and infinity. Source: "Fast Algorithms for Convolutional Neural Networks" (CVPR
// 2016).
#pragma once

#include "scalar.h"

namespace posgan_fast {

constexpr int kWinogradOut = 4, kWinogradIn = 6, kWinogradProducts = 36;  // sides of a tile, and products of each
constexpr int kWinogradPanel = 32;                                        // filters that lie side by side

// The transformed weight is [36, panels, I, kWinogradPanel]; filters that fill up the last panel are zeros.
inline int64_t winograd_panels(int64_t filters) { return (filters + kWinogradPanel - 1) / kWinogradPanel; }

// The CPU kernel transforms panels [begin, end) of a weight [O, I, 3, 3] of any strides.
struct WinogradWeightTask {
  const float* weight;
  float* transformed;
  int64_t filters, channels;
  int64_t stride_o, stride_i, stride_h, stride_w;
};

// The CPU kernel computes blocks [begin, end) of `block` tiles of y, both images with their channels innermost:
//
//   y = prelu(conv(in_scale * x + in_shift) * scale + shift)
//
// Each factor is a vector of one number for each channel, or null for none.
struct WinogradTask {
  const float *x, *transformed;
  float* y;
  const float *in_scale, *in_shift, *scale, *shift, *slope;
  int64_t n, h, w, channels, filters;
  int64_t block;  // tiles
};

}  // namespace posgan_fast
