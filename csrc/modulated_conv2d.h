// The weight of a modulated convolution as the CPU's vendor convolutions read it. No torch.
//
// A transposed convolution of stride 2 with a 3x3 kernel is computed in polyphase form, as two plain convolutions, one
// for the even and one for the odd output rows. Each has twice the output channels, those of the even and of the odd
// columns (q = 0, 1), and a kernel two taps wide:
//
//   t[2i + r, 2j + q] = sum over dy, dx of K_r[q][dy, dx] * x[i - 1 + dy, j - 1 + dx]
//   one axis, even:  K = (w[2], w[0])      odd:  K = (0, w[1])      the kernel of the odd rows omits its zero tap
#pragma once

#include "scalar.h"

namespace posgan_fast {

// The tap of a 3-tap kernel at position d of its even or odd phase; -1 for a zero.
PF_HD int polyphase_tap(int odd, int d) { return odd == 0 ? 2 - 2 * d : d == 0 ? -1 : 1; }

// The memory for one tap of all filters: channels side by side, filters `stride` elements apart. Tap -1 writes zeros.
struct TapDestination {
  int tap;
  void* data;
  int64_t stride;
};

constexpr int kFilterGroup = 16;

// The CPU kernel prepares groups [begin, end) of kFilterGroup filters [I, taps].
struct ModulatedWeightTask {
  Dtype dtype;                         // of the results; weight, styles and dcoefs are in its accumulation type
  const void *weight, *styles;         // styles [N, I]
  void* dcoefs;                        // demodulation coefficients [N, O], or null
  double eps;                          // of dcoefs
  int64_t samples, filters, channels;  // N, O, I
  int64_t taps;                        // kh * kw
  bool fold;                           // multiply the results by the styles of the single sample
  const TapDestination* destinations;  // for results whose filters have their channels side by side
  int64_t count;                       // of destinations
  void* transposed;                    // [I, taps, O] for a transposed convolution, or null
  bool flip;                           // reverse the taps of transposed
};

}  // namespace posgan_fast
