// Index arithmetic of prologue2d, shared by the CPU and CUDA kernels. No torch.
//
//   z[n, c, i, j] = (x[n, c, i, j] + e[c, i, j]) * styles[n, c] + residual[n, c, i, j]
//   y             = z, surrounded by zeros, by z reflected or by the ring of a map
//
// The encoding e is columns[k, j] in one half of its channels and rows[k, i] in the other. A concatenated one stands
// behind the channels of x, as if x were zero there.
#pragma once

#include "scalar.h"

namespace posgan_fast {

enum class Border : int { kZeros, kReflect, kInstance };

// One side of a ring in memory: its first pixel, and the way from one pixel to the next.
struct RingSide {
  int64_t offset, step;
};

// The ring around [H, W], wherever it is kept. The top and the bottom own the corners.
struct Ring {
  int64_t stride_n, stride_c;
  RingSide top, bottom, left, right;

  // Of the centre of a map [N, C, height, width]; half a pixel is rounded down.
  static Ring of_map(int64_t height, int64_t width, int64_t h, int64_t w, int64_t stride_n, int64_t stride_c,
                     int64_t stride_h, int64_t stride_w) {
    const int64_t first = (height - h - 2) / 2 * stride_h + (width - w - 2) / 2 * stride_w;
    return {stride_n,
            stride_c,
            {first, stride_w},
            {first + (h + 1) * stride_h, stride_w},
            {first + stride_h, stride_h},
            {first + stride_h + (w + 1) * stride_w, stride_h}};
  }

  // Of [N, C, 2 * (H + W) + 4]: the top, the bottom, the left, the right.
  static Ring compact(int64_t h, int64_t w, int64_t stride_n, int64_t stride_c, int64_t stride) {
    return {stride_n,
            stride_c,
            {0, stride},
            {(w + 2) * stride, stride},
            {2 * (w + 2) * stride, stride},
            {(2 * (w + 2) + h) * stride, stride}};
  }
};

// All strides in elements. y is dense, in NCHW or channels_last.
struct Prologue2dParams {
  struct Strides {
    int64_t n, c, h, w;
  };
  struct TableStrides {
    int64_t channel, place;
  };

  int64_t n, c, h, w;           // of x
  int64_t out_c, out_h, out_w;  // of y
  int64_t left, top;
  int64_t half;  // channels in either half of the encoding, 0 without one
  Border border;
  bool concat, height_first, channels_last;
  Strides x, residual;
  TableStrides columns, rows;
  Ring ring;
};

enum class Encoding : int { kNone, kColumns, kRows };

// What the encoding adds to a channel of y: channel k of one of its tables.
struct EncodedChannel {
  Encoding table;
  int64_t k;
};

PF_HD EncodedChannel encoded_channel(const Prologue2dParams& p, int64_t c) {
  const int64_t k = p.concat ? c - p.c : c;
  if (p.half == 0 || k < 0) return {Encoding::kNone, 0};
  const bool second = k >= p.half;
  return {second != p.height_first ? Encoding::kRows : Encoding::kColumns, second ? k - p.half : k};
}

// The row or column of z behind place o - pad of y; -1: none, the border is zero or on the ring.
PF_HD int64_t source_place(Border border, int64_t i, int64_t size) {
  if (i >= 0 && i < size) return i;
  if (border != Border::kReflect) return -1;
  return i < 0 ? -i : 2 * (size - 1) - i;
}

// Where the ring keeps a pixel of the border of y.
PF_HD int64_t ring_offset(const Ring& ring, int64_t oy, int64_t ox, int64_t h) {
  if (oy == 0) return ring.top.offset + ox * ring.top.step;
  if (oy == h + 1) return ring.bottom.offset + ox * ring.bottom.step;
  const RingSide& side = ox == 0 ? ring.left : ring.right;
  return side.offset + (oy - 1) * side.step;
}

}  // namespace posgan_fast
