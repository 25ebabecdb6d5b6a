// Convolution with a 3x3 kernel by Winograd's algorithm, alone or with every second row and column. No torch.
//
//   Y = A^T [(G g G^T) * (B^T d B)] A      for a tile d of the input, of which the padding is part
//
// Along each axis a tile yields
//
//   plain  4 results, y[i] = w[0] x[i] + w[1] x[i + 1] + w[2] x[i + 2], of 6 products: F(4, 3)
//   down   4 results, y[i] = w[0] x[2i] + w[1] x[2i + 1] + w[2] x[2i + 2], of 9 products
//   up     8 results, y[2i] = w[2] x[i - 1] + w[0] x[i] and y[2i + 1] = w[1] x[i], of 9 products
//
// where the outer taps of the last two are F(4, 2), 5 products, and the middle one is a product for each input. So the
// 16 results of a tile take 36 products in place of 144, or 81 in place of 144 (down), and the 64 results of "up" 81 in
// place of 144.
//
// Source: "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).
#pragma once

#include "prologue2d.h"

namespace posgan_fast {

enum class WinogradForm : int { kPlain, kDown, kUp };

constexpr int kWinogradPanel = 32;  // filters that lie side by side
constexpr int kWinogradTaps = 36;   // transformed taps of a kernel, in every form

// The transformed weight is [36, panels, I, kWinogradPanel]; filters that fill up the last panel are zeros.
inline int64_t winograd_panels(int64_t filters) { return (filters + kWinogradPanel - 1) / kWinogradPanel; }

// The filters of a panel, without those that fill it up.
inline int64_t winograd_filters_of(int64_t panel, int64_t filters) {
  const int64_t left = filters - panel * kWinogradPanel;
  return left < kWinogradPanel ? left : kWinogradPanel;
}

// The CPU kernel transforms panels [begin, end) of a weight [O, I, 3, 3] of any strides.
struct WinogradWeightTask {
  WinogradForm form;
  const float* weight;
  float* transformed;
  float* squares;  // the sum of squares of each kernel, [I, O], or null
  int64_t filters, channels;
  int64_t stride_o, stride_i, stride_h, stride_w;
  bool nontemporal;  // store past the caches
};

// The CPU kernel computes the work items that no other thread has taken yet, each a block of tiles for a part of the
// filters: blocks differ in size, and cores in speed. Both images have their channels innermost and are float or
// BFloat16; everything else is float.
//
//   y = clamp(gain * prelu(conv(pad(in_scale * x + in_shift)) * scale + shift + noise, slope))
//
// A factor is a vector of one number for each channel of each sample, or null for none. Factors of one vector for all
// samples have the stride 0.
struct WinogradTask {
  struct Factor {
    const float* data;
    int64_t stride_n;
  };

  WinogradForm form;
  Border border;
  Ring ring;
  Dtype dtype;  // of x and y
  const void* x;
  const float* pad_map;
  const float* transformed;   // or null: each thread transforms the panels that it needs
  WinogradWeightTask weight;  // what it then transforms
  const float* squares;       // of a transformed weight, if the kernel demodulates
  bool demodulate;            // in place of `scale`: 1 / sqrt(sum of (weight * in_scale)^2 + eps)
  float eps;
  void* y;
  Factor in_scale, in_shift, scale, shift, slope;
  const float* noise;  // one number for each pixel, or null
  int64_t noise_stride_n;
  float alpha, gain, clamp;  // alpha: the slope where there is no vector of slopes
  int64_t n, h, w, channels, out_h, out_w, filters;
  int64_t padding;   // rows above and columns before the input
  int64_t blocks;    // of tiles
  int64_t splits;    // of the filters; work items of one split follow each other
  int64_t items;     // work items
  int64_t* next;     // the first of them that is not taken
  bool nontemporal;  // store float past the caches: y is too large to be found there again
};

// The CPU kernel computes the gradient of a weight for the work items that no other thread has taken yet, each a part
// of the channels and of the filters:
//
//   dW = G^T [sum over tiles of (B^T d B) * (A dY A^T)] G
struct WinogradGradientTask {
  WinogradForm form;
  const float *x, *dy;
  float* dw;  // dense, [O, I, 3, 3]
  int64_t n, h, w, channels, out_h, out_w, filters;
  int64_t padding;
  int64_t channel_part, filter_part;  // of a work item
  int64_t items;
  int64_t* next;  // the first of them that is not taken
};

// Tiles of one kind: those of each sample are `rows` x `columns` and begin at tile (top, left). Thin ones hold a single
// row or column of results.
struct WinogradTiles {
  int64_t top, left, rows, columns;
  bool thin_rows, thin_columns;
};

// The tiles of a task. The last row and column of the form "up" are thin where they begin behind the last input. Every
// block has its part of the tiles of each kind.
struct WinogradGrid {
  static constexpr int kKinds = 4;

  int64_t n, blocks;
  WinogradTiles kinds[kKinds];

  int64_t tiles(int kind) const { return n * kinds[kind].rows * kinds[kind].columns; }
  int64_t first_tile(int kind, int64_t block) const { return block * tiles(kind) / blocks; }

  // No block has more tiles than that.
  int64_t most_tiles() const {
    int64_t sum = 0;
    for (int kind = 0; kind < kKinds; ++kind) sum += ceil_div(tiles(kind), blocks);
    return sum;
  }
};

inline WinogradGrid winograd_grid(const WinogradTask& task) {
  const int64_t step = task.form == WinogradForm::kUp ? 8 : 4;
  const bool thin_row = task.form == WinogradForm::kUp && task.h % 4 == 0;
  const bool thin_column = task.form == WinogradForm::kUp && task.w % 4 == 0;
  const int64_t rows = ceil_div(task.out_h, step) - thin_row, columns = ceil_div(task.out_w, step) - thin_column;
  return {task.n,
          task.blocks,
          {{0, 0, rows, columns, false, false},
           {rows, 0, thin_row, columns, true, false},
           {0, columns, rows, thin_column, false, true},
           {rows, columns, thin_row, thin_column, true, true}}};
}

}  // namespace posgan_fast
