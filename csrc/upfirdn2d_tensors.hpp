// Makes an Axis after checking that its numbers fit the kernels' 32 bits; for the leaves of both libraries.
#pragma once

#include <algorithm>

#include "tensors.hpp"
#include "upfirdn2d.h"

namespace posgan_fast {

inline Axis axis_of(const char* op, const char* name, int64_t in, int64_t out, int64_t up, int64_t down, int64_t pad0,
                    int64_t taps) {
  constexpr int64_t kFactors = int64_t(1) << 24;  // 128 steps of it fit an int: the longest loop over outputs of a row
  constexpr int64_t kLimit = int64_t(1) << 30;
  STD_TORCH_CHECK(up >= 1 && up < kFactors && down >= 1 && down < kFactors, op, ": expected up", name, " and down",
                  name, " in [1, 2^24), got ", up, " and ", down);
  // Further out every window holds nothing but padding, as it does there, and the rows to be held grow without need.
  if (out > 0) pad0 = std::clamp(pad0, -in * up, (out - 1) * down + taps);
  STD_TORCH_CHECK(pad0 > -kLimit && pad0 < kLimit, op, ": expected |pad", name, "0| < 2^30, got ", pad0);
  STD_TORCH_CHECK(taps >= 1 && taps < kLimit, op, ": expected a filter of at least one tap, got ", taps);
  return {in, out, int(up), int(down), int(pad0), int(taps)};
}

}  // namespace posgan_fast
