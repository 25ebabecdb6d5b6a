// Index arithmetic and parameters of upfirdn2d, shared by the CPU and CUDA kernels. No torch.
//
//   y[o] = gain * sum_k g[k] * u[o * down + k - pad0],   u[j] = x[j / up] if up divides j and x[j / up] exists, else 0
//
// per axis, with g the filter in correlation order (flipped when flip is false). The kernels are polyphase: they visit
// only the taps that meet a sample. Output o uses taps first_tap, first_tap + up, ... against consecutive inputs from
// first_in on.
#pragma once

#include "scalar.h"

namespace posgan_fast {

struct Axis {
  int64_t in, out;
  int up, down, pad0, taps;
};

struct Upfirdn2dParams {
  Axis x, y;
  int64_t n, c;
  int64_t in_stride_n, in_stride_c, in_stride_h, in_stride_w;      // elements
  int64_t out_stride_n, out_stride_c, out_stride_h, out_stride_w;  // elements
  bool channels_last;
  bool separable;  // f holds x.taps == y.taps values used on both axes, else y.taps * x.taps values
  bool flip;
  double gain;  // of the whole operation
};

struct Phase {
  int64_t first_in;  // may lie outside [0, in), where samples are zero
  int first_tap, taps;
};

PF_HD Phase phase_of(const Axis& a, int64_t o) {
  const int64_t base = o * a.down - a.pad0;           // first sample of u under the filter
  const int64_t first_in = -floor_div(-base, a.up);   // ceil(base / up)
  const int first_tap = int(first_in * a.up - base);  // in [0, up)
  const int taps = first_tap < a.taps ? (a.taps - first_tap + a.up - 1) / a.up : 0;
  return {first_in, first_tap, taps};
}

// The place in f of tap k in correlation order.
PF_HD int tap_index(int k, int taps, bool flip) { return flip ? k : taps - 1 - k; }

// The CPU kernel computes the output rows [begin, end) of all planes, where a plane is one channel of one image in
// NCHW, one image in channels_last.
struct Upfirdn2dTask {
  Upfirdn2dParams params;
  Dtype dtype;
  const void* x;
  const void* odd_rows = nullptr;  // the odd rows of the input where x holds the even ones only
  int64_t odd_rows_stride_n = 0, odd_rows_stride_h = 0;
  // Taps in the accumulation type and correlation order, gain included. fy is null unless the filter is separable.
  const void *fx = nullptr, *fy = nullptr;
  // The phases of all output columns and rows, tabulated because divisions cost more than short rows do.
  const Phase *column_phases = nullptr, *row_phases = nullptr;
  void* y;
  bool nontemporal;  // store past the caches: the result is too large to be found there again
};

}  // namespace posgan_fast
