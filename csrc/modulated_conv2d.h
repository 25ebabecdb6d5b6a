// What a CPU convolution asks of a modulated weight: where each tap of the stored kernel goes. No torch.
//
// A transposed convolution of stride 2 with a 3x3 kernel is two plain ones, of the even and of the odd output rows.
// Each has twice the output channels, those of the even and of the odd columns (q = 0, 1), and a kernel two taps wide:
//
//   t[2i + r, 2j + q] = sum over dy, dx of K_r[q][dy, dx] * x[i - 1 + dy, j - 1 + dx]
//   one axis, even:  K = (w[2], w[0])      odd:  K = (0, w[1])      the odd rows leave their zero tap out
#pragma once

#include "scalar.h"

namespace posgan_fast {

// The tap of a 3-tap kernel that lies at position d of the even or odd phase; -1: none.
PF_HD int phase_tap(int odd, int d) { return odd == 0 ? 2 - 2 * d : d == 0 ? -1 : 1; }

}  // namespace posgan_fast
