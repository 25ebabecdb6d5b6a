// Index arithmetic and parameters of prologue2d, shared by the CPU and CUDA kernels. No torch.
//
//   z[n, c, i, j] = (x[n, c, i, j] + e[c, i, j]) * styles[n, c] + residual[n, c, i, j]
//   y             = z, surrounded by zeros, by z reflected or by the ring of a map
//
// The encoding e is columns[k, j] in one half of its channels and rows[k, i] in the other. A concatenated encoding
// comes after the channels of x, and x counts as zero there.
#pragma once

#include "scalar.h"

namespace posgan_fast {

enum class Border : int { kZeros, kReflect, kInstance };

// One side of a ring in memory: the offset of its first pixel and the step from one pixel to the next.
struct RingSide {
  int64_t offset, step;

  PF_HD_MEMBER int64_t at(int64_t i) const { return offset + i * step; }
};

// The ring of width 1 around [H, W], part of a map or stored alone. The corners belong to the top and the bottom.
struct Ring {
  int64_t stride_n, stride_c;
  RingSide top, bottom, left, right;

  // Pixels of a ring that is stored alone.
  static int64_t size(int64_t h, int64_t w) { return 2 * (h + w) + 4; }

  // The ring in the centre of a map [N, C, height, width]; half a pixel is rounded down.
  static Ring in_map(int64_t height, int64_t width, int64_t h, int64_t w, int64_t stride_n, int64_t stride_c,
                     int64_t stride_h, int64_t stride_w) {
    const int64_t first = (height - h - 2) / 2 * stride_h + (width - w - 2) / 2 * stride_w;
    return {stride_n,
            stride_c,
            {first, stride_w},
            {first + (h + 1) * stride_h, stride_w},
            {first + stride_h, stride_h},
            {first + stride_h + (w + 1) * stride_w, stride_h}};
  }

  // The ring stored as [N, C, size]: the top, the bottom, the left, the right.
  static Ring stored_alone(int64_t h, int64_t w, int64_t stride_n, int64_t stride_c, int64_t stride) {
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
    int64_t channel, position;
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

// The encoding adds channel k of a table to a channel of y.
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

// The row or column of z that y repeats at i = o - pad. -1: none, because the border is zero or the ring.
PF_HD int64_t source_index(Border border, int64_t i, int64_t size) {
  if (i >= 0 && i < size) return i;
  if (border != Border::kReflect) return -1;
  return i < 0 ? -i : 2 * (size - 1) - i;
}

// The offset of a border pixel of y on the ring.
PF_HD int64_t ring_offset(const Ring& ring, int64_t oy, int64_t ox, int64_t h) {
  if (oy == 0) return ring.top.at(ox);
  if (oy == h + 1) return ring.bottom.at(ox);
  return (ox == 0 ? ring.left : ring.right).at(oy - 1);
}

// The CPU kernel computes the output rows [begin, end) of all planes, where a plane is one channel of one image in
// NCHW, one image in channels_last.
struct Prologue2dTask {
  Prologue2dParams params;
  Dtype dtype;
  const void *x, *residual, *border;
  const void *styles, *columns, *rows;  // in the accumulation type
  void* y;
  bool nontemporal;  // store past the caches: the result is too large to be found there again
};

}  // namespace posgan_fast
